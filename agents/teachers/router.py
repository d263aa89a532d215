"""Several teachers in one: `teacher=router` asks one a row, `teacher=mixture` all of each row.

Both have `parts`, teachers by name. What a part says stays its own: it checks the student, follows
it and keeps its state as it would alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from journeyman.agents.errors import SettingError
from journeyman.agents.networks.heads import DENSE_LIMIT
from journeyman.agents.students.player import Trainable
from journeyman.agents.teachers.signal import Detail, Signal, Teacher, TopK, silent
from journeyman.envs import Episode, env_class


class _Several(Teacher):
    """What holds of teachers that are made of others."""

    def __init__(self, parts: Mapping[str, Teacher]) -> None:
        if not isinstance(parts, Mapping) or not parts:
            raise SettingError(
                "parts is empty: name at least one teacher: +teacher@teacher.parts.NAME=embedded"
            )
        for name, part in parts.items():
            if not isinstance(part, Teacher):
                raise SettingError(
                    f"parts.{name}: expected a teacher, not {type(part).__name__}: "
                    f"+teacher@teacher.parts.{name}=embedded"
                )
        self._parts = dict(parts)

    def check(self, student: Trainable) -> None:
        """See `Teacher.check`: each part's own."""
        for part in self._parts.values():
            part.check(student)

    def check_environments(self, ids: Sequence[str]) -> None:
        """See `Teacher.check_environments`: each part's own."""
        for part in self._parts.values():
            part.check_environments(ids)

    def advance(self) -> None:
        """See `Teacher.advance`: each part's own."""
        for part in self._parts.values():
            part.advance()

    def figures(self) -> dict[str, float]:
        """See `Teacher.figures`: by part."""
        return {
            f"{name}/{figure}": value
            for name, part in self._parts.items()
            for figure, value in part.figures().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """See `Teacher.state_dict`: by part."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Teacher.load_state_dict`."""
        if strange := sorted(state.keys() - self._parts.keys()):
            raise ValueError(f"the checkpoint has states of teachers that are not here: {strange}")
        for name, part in self._parts.items():
            part.load_state_dict(state.get(name, {}))


class Router(_Several):
    """Each row goes to the first part with a route that takes it.

    A route is a pattern: of the environment's id ("journeyman/Bank-*"), of a tool that it has
    ("tool:transfer"), or of the task's kind ("kind:move*"). Rows keep their order.
    """

    def __init__(
        self, parts: Mapping[str, Teacher], routes: Mapping[str, Sequence[str]], top_k: int = 16
    ) -> None:
        """Choose who judges what.

        Args:
            parts: Teachers by name.
            routes: Patterns by the name of a part, in the order they are tried.
            top_k: Tokens that it names where its most probable ones are asked for: all rows must
                have as many, so each part must name at least these.

        Raises:
            SettingError: A route is of no part, or a part has no route, or a number is out of its
                range.
        """
        super().__init__(parts)
        if not isinstance(routes, Mapping) or not routes:
            raise SettingError(
                "routes is empty: write teacher.routes={NAME: ['journeyman/Bank-*']}"
            )
        for name, patterns in routes.items():
            if name not in self._parts:
                raise SettingError(
                    f"routes.{name}: no such teacher; there are: {', '.join(self._parts)}"
                )
            if isinstance(patterns, str) or not patterns:
                raise SettingError(f"routes.{name}={patterns!r}: expected a list of patterns")
        if idle := [name for name in self._parts if name not in routes]:
            raise SettingError(f"parts.{idle[0]} has no route: add routes.{idle[0]}=['*']")
        if type(top_k) is not int or top_k < 1:
            raise SettingError(f"top_k={top_k}: expected a whole number, 1 or more")
        self._routes = {name: [str(it) for it in patterns] for name, patterns in routes.items()}
        self._top_k = top_k
        # Whole distributions of several heads are not of one shape.
        self.gives = min(Detail.TOP_K, *(part.gives for part in self._parts.values()))  # type: ignore[misc]

    def check_environments(self, ids: Sequence[str]) -> None:
        """See `Teacher.check_environments`: every row must have its teacher.

        Raises:
            SettingError: An environment has no route, whatever is played in it; or a route takes
                nothing of these environments.
        """
        sure = [
            (name, pattern)
            for name, patterns in self._routes.items()
            for pattern in patterns
            if not pattern.startswith("kind:")
        ]
        for env_id in ids:
            if not any(_takes(pattern, env_id, "") for _, pattern in sure):
                raise SettingError(
                    f"teacher.routes: none takes every task of {env_id}: add one that does to a "
                    f"teacher, at the end: '{env_id}', or '*' for all that is left"
                )
        for name, pattern in sure:
            if not any(_takes(pattern, env_id, "") for env_id in ids):
                raise SettingError(
                    f"teacher.routes.{name}: {pattern!r} takes no environment of this run "
                    f"({', '.join(ids)}) and none of their tools"
                )
        for name, part in self._parts.items():
            taken = [i for i in ids if any(_may(it, i) for it in self._routes[name])]
            part.check_environments(taken)

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        """See `Teacher.annotate`."""
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(self._route(row), []).append(place)
        signals: dict[int, Signal] = {}
        for name, own in places.items():
            told = self._parts[name].annotate([rows[i] for i in own], detail)
            signals.update(zip(own, (self._cut(name, it) for it in told), strict=True))
        return [signals[i] for i in range(len(rows))]

    def _route(self, row: Episode) -> str:
        kind = env_class(row.env_id).load_task(row.task_id).kind
        for name, patterns in self._routes.items():
            if any(_takes(pattern, row.env_id, kind) for pattern in patterns):
                return name
        raise SettingError(
            f"teacher.routes: none takes {row.env_id} {row.task_id} (kind {kind}): add '*' to one"
        )

    def _cut(self, name: str, signal: Signal) -> Signal:
        """A signal whose lists are as long as those of all rows."""
        top, k = signal.top, self._top_k
        if top is None:
            return signal
        if top.ids.shape[1] < k:
            raise SettingError(
                f"teacher.top_k={k}: teacher.parts.{name} names {top.ids.shape[1]} tokens; "
                f"expected at most as many: raise teacher.parts.{name}.top_k, or lower this"
            )
        rest = torch.cat([top.logprobs[:, k:], top.tail[:, None]], 1).logsumexp(1)
        return replace(signal, top=TopK(top.ids[:, :k], top.logprobs[:, :k], rest))


def _takes(pattern: str, env_id: str, kind: str) -> bool:
    """True if a route takes a task of that kind."""
    by, _, name = pattern.partition(":")
    if by == "kind":
        return fnmatchcase(kind, name)
    if by == "tool":
        return any(fnmatchcase(tool.spec.name, name) for tool in env_class(env_id).toolset)
    return fnmatchcase(env_id, pattern)


def _may(pattern: str, env_id: str) -> bool:
    """True if a route may take some task of an environment."""
    return pattern.startswith("kind:") or _takes(pattern, env_id, "")


class Mixture(_Several):
    """The weighted mean of what several teachers find probable; a silent one has no say.

    Its most probable tokens are exact where every part tells its whole distribution; otherwise it
    tells of the sampled token alone. Whole distributions it has none: they would be gigabytes.
    """

    def __init__(
        self, parts: Mapping[str, Teacher], weights: Mapping[str, float], top_k: int = 16
    ) -> None:
        """Weigh them.

        Args:
            parts: Teachers by name.
            weights: Above 0, by the name of a part; they are divided by their sum.
            top_k: Tokens that it names where its most probable ones are asked for.

        Raises:
            SettingError: A part without a weight or a weight without a part, one that tells of
                spans alone, or a number out of its range.
        """
        super().__init__(parts)
        for name, part in self._parts.items():
            if part.gives < Detail.SAMPLED:
                raise SettingError(
                    f"parts.{name}: {type(part).__name__} tells of spans alone, and probabilities "
                    f"of tokens are mixed; expected a teacher of the student's tokenizer, or "
                    f"teacher=router loss=span"
                )
        if not isinstance(weights, Mapping) or weights.keys() != self._parts.keys():
            raise SettingError(
                f"weights={weights}: expected a number for each of {', '.join(self._parts)}"
            )
        for name, weight in weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not 0 < weight < math.inf:
                raise SettingError(f"weights.{name}={weight}: expected a number above 0")
        if type(top_k) is not int or top_k < 1:
            raise SettingError(f"top_k={top_k}: expected a whole number, 1 or more")
        self._weights = [float(weights[name]) for name in self._parts]
        self._top_k = top_k
        whole = all(part.gives is Detail.FULL for part in self._parts.values())
        self.gives = Detail.TOP_K if whole else Detail.SAMPLED  # type: ignore[misc]

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        """See `Teacher.annotate`."""
        asked = Detail.FULL if detail is Detail.TOP_K else Detail.SAMPLED
        told = [part.annotate(rows, asked) for part in self._parts.values()]
        return [
            self._joined(row, signals, detail) for row, *signals in zip(rows, *told, strict=True)
        ]

    def _joined(self, row: Episode, signals: Sequence[Signal], detail: Detail) -> Signal:
        """One row's mixture."""
        everywhere = torch.ones(len(row.tokens), dtype=torch.bool)
        speak = torch.stack([everywhere if s.spoken is None else s.spoken for s in signals])
        spoken = speak.any(0)
        # Where all are silent any weights will do: nobody hears them.
        shares = torch.tensor(self._weights)[:, None] * (speak | ~spoken)
        logs = (shares / shares.sum(0)).log()  # [parts, T]
        mixed = torch.stack([s.logprobs for s in signals]).add(logs).logsumexp(0)
        chosen = torch.tensor(row.mask, dtype=torch.bool)
        logprobs = torch.where(chosen, mixed, torch.zeros_like(mixed))
        top = self._top(signals, logs[:, chosen]) if detail is Detail.TOP_K else None
        signal = Signal(logprobs, top)
        return signal if spoken.all() else silent(row, signal, spoken)

    def _top(self, signals: Sequence[Signal], logs: Tensor) -> TopK:
        """The most probable tokens of the mixture, a slice of places at a time.

        Args:
            signals: Of one row, with whole distributions of N places.
            logs: [parts, N] log-weights.
        """
        fulls = [s.full for s in signals if s.full is not None]
        if len(fulls) != len(signals):
            raise ValueError(f"{len(fulls)} of {len(signals)} parts told their whole distribution")
        # Beyond the narrowest is padding, or tokens that the student has not (see `LocalTeacher`).
        width = min(it.head.width for it in fulls)
        heads = [it.head.cut(width) for it in fulls]
        size = max(1, DENSE_LIMIT // (len(fulls) * width))
        found = []
        for start in range(0, logs.shape[1], size):
            part = slice(start, start + size)
            mixed = torch.stack(
                [
                    head.logits(it.states[part]).float().log_softmax(-1)
                    + own[part, None].to(it.states.device)
                    for head, it, own in zip(heads, fulls, logs, strict=True)
                ]
            ).logsumexp(0)
            best = mixed.topk(min(self._top_k, mixed.shape[1]))
            rest = mixed.scatter(1, best.indices, -torch.inf).logsumexp(-1)
            found.append((best.indices, best.values, rest))
        ids, logprobs, tail = (torch.cat(it) for it in zip(*found, strict=True))
        return TopK(ids, logprobs, tail)
