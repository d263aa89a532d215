"""Words for figures that look like results and are none: what is likely wrong, and what to change.

One remark a row at most: the first cause that explains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from journeyman.agents.evaluation.metrics import Metrics
from journeyman.envs import StopReason
from journeyman.tools import UNREAD, CallStatus

NO_SIGNAL = "rollout/no_signal"
"""Figure of a training that learns from rewards alone: 1 where a rollout had nothing to learn."""

COLLAPSED = "collapsed"
"""Figure of the line of a training where it was found to collapse: 1."""


def remarks(rows: Mapping[str, Metrics], history: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What a reader of a table must know beside it; empty where nothing is odd.

    Args:
        rows: Name of a policy -> its metrics.
        history: What training logged.
    """
    found = [f"{name}: {words}" for name, m in rows.items() if (words := _remark(name, m))]
    silent = [entry[NO_SIGNAL] for entry in history if NO_SIGNAL in entry]
    if silent and all(value == 1 for value in silent):
        found.append(
            "training: nothing was learned: in every rollout all episodes had the same reward; "
            "take easier tasks (split=train/easy), more episodes a rollout, or a teacher with a "
            "loss=…"
        )
    fallen = next((entry["step"] for entry in history if entry.get(COLLAPSED) == 1), None)
    if fallen is not None:
        found.append(
            f"training: collapsed, as was seen at step {fallen}: take a smaller "
            f"trainer.args.learning_rate or a larger trainer.kl"
        )
    return found


def _remark(name: str, metrics: Metrics) -> str | None:
    played = sum(metrics.stops.values()) - metrics.infra_failures
    if not played:
        return None
    if metrics.unplayed:
        return (
            f"{metrics.unplayed} of {played} prompts leave no room for a turn and count as failed: "
            f"raise student.max_context, or show less in the prompt (student.render)"
        )
    if name == "no-op":
        if metrics.success.successes == metrics.success.episodes:
            return "every task is solved by doing nothing: they measure nothing; choose other tasks"
        return None
    if name == "oracle":
        return _of_oracle(metrics, played)
    if metrics.success.successes:
        return None
    return _of_failure(metrics, played) or (
        "solves nothing, and is to be learned from: choose another teacher.model, or see what it "
        "does by `journeyman show`"
        if name == "teacher"
        else None
    )


def _of_oracle(metrics: Metrics, played: int) -> str | None:
    failed = metrics.success.episodes - metrics.success.successes
    late = metrics.stops.get(StopReason.MAX_TURNS, 0)
    if not failed:
        return None
    if late:
        return (
            f"{late} of {played} gold solutions are longer than env.kwargs.max_turns: raise it; "
            f"nobody can solve these tasks"
        )
    return (
        f"{failed} of {played} gold solutions are not accepted: see `journeyman envs check` of the "
        f"environment"
    )


def _of_failure(metrics: Metrics, played: int) -> str | None:
    """Why a policy that solves nothing may not have been heard at all."""
    calls, statuses = metrics.calls, metrics.call_statuses
    turns = round((metrics.turns_per_task or 0) * metrics.success.episodes)
    if turns and metrics.truncated_turns == turns:
        return "every turn hit its limit: raise student.max_turn_tokens"
    if calls and UNREAD.issuperset(map(CallStatus, statuses)):
        return (
            f"none of its {calls} calls could be read: set student.dialect to the form that the "
            f"model writes (`journeyman show` has its words)"
        )
    if calls and set(statuses) == {CallStatus.UNKNOWN_TOOL}:
        return (
            f"all of its {calls} calls name tools that are not there: show it the tools in another "
            f"way (student.render)"
        )
    if not calls:
        return (
            "it made no call: if its words (`journeyman show`) hold calls, set student.dialect to "
            "their form"
        )
    for stop, setting in (
        (StopReason.MAX_TURNS, "env.kwargs.max_turns"),
        (StopReason.CONTEXT_FULL, "student.max_context"),
    ):
        if metrics.stops.get(stop) == played:
            return f"every episode ended by {setting}: raise it, or choose shorter tasks"
    return None
