"""Gymnasium environments for tool use: the base class, the registry and the built-in tasks."""

from journeyman.envs.core import Snapshot, ToolEnv
from journeyman.envs.registry import (
    constructor_arguments,
    env_class,
    env_ids,
    load_plugins,
    make,
    make_for_run,
    register,
)
from journeyman.envs.task import Task, UserTurn, answer_text, refused
from journeyman.envs.types import (
    AssistantTurn,
    BranchPoint,
    Episode,
    Level,
    Message,
    Split,
    Step,
    StopReason,
)

__all__ = [
    "AssistantTurn",
    "BranchPoint",
    "Episode",
    "Level",
    "Message",
    "Snapshot",
    "Split",
    "Step",
    "StopReason",
    "Task",
    "ToolEnv",
    "UserTurn",
    "answer_text",
    "constructor_arguments",
    "env_class",
    "env_ids",
    "load_plugins",
    "make",
    "make_for_run",
    "refused",
    "register",
]
