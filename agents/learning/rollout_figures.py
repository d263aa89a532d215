"""What there is to log of a rollout: success, tokens, the age of weights, what a search found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from journeyman.agents.search.evidence import Forest
from journeyman.envs import Episode, StopReason
from journeyman.tools import CallStatus

RUN = (CallStatus.OK, CallStatus.TOOL_ERROR, CallStatus.TIMEOUT)
COUNTED = frozenset(
    ("student_tokens", "teacher_tokens", "env_steps", "replayed", "infra_errors", "tokens_per_s")
)
"""Figures of a rollout that are sums over the processes of a job, as all of a search's are; others
are means."""
LOGGED_TURNS = 6
"""Figures are logged for this many turns: their drift over turns is the first thing to watch."""


def counted(name: str) -> bool:
    """True of a figure that is the sum of what the processes of a job have counted."""
    kind, _, rest = name.partition("/")
    return kind == "search" or (kind == "rollout" and rest in COUNTED)


def rollout_figures(
    episodes: Sequence[Episode], theirs: Sequence[bool], seconds: float
) -> dict[str, float]:
    """What was played and what came of it; success and lengths are of the student's own episodes.

    Args:
        episodes: All of a rollout.
        theirs: Of each, whether the teacher played it.
        seconds: That the rollout took, with all that was asked about it.
    """
    own = [e for e, by_teacher in zip(episodes, theirs, strict=True) if not by_teacher]
    sound = [e for e in own if e.stop is not StopReason.INFRA_ERROR]
    tokens = sum(sum(e.mask) for e in sound)
    figures = {
        "rollout/student_tokens": float(tokens),
        "rollout/env_steps": float(sum(len(e.steps) for e in episodes)),
    }
    if sound:
        figures["rollout/success"] = sum(e.success for e in sound) / len(sound)
        figures["rollout/calls"] = sum(len(e.calls) for e in sound) / len(sound)
        figures["rollout/turns"] = sum(len(e.steps) for e in sound) / len(sound)
        figures["rollout/tokens"] = tokens / len(sound)
    if any(theirs):
        written = sum(sum(e.mask) for e in episodes) - sum(sum(e.mask) for e in own)
        figures["rollout/teacher_tokens"] = float(written)
    broken = sum(e.stop is StopReason.INFRA_ERROR for e in episodes)
    figures["rollout/infra_errors"] = float(broken)
    figures["rollout/seconds"] = seconds
    figures["rollout/tokens_per_s"] = tokens / seconds
    return figures


def version_figures(episodes: Sequence[Episode], step: int) -> dict[str, float]:
    """How old the weights were that played, in optimiser steps before `step`, where workers did."""
    known = [e.version for e in episodes if e.version is not None]
    if not known:
        return {}
    return {"rollout/version": fmean(known), "rollout/staleness": float(step - min(known))}


def search_figures(forest: Forest) -> dict[str, float]:
    """What trees cost, values by turn, and advantages by tool."""
    figures = {f"search/{name}": float(count) for name, count in asdict(forest.spent).items()}
    values, tools = defaultdict(list), defaultdict(list)
    for row in forest.rows:
        for turn, (step, known) in enumerate(zip(row.episode.steps, row.steps, strict=True)):
            if known is not None:
                values[turn].append(known.value.mean)
                for result in step.results:
                    if result.call.status in RUN:  # other names are the student's inventions
                        tools[result.call.name].append(known.advantage.mean)
    for turn in range(LOGGED_TURNS):
        if values[turn]:
            figures[f"value/turn_{turn + 1}"] = fmean(values[turn])
    return figures | {f"advantage/{name}": fmean(found) for name, found in tools.items()}
