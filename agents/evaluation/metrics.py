"""What a set of episodes says about a policy.

Episodes whose environment broke (`StopReason.INFRA_ERROR`) say nothing about the policy: they are
counted and reported, and enter no average.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from journeyman.agents.evaluation.failures import failure
from journeyman.agents.evaluation.intervals import Measured, wilson
from journeyman.agents.evaluation.matching import NAMELESS
from journeyman.agents.evaluation.measures import (
    NO_MEASURES,
    Contributions,
    Measure,
    functions,
    measures,
)
from journeyman.agents.evaluation.passes import passes
from journeyman.envs.types import LEVELS, Episode, StopReason, level_of
from journeyman.tools.types import CallStatus, ToolCall

TaskKey = tuple[str, str]
"""Environment id and task id: a task id alone is unique only within its environment."""

NO_TOOL = "(no tool)"
"""Stands in `Metrics.by_tool` for what malformed calls and invented names would have called."""


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
    tool_call_success: float | None
    """Share of attempted calls that ran and were not refused; None without calls."""
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
    by_level: Mapping[str, Rate]
    """Success by the level of the task's pool, easy to hard."""
    by_failure: Mapping[str, int]
    """Episodes that did not succeed, broken ones too, by `failures.failure`; most frequent
    first."""
    attempts: int
    """Episodes that each task was to have."""
    pass_hat: Mapping[int, float | None]
    """pass^k for k = 1..`attempts`; empty if a task had one attempt."""
    pass_at: Mapping[int, float | None]
    """pass@k likewise."""
    extra: Mapping[str, float | None]
    """Figures of other packages' metrics, by name; see `measures.functions`."""
    measures: Mapping[str, Measured] = field(default_factory=dict)
    """Every figure of `measures.measures` by its name, and with several attempts "pass^k" and
    "pass@k" for each k. Seconds, which are others each time, only if they were asked for."""
    groups: Mapping[str, Mapping[str, Mapping[str, Measured]]] = field(default_factory=dict)
    """By what tasks are grouped (see `_grouped`), by group: success and the figures that were asked
    for."""
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
            "by_level": {name: rate.to_dict() for name, rate in self.by_level.items()},
            "by_tool": {
                name: {"calls": sum(statuses.values()), "statuses": dict(statuses)}
                for name, statuses in self.by_tool.items()
            },
            "measures": {name: figure.to_dict() for name, figure in self.measures.items()},
            "groups": {
                by: {
                    group: {name: figure.to_dict() for name, figure in figures.items()}
                    for group, figures in groups.items()
                }
                for by, groups in self.groups.items()
            },
            "pass_hat": {str(k): value for k, value in self.pass_hat.items()},
            "pass_at": {str(k): value for k, value in self.pass_at.items()},
        }


def summarise(
    episodes: Sequence[Episode],
    kinds: Mapping[TaskKey, str] | None = None,
    attempts: int = 1,
    chosen: Mapping[str, Measure] = NO_MEASURES,
) -> Metrics:
    """Measure a policy by its episodes.

    Args:
        episodes: What it played; several episodes of one task are fine.
        kinds: (environment id, task id) -> the task's kind, to break success down by kind.
        attempts: Episodes that each task was to have; above 1 there are pass^k and pass@k too.
        chosen: Measures to break down by groups of tasks, as success is.

    Raises:
        ValueError: `kinds` lacks a task that was played.
    """
    counted = [e for e in episodes if e.stop is not StopReason.INFRA_ERROR]
    known = {it.name: it for it in measures().values() if it.unit != "seconds"} | {**chosen}
    parts = Contributions.of(known, counted)
    figures = parts.figures()
    reasons = {id(e): failure(e) for e in episodes}
    statuses = Counter(result.call.status for e in counted for result in e.calls)
    stops = Counter(e.stop for e in episodes)
    ks = range(1, attempts + 1) if attempts > 1 else ()
    chances = passes(counted, ks)
    return Metrics(
        success=_rate(counted),
        calls=statuses.total(),
        tool_call_success=figures["tool_call_success"].value,
        call_validity=figures["valid_calls"].value,
        call_statuses={s.value: statuses[s] for s in CallStatus if statuses[s]},
        calls_per_task=figures["calls"].value,
        tokens_per_task=figures["tokens"].value,
        turns_per_task=figures["turns"].value,
        truncated_turns=_count(figures["truncated_turns"]) or 0,
        stops={s.value: stops[s] for s in StopReason if stops[s]},
        infra_failures=stops[StopReason.INFRA_ERROR],
        by_env=_rates(counted, lambda e: e.env_id),
        by_kind={} if kinds is None else _rates(counted, lambda e: _kind(e, kinds)),
        first_error=next((e.error for e in episodes if e.stop is StopReason.INFRA_ERROR), None),
        by_tool=_by_tool(result.call for e in counted for result in e.calls),
        by_level=_by_level(counted),
        by_failure=_by_failure(reasons[id(e)] for e in episodes),
        attempts=attempts,
        pass_hat={k: chances[f"pass^{k}"].value for k in ks},
        pass_at={k: chances[f"pass@{k}"].value for k in ks},
        extra={name: metric(counted) for name, metric in functions().items()},
        measures={**figures, **chances},
        groups={
            by: {name: parts.figures(["success", *chosen], them) for name, them in found.items()}
            for by, found in _grouped(counted, kinds, [reasons[id(e)] for e in counted]).items()
        },
        unplayed=_count(figures["unplayed"]) or 0,
        prompt_tokens=_count(figures["prompt_tokens"]),
        completion_tokens=_count(figures["completion_tokens"]),
        cost=figures["cost"].numerator,
    )


def _grouped(
    episodes: Sequence[Episode],
    kinds: Mapping[TaskKey, str] | None,
    reasons: Sequence[str | None],
) -> dict[str, dict[str, list[int]]]:
    """Places of episodes, by what they have in common: {"env": {group: places}, ...}.

    The groups are of the environment, the task's kind (if kinds are known), its level, each tool
    that its gold calls take, and what the episode failed by.
    """
    found: dict[str, defaultdict[str, list[int]]]
    found = {by: defaultdict(list) for by in ("env", "kind", "level", "tool", "failure")}
    for place, (episode, reason) in enumerate(zip(episodes, reasons, strict=True)):
        found["env"][episode.env_id].append(place)
        found["level"][level_of(episode.task_id)].append(place)
        if kinds is not None:
            found["kind"][_kind(episode, kinds)].append(place)
        for tool in {call.name for turn in episode.gold or () for call in turn}:
            found["tool"][tool].append(place)
        if reason is not None:
            found["failure"][reason].append(place)
    return {by: {name: groups[name] for name in sorted(groups)} for by, groups in found.items()}


def _count(figure: Measured) -> int | None:
    """What there was in all."""
    return None if figure.numerator is None else round(figure.numerator)


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


def _by_level(episodes: Iterable[Episode]) -> dict[str, Rate]:
    rates = _rates(episodes, lambda e: level_of(e.task_id))
    return {level: rates[level] for level in LEVELS if level in rates}


def _by_failure(reasons: Iterable[str | None]) -> dict[str, int]:
    found = Counter(reason for reason in reasons if reason is not None)
    return dict(sorted(found.items(), key=lambda it: (-it[1], it[0])))


def _by_tool(calls: Iterable[ToolCall]) -> dict[str, dict[str, int]]:
    found: defaultdict[str, Counter[CallStatus]] = defaultdict(Counter)
    for call in calls:
        found[NO_TOOL if call.status in NAMELESS else call.name][call.status] += 1
    return {
        name: {s.value: found[name][s] for s in CallStatus if found[name][s]}
        for name in sorted(found)
    }
