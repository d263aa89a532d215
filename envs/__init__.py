"""Gymnasium environments for tool use: the base class, the registry and the built-in tasks."""

from journeyman.envs.core import Snapshot, Task, ToolEnv
from journeyman.envs.registry import env_class, env_ids, load_plugins, make, register
from journeyman.envs.types import Episode, Message, Split, Step, StopReason

__all__ = [
    "Episode",
    "Message",
    "Snapshot",
    "Split",
    "Step",
    "StopReason",
    "Task",
    "ToolEnv",
    "env_class",
    "env_ids",
    "load_plugins",
    "make",
    "register",
]
