"""What a set of episodes says about a policy.

Episodes whose environment broke (`StopReason.INFRA_ERROR`) say nothing about the policy: they are
counted and reported, and enter no average.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.measures import ENTRY_POINTS, VALID, Measure, objection
from journeyman.envs.types import Episode, StopReason, Usage
from journeyman.tools.doors import load_group
from journeyman.tools.types import CallStatus, ToolCall

_N = TypeVar("_N", int, float)
TaskKey = tuple[str, str]
"""Environment id and task id: a task id alone is unique only within its environment."""

Metric = Callable[[Sequence[Episode]], float | None]
"""A figure of a policy from the episodes that infrastructure did not break; None if there is none.
Another package adds one under the entry-point group `journeyman.metrics`: a column of the table."""

NO_TOOL = "(no tool)"
"""Stands in `Metrics.by_tool` for what malformed calls and invented names would have called."""
_NAMELESS = frozenset(
    {
        CallStatus.INVALID_JSON,
        CallStatus.UNCLOSED,
        CallStatus.MISSING_NAME,
        CallStatus.UNKNOWN_TOOL,
    }
)


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something succeeded."""

    successes: int
    episodes: int
    tasks: int
    """Distinct tasks among the episodes."""

    @property
    def value(self) -> float | None:
        """The share of successful episodes, in 0..1; None without episodes."""
        return self.successes / self.episodes if self.episodes else None

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval.

        Repeated episodes of one task are not independent, so tasks are the trials: the interval is
        exact for one episode a task and on the wide side for more.
        """
        return wilson((self.value or 0.0) * self.tasks, self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, the derived figures included."""
        low, high = self.interval
        return {**asdict(self), "rate": self.value, "low": low, "high": high}


@dataclass(frozen=True)
class Metrics:
    """The figures of one policy on one set of tasks.

    Every mean is over the episodes that infrastructure did not break, and None if there are none.
    """

    success: Rate
    calls: int
    """Attempted calls, malformed ones included."""
    call_validity: float | None
    """Share of attempted calls that reached a tool; None without calls."""
    call_statuses: Mapping[str, int]
    """Attempted calls by `CallStatus`; statuses that never occurred are left out."""
    calls_per_task: float | None
    """Mean attempted calls of an episode."""
    tokens_per_task: float | None
    """Mean tokens that the student chose in an episode; where a server wrote them, by its count."""
    turns_per_task: float | None
    """Mean student turns of an episode."""
    truncated_turns: int
    """Student turns that hit their token limit."""
    stops: Mapping[str, int]
    """All episodes, broken ones too, by `StopReason`; reasons that never occurred are left out."""
    infra_failures: int
    """Episodes that infrastructure broke."""
    by_env: Mapping[str, Rate]
    """Success by environment id."""
    by_kind: Mapping[str, Rate]
    """Success by task kind; empty if the caller gave no kinds."""
    first_error: str | None
    """What broke the first broken episode; None if none broke."""
    by_tool: Mapping[str, Mapping[str, int]]
    """Attempted calls by tool and `CallStatus`; see `NO_TOOL`."""
    attempts: int
    """Episodes that each task was to have."""
    pass_hat: Mapping[int, float | None]
    """pass^k for k = 1..`attempts`; empty if a task had one attempt."""
    pass_at: Mapping[int, float | None]
    """pass@k likewise."""
    extra: Mapping[str, float | None]
    """Figures of other packages' metrics, by name; see `registered`."""
    unplayed: int = 0
    """Episodes whose prompt left no room for a turn; they count as failed."""
    prompt_tokens: int | None = None
    """That a server read in all, as it counts; None where none did, or it does not say."""
    completion_tokens: int | None = None
    """That it wrote, likewise."""
    cost: float | None = None
    """Money for both; None where no prices are known."""

    @property
    def tasks(self) -> int:
        """Distinct tasks among the episodes that were counted."""
        return self.success.tasks

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, the derived figures included."""
        return {
            **asdict(self),
            "tasks": self.tasks,
            "success": self.success.to_dict(),
            "by_env": {name: rate.to_dict() for name, rate in self.by_env.items()},
            "by_kind": {name: rate.to_dict() for name, rate in self.by_kind.items()},
            "by_tool": {
                name: {"calls": sum(statuses.values()), "statuses": dict(statuses)}
                for name, statuses in self.by_tool.items()
            },
            "pass_hat": {str(k): value for k, value in self.pass_hat.items()},
            "pass_at": {str(k): value for k, value in self.pass_at.items()},
        }


def summarise(
    episodes: Sequence[Episode], kinds: Mapping[TaskKey, str] | None = None, attempts: int = 1
) -> Metrics:
    """Measure a policy by its episodes.

    Args:
        episodes: What it played; several episodes of one task are fine.
        kinds: (environment id, task id) -> the task's kind, to break success down by kind.
        attempts: Episodes that each task was to have; above 1 there are pass^k and pass@k too.

    Raises:
        ValueError: `kinds` lacks a task that was played.
    """
    counted = [e for e in episodes if e.stop is not StopReason.INFRA_ERROR]
    statuses = Counter(result.call.status for e in counted for result in e.calls)
    calls = statuses.total()
    valid = sum(count for status, count in statuses.items() if status in VALID)
    stops = Counter(e.stop for e in episodes)
    ks = range(1, attempts + 1) if attempts > 1 else ()
    return Metrics(
        success=_rate(counted),
        calls=calls,
        call_validity=valid / calls if calls else None,
        call_statuses={s.value: statuses[s] for s in CallStatus if statuses[s]},
        calls_per_task=_mean(len(e.calls) for e in counted),
        tokens_per_task=_tokens_per_task(counted),
        turns_per_task=_mean(len(e.steps) for e in counted),
        truncated_turns=sum(step.truncated for e in counted for step in e.steps),
        stops={s.value: stops[s] for s in StopReason if stops[s]},
        infra_failures=stops[StopReason.INFRA_ERROR],
        by_env=_rates(counted, lambda e: e.env_id),
        by_kind={} if kinds is None else _rates(counted, lambda e: _kind(e, kinds)),
        first_error=next((e.error for e in episodes if e.stop is StopReason.INFRA_ERROR), None),
        by_tool=_by_tool(result.call for e in counted for result in e.calls),
        attempts=attempts,
        pass_hat={k: pass_hat_k(counted, k) for k in ks},
        pass_at={k: pass_at_k(counted, k) for k in ks},
        extra={name: metric(counted) for name, metric in registered().items()},
        unplayed=sum(e.stop is StopReason.CONTEXT_FULL and not e.steps for e in counted),
        prompt_tokens=_total(u.prompt for u in _usages(counted)),
        completion_tokens=_total(u.completion for u in _usages(counted)),
        cost=_total(u.cost for u in _usages(counted)),
    )


def _usages(episodes: Iterable[Episode]) -> Iterator[Usage]:
    return (step.usage for e in episodes for step in e.steps if step.usage is not None)


def _total(parts: Iterable[_N | None]) -> _N | None:
    """The sum, if there is any part and each is known."""
    listed = list(parts)
    known = [part for part in listed if part is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(listed) else None


def _tokens_per_task(episodes: Sequence[Episode]) -> float | None:
    if not any(_usages(episodes)):
        return _mean(sum(e.mask) for e in episodes)
    written = _total(u.completion for u in _usages(episodes))
    return None if written is None else written / len(episodes)


def registered() -> Mapping[str, Metric]:
    """The plain functions of other packages, by the names of their entry points."""
    found = load_group(ENTRY_POINTS, objection)
    return {name: it for name, it in found.items() if not isinstance(it, Measure)}


def pass_hat_k(episodes: Sequence[Episode], k: int) -> float | None:
    """pass^k: the chance that k episodes of a task ALL succeed, averaged over tasks.

    Args:
        episodes: n >= k episodes of each task. Tasks left with fewer, because infrastructure broke
            some, are passed over.
        k: Episodes drawn from each task's, without replacement.

    Returns:
        The unbiased estimate, mean of C(c,k)/C(n,k); None if no task has k episodes.

    Raises:
        ValueError: `k` is below 1.
    """
    return _over_tasks(episodes, k, lambda n, c: math.comb(c, k) / math.comb(n, k))


def pass_at_k(episodes: Sequence[Episode], k: int) -> float | None:
    """pass@k: the chance that AT LEAST ONE of k episodes of a task succeeds, averaged over tasks.

    The mean of 1 - C(n-c,k)/C(n,k); arguments, result and errors are those of `pass_hat_k`.
    """
    return _over_tasks(episodes, k, lambda n, c: 1 - math.comb(n - c, k) / math.comb(n, k))


def _over_tasks(
    episodes: Sequence[Episode], k: int, estimate: Callable[[int, int], float]
) -> float | None:
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
    outcomes: defaultdict[TaskKey, list[bool]] = defaultdict(list)
    for episode in episodes:
        if episode.stop is not StopReason.INFRA_ERROR:
            outcomes[_key(episode)].append(episode.success)
    return _mean(estimate(len(o), sum(o)) for o in outcomes.values() if len(o) >= k)


def _key(episode: Episode) -> TaskKey:
    return episode.env_id, episode.task_id


def _kind(episode: Episode, kinds: Mapping[TaskKey, str]) -> str:
    try:
        return kinds[_key(episode)]
    except KeyError:
        raise ValueError(f"kinds has no entry for {_key(episode)}") from None


def _rate(episodes: Sequence[Episode]) -> Rate:
    tasks = len({_key(e) for e in episodes})
    return Rate(sum(e.success for e in episodes), len(episodes), tasks)


def _rates(episodes: Iterable[Episode], group: Callable[[Episode], str]) -> dict[str, Rate]:
    groups: defaultdict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        groups[group(episode)].append(episode)
    return {name: _rate(groups[name]) for name in sorted(groups)}


def _by_tool(calls: Iterable[ToolCall]) -> dict[str, dict[str, int]]:
    found: defaultdict[str, Counter[CallStatus]] = defaultdict(Counter)
    for call in calls:
        found[NO_TOOL if call.status in _NAMELESS else call.name][call.status] += 1
    return {
        name: {s.value: found[name][s] for s in CallStatus if found[name][s]}
        for name in sorted(found)
    }


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
