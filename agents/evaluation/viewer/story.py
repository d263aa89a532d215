"""One episode as data of a page: what was said, called and judged, and why it failed.

Every text is `printable` already: the page has nothing to do but to show it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from journeyman.agents.evaluation.failures import failure
from journeyman.agents.evaluation.lost import Lost, in_words
from journeyman.agents.evaluation.printing import one_line, printable
from journeyman.agents.evaluation.records import Played
from journeyman.agents.evaluation.scores import Scores, StepScores, StepWorth
from journeyman.agents.evaluation.transcript import chances, known_solution
from journeyman.envs import Episode, Message, Step
from journeyman.envs.shortfall import Shortfall
from journeyman.envs.types import LEVELS, level_of
from journeyman.tools import CallStatus, ToolCall, ToolResult

_DIGITS = 4
"""Of what is said of a token: more would not be seen."""
_ENDLESS = 1e9
"""The page shows it so."""


class Texts:
    """Texts that many episodes share, such as a system message: each is written once."""

    def __init__(self) -> None:
        """None yet."""
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        """Where a text stands in `listed`."""
        return self._places.setdefault(text, len(self._places))

    @property
    def listed(self) -> list[str]:
        """All of them, fit to be seen."""
        return [printable(text) for text in self._places]


def story(played: Played, place: str, row: int, texts: Texts) -> dict[str, Any]:
    """An episode as JSON-able data.

    Args:
        played: The episode.
        place: What it is called in the page's addresses, such as "0.12".
        row: Index of its row.
        texts: Gets what it was opened with.

    Returns:
        What is needed to list it and to show it; keys that say nothing are left out.
    """
    episode, scores = played.episode, played.scores
    told = scores.steps if scores else (None,) * len(episode.steps)
    turns = [_turn(step, score, scores) for step, score in zip(episode.steps, told, strict=True)]
    for number, turn in enumerate(turns):
        if found := chances(played, number):
            turn["chances"] = found
    usages = [step.usage for step in episode.steps if step.usage is not None]
    costs = [usage.cost for usage in usages if usage.cost is not None]
    why = failure(episode)
    data = {
        "id": place,
        "row": row,
        "env": one_line(episode.env_id),
        "task": one_line(episode.task_id),
        "kind": one_line(played.kind),
        "level": "" if (level := level_of(episode.task_id)) == LEVELS[0] else level,
        "attempt": played.attempt,
        "step": played.step,
        "seed": str(episode.seed),  # 64 bits: a number of a page has 53
        "success": episode.success,
        "broken": played.broken,
        "reward": episode.reward,
        "score": episode.score,
        "failure": None if why is None else one_line(why),
        "stop": episode.stop.value,
        "error": None if episode.error is None else printable(episode.error),
        "tokens": _tokens(played),
        "calls": len(episode.calls),
        "refused": sum(not result.ok for result in episode.calls),
        "cost": sum(costs) if costs else None,
        "opening": [[m.role, texts.place(m.content), _name(m)] for m in episode.opening],
        "turns": turns,
        "decides": None if scores is None else scores.deciding(episode.success),
        "shortfall": None if episode.shortfall is None else _shortfall(episode.shortfall),
        "gold": _gold(played),
        "lost": [_lost(it, episode) for it in played.lost],
        "tree": _tree(played),
    }
    return {key: value for key, value in data.items() if value not in (None, [], "")}


def _tokens(played: Played) -> int:
    """Tokens that the player wrote: by its server's count where there is one."""
    counted = [step.usage.completion for step in played.episode.steps if step.usage is not None]
    known = [count for count in counted if count is not None]
    return sum(known) if known else played.episode.chosen


def _name(message: Message) -> str:
    return one_line(message.name or "")


def _turn(step: Step, score: StepScores | None, scores: Scores | None) -> dict[str, Any]:
    pieces = None if scores is None else _pieces(step, scores)
    data: dict[str, Any] = {
        "text": printable(step.text) if pieces is None else "".join(pieces),
        "calls": [_call(result) for result in step.results],
        "more": [[m.role, printable(m.content), _name(m)] for m in _more(step)],
        "cut": step.truncated or None,
        "said": _outside(step),
    }
    if step.usage is not None:
        data["usage"] = [step.usage.prompt, step.usage.completion, step.usage.cost]
    if score is not None and scores is not None and pieces is not None:
        data["score"] = _score(score)
        data["shades"] = _shades(step, scores, pieces)
    return {key: value for key, value in data.items() if value not in (None, [])}


def _outside(step: Step) -> str | None:
    """What a turn says outside its calls; None where that is all of it, or nobody can tell."""
    spans = [result.call.span for result in step.results]
    if not spans or None in spans:
        return None
    kept, place = [], 0
    for start, end in sorted(span for span in spans if span is not None):
        kept.append(step.text[place:start])
        place = max(place, end)
    return printable("".join((*kept, step.text[place:])).strip())


def _more(step: Step) -> Iterable[Message]:
    """What the environment said besides the results of the calls."""
    results = [result.content for result in step.results]
    for message in step.reply:
        if message.role == "tool" and message.content in results:
            results.remove(message.content)
        else:
            yield message


def _call(result: ToolResult) -> dict[str, Any]:
    call = result.call
    return {
        "name": one_line(call.name),
        "arguments": _arguments(call),
        "status": call.status.value,
        "result": printable(result.content),
        "seconds": round(result.latency_s, 4),
    }


def _arguments(call: ToolCall) -> list[list[str]]:
    """Names and values as JSON, in the order they were written."""
    return [
        [one_line(str(name)), printable(json.dumps(value, ensure_ascii=False, default=str))]
        for name, value in call.arguments.items()
    ]


def _pieces(step: Step, scores: Scores) -> list[str]:
    """A turn's text token by token, all but its end; what belongs to no whole token comes last."""
    start, end = step.span
    pieces, place = [], 0
    for token in range(start, end - 1):
        after = place + scores.widths[token]
        pieces.append(printable(step.text[place:after]))
        place = after
    return [*pieces, printable(step.text[place:])]


def _shades(step: Step, scores: Scores, pieces: Sequence[str]) -> dict[str, Any]:
    """What is known of each token of a turn, its end included, one list a figure.

    "widths" are those of the texts as a page shows them, in its own unit, UTF-16's.
    """
    start, end = step.span
    told = {"ratio": scores.log_ratio, "weight": scores.weights, "advantage": scores.advantages}
    figures = {
        name: [_number(value) for value in values[start:end]]
        for name, values in told.items()
        if values is not None and any(values[start:end])
    }
    return {"widths": [len(p.encode("utf-16-le")) // 2 for p in pieces[:-1]], **figures}


def _number(value: float) -> float:
    """As many digits as are seen; JSON has no number for what is without end."""
    if math.isnan(value):
        return 0.0
    return round(max(-_ENDLESS, min(_ENDLESS, value)), _DIGITS)


def _score(score: StepScores) -> dict[str, Any]:
    data = {
        "weight": _number(score.weight),
        "advantage": _number(score.advantage),
        "grade": score.grade,
        "value": None if score.value is None else _worth(score.value),
        "parts": [
            [one_line(name), _number(part.log_ratio), _number(part.distance), part.tokens]
            for name, part in score.parts.items()
        ],
    }
    return {key: value for key, value in data.items() if value not in (None, [])}


def _worth(value: StepWorth) -> dict[str, float]:
    return {
        "before": value.before,
        "after": value.after,
        "gain": round(value.gain, _DIGITS),
        "error": value.error,
        "samples": value.samples,
    }


def _shortfall(found: Shortfall) -> dict[str, Any]:
    return {
        "state": [[_told(d.path), _told(d.reached), _told(d.wanted)] for d in found.state],
        "answers": [[_told(a.given), _told(a.wanted), a.right] for a in found.answers],
    }


def _told(text: str | None) -> str | None:
    return None if text is None else printable(text)


def _gold(played: Played) -> list[str]:
    """A way to solve it, a line each, as its episode or else its environment tells."""
    if played.episode.gold is None:
        return [printable(line) for line in known_solution(played)]
    return [
        f"{one_line(call.name)}({', '.join(f'{n}: {v}' for n, v in _arguments(call))})"
        + (" (to be refused)" if call.status is CallStatus.TOOL_ERROR else "")
        for turn in played.episode.gold
        for call in turn
    ]


def _lost(found: Lost, episode: Episode) -> dict[str, Any]:
    """What playing on from inside it showed: in words, and which turns (index) to mark."""
    return {
        "words": in_words(found, episode),
        "turn": found.turn,
        "fell": found.deciding(len(episode.steps)),
    }


def _tree(played: Played) -> Any:
    """The tree of the search that judged it, or else of the one for where it was lost."""
    kept = (None if played.scores is None else played.scores.tree, *(it.tree for it in played.lost))
    return next((_fit(tree.to_dict()) for tree in kept if tree is not None), None)


def _fit(value: Any) -> Any:
    """Data with every text in it fit to be seen."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: _fit(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fit(item) for item in value]
    return value
