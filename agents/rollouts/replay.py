"""Episodes that were written down, played again: branch points are in no file.

The calls are played as the record has them, so that no model and no dialect is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from journeyman.agents.rollouts.underway import branch_point
from journeyman.envs import AssistantTurn, Episode, Step, make_for_run
from journeyman.envs.errors import StateChangedError
from journeyman.tools import UNREAD, CallStatus, ToolCall


def replayed(episode: Episode, env_kwargs: dict[str, Any]) -> Episode:
    """An episode as it was recorded, with a branch point before each step, and its tools.

    Args:
        episode: Played to its end, from its start.
        env_kwargs: For the environment, as they were.

    Raises:
        StateChangedError: The same turns lead elsewhere by now.
        NoSnapshotError: The environment has no snapshots.
        NoBranchError: It cannot branch otherwise.
        Exception: The environment broke.
    """
    env = make_for_run(episode.env_id, env_kwargs)
    points = []
    try:
        env.reset(options={"task_id": episode.task_id})
        for number, step in enumerate(episode.steps, 1):
            if env.over:
                raise _changed(episode, f"the episode is over before turn {number}")
            points.append(branch_point(env))
            *_, info = env.step(AssistantTurn(step.text, _calls(step), step.said))
            if _statuses(step) != [result.call.status for result in info["calls"]]:
                raise _changed(episode, f"calls of turn {number} end otherwise")
        if env.state_hash() != episode.state_hash:
            raise _changed(episode, "the last of them leads to another state")
        return replace(episode, branch_points=tuple(points), tools=tuple(env.tools))
    finally:
        env.close()


def as_read(call: ToolCall) -> ToolCall:
    """A call as it was before it was played; one that could not be read stays as it is."""
    if call.status in UNREAD:
        return call
    return replace(call, status=CallStatus.PARSED, error=None)


def _calls(step: Step) -> tuple[ToolCall, ...]:
    return tuple(as_read(result.call) for result in step.results)


def _statuses(step: Step) -> Sequence[CallStatus]:
    return [result.call.status for result in step.results]


def _changed(episode: Episode, what: str) -> StateChangedError:
    return StateChangedError(
        f"{episode.env_id} {episode.task_id}: the turns of the record do not lead where they led "
        f"({what}): its environment has changed since or has chance in it that cannot be played "
        f"again; play it anew with `journeyman eval`"
    )
