"""Episodes for people: as text, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

from journeyman.agents.evaluation.lost import chance_in_words, in_words
from journeyman.agents.evaluation.printing import one_line, printable
from journeyman.agents.evaluation.records import Played
from journeyman.agents.evaluation.report import aligned
from journeyman.agents.evaluation.scores import Scores, StepScores
from journeyman.envs import Message, Step, env_class
from journeyman.envs.task import solution
from journeyman.envs.types import Role
from journeyman.tools import CallStatus, ToolResult


def as_text(played: Played, scores: bool = False) -> str:
    """An episode the way `journeyman play` shows one: who said what, statuses, the verdict.

    Args:
        played: The episode.
        scores: What teacher and credit said of each turn too, where that is known.
    """
    lines = [heading(played), *map(said, played.episode.opening)]
    for turn, step in enumerate(played.episode.steps):
        lines += (f"({note})" for note in _chances(played, turn))
        lines.append(said(Message("assistant", step.text)))
        if scores and played.scores is not None:
            lines.append(_scores(played.scores.steps[turn]))
            if turn == played.scores.deciding(played.episode.success):
                lines.append("(this turn decided)")
        lines += map(said, step.reply)
        lines += (f"(status: {note})" for note in _notes(step.results))
        if step.truncated:
            lines.append("(the turn hit its token limit)")
    lines.append(verdict(played))
    lines += (in_words(lost, played.episode) for lost in played.lost)
    if gold := _solution(played):
        lines += ("One way to solve it:", *(f"  {line}" for line in gold))
    return "\n".join(lines)


def heading(played: Played) -> str:
    """Row, task and kind on one line."""
    episode = played.episode
    parts = [played.row if played.step is None else f"{played.row}, step {played.step}"]
    parts.append(f"{episode.env_id} {episode.task_id} ({played.kind})")
    if played.attempt:
        parts.append(f"attempt {played.attempt + 1}")
    return one_line(" | ".join(parts))


def verdict(played: Played) -> str:
    """How an episode ended, on one line."""
    episode = played.episode
    if played.broken:
        return one_line(f"Broken by infrastructure: {episode.error}")
    ending = "solved" if episode.success else f"not solved, {episode.stop.replace('_', ' ')}"
    return f"Reward {episode.reward:g} ({ending}; {sum(episode.mask)} tokens, seed {episode.seed})."


def said(message: Message) -> str:
    """A message with its speaker; further lines are set in, so that none passes for a speaker's."""
    content = printable(message.content).replace("\n", "\n  ")
    return f"[{_speaker(message)}] {content}"


def _speaker(message: Message) -> str:
    return one_line(f"{message.role} {message.name}" if message.name else message.role)


def _scores(step: StepScores) -> str:
    """A turn's credit on one line, and a table of its parts if a teacher was asked."""
    rows = [("part", "log-ratio", "distance", "tokens")]
    for name, score in step.parts.items():
        figures = (f"{score.log_ratio:+.3f}", f"{score.distance:.3f}", str(score.tokens))
        rows.append((name, *figures))
    lines = [f"({_credit(step)})", *(aligned(rows).splitlines() if step.parts else ())]
    return "\n  ".join(lines)


def _credit(step: StepScores) -> str:
    """Weight and advantage of a turn, its grade if a judge was asked, its value if a search was."""
    grade = "" if step.grade is None else f", grade {step.grade:.4g}"
    told = f"weight {step.weight:.4g}, advantage {step.advantage:.4g}{grade}"
    if (it := step.value) is not None:
        told += (
            f"; value {it.before:.2f} before, {it.after:.2f} after it: {it.gain:+.2f} "
            f"± {it.error:.2f}, {it.samples:.3g} samples"
        )
    return told


def _chances(played: Played, turn: int) -> list[str]:
    """What was found of playing on from before a turn."""
    known = ((it.at(turn), it.player) for it in played.lost)
    return [chance_in_words(chance, player) for chance, player in known if chance is not None]


def _notes(results: Sequence[ToolResult]) -> list[str]:
    """Statuses of calls that failed; what is wrong with them the tool has said."""
    return [result.call.status.value for result in results if not result.ok]


def _solution(played: Played) -> list[str]:
    """Gold calls of a task that was not solved; none if its environment is not installed here."""
    if played.episode.success:
        return []
    try:
        task = env_class(played.episode.env_id).load_task(played.episode.task_id)
    except Exception:  # a plugin or a benchmark of another machine: each fails in its own way
        return []
    return solution(task)


_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; color: #222; }
h1 { font-size: 1.2rem; }
details { border: 1px solid #ddd; border-left: 5px solid #bbb; margin: .5rem 0; }
details.solved { border-left-color: #0072b2; }
details.failed { border-left-color: #d55e00; }
summary { padding: .4rem .7rem; cursor: pointer; }
summary span { float: right; color: #666; }
.message { margin: .3rem .7rem; padding: .3rem .6rem; border-radius: 4px; background: #f4f4f4; }
.assistant { background: #e3f0fa; margin-left: 3rem; }
.tool { background: #fff; border: 1px solid #e4e4e4; }
.message b { display: block; font-size: .8rem; color: #666; font-weight: 600; }
.message pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.status { margin: .3rem .7rem; color: #b34700; font-size: .85rem; }
.status.ok { color: #00664b; }
.status.chance { color: #666; }
.credit { margin: .3rem .7rem .3rem 3rem; color: #666; font-size: .85rem; }
.credit table { border-spacing: 0; }
.credit td, .credit th { padding: 0 1rem 0 0; text-align: right; font-weight: normal; }
.credit td:first-child, .credit th:first-child { text-align: left; }
.less1 { background: #fbe3d2; } .more1 { background: #d5e8f5; }
.less2 { background: #f5bd97; } .more2 { background: #9fcbe8; }
.less3 { background: #ea8f52; } .more3 { background: #5fa6d3; }
.less4 { background: #d55e00; color: #fff; } .more4 { background: #0072b2; color: #fff; }
.end { border: 1px solid #aaa; border-radius: 3px; padding: 0 .2rem; font-size: .7rem; }
.verdict { margin: .5rem .7rem; font-weight: 600; }
"""

_POLICY = "; ".join(
    (
        "default-src 'none'",  # no script, no picture, no request: the page is all there is
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""What a browser lets the page do, should a text ever get out of its place."""


def as_html(title: str, shown: Sequence[Played]) -> str:
    """A page with a section an episode, which opens at a click.

    Args:
        title: Of the page.
        shown: The episodes in their order.
    """
    solved = sum(p.episode.success for p in shown)
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{_escaped(title)}</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{_escaped(title)}</h1>",
            f"<p>{len(shown)} episodes, {solved} solved.</p>",
            *([_LEGEND] if any(p.scores and p.scores.log_ratio for p in shown) else []),
            *map(_section, shown),
            "</body></html>\n",
        )
    )


def _section(played: Played) -> str:
    episode = played.episode
    kind = "broken" if played.broken else "solved" if episode.success else "failed"
    parts = [
        f'<details class="{kind}">',
        f"<summary>{_escaped(heading(played))}<span>{kind}</span></summary>",
        *map(_bubble, episode.opening),
    ]
    for turn, step in enumerate(episode.steps):
        parts += (_status(note, "chance") for note in _chances(played, turn))
        if played.scores is None:
            parts.append(_bubble(Message("assistant", step.text)))
        else:
            parts.append(_bubble(Message("assistant", ""), _shaded(step, played.scores)))
            parts.append(_credit_table(played.scores.steps[turn]))
        parts += map(_bubble, step.reply)
        parts += (_status(note) for note in _notes(step.results))
        if step.results and all(result.ok for result in step.results):
            parts.append(_status(CallStatus.OK, "ok"))
        if step.truncated:
            parts.append(_status("the turn hit its token limit"))
    parts.append(f'<p class="verdict">{_escaped(verdict(played))}</p>')
    parts += (_status(in_words(lost, episode), "chance") for lost in played.lost)
    if gold := _solution(played):
        parts.append(_bubble(Message("tool", "\n".join(gold), "one way to solve it")))
    return "\n".join((*parts, "</details>"))


def _bubble(message: Message, content: str | None = None) -> str:
    """A message; `content` is HTML to show in place of its own."""
    role = message.role if message.role in get_args(Role) else "unknown"
    return (
        f'<div class="message {role}"><b>{_escaped(_speaker(message))}</b>'
        f"<pre>{_escaped(message.content) if content is None else content}</pre></div>"
    )


def _shaded(step: Step, scores: Scores) -> str:
    """A turn's text token by token, and its end."""
    start, end = step.span
    pieces, place = [], 0
    for token in range(start, end - 1):
        after = place + scores.widths[token]
        if after > place:
            pieces.append(_token(step.text[place:after], scores, token))
        place = after
    pieces.append(_escaped(step.text[place:]))  # of a last character that is not whole
    return f"{''.join(pieces)} {_token('end', scores, end - 1, 'end')}"


def _token(text: str, scores: Scores, token: int, kind: str = "") -> str:
    ratio = 0.0 if scores.log_ratio is None else scores.log_ratio[token]
    level = sum(abs(ratio) >= least for least in _LEVELS)
    shade = f"{'less' if ratio < 0 else 'more'}{level}" if level else ""
    names = " ".join(filter(None, (kind, shade)))
    told = f"weight {scores.weights[token]:.4g}, advantage {scores.advantages[token]:.4g}"
    if scores.log_ratio is not None:
        told = f"log-ratio {ratio:+.3f}, {told}"
    shown = f' class="{names}"' if names else ""
    return f'<span{shown} title="{told}">{_escaped(text)}</span>'


_LEVELS = (0.1, 0.5, 1.0, 2.0)
"""Least |log-ratio| of each shade, in nats."""


def _legend() -> str:
    """What the shades mean."""
    bounds = [*pairwise(_LEVELS), (_LEVELS[-1], None)]
    ranges = [f"{low:g} to {high:g}" if high else f"{low:g} and more" for low, high in bounds]
    kinds = {"less": "less probable to the teacher", "more": "more probable"}
    shades = "; ".join(
        f"{words}: "
        + " ".join(f'<span class="{name}{i}"> {it} </span>' for i, it in enumerate(ranges, 1))
        for name, words in kinds.items()
    )
    return (
        f'<p class="credit">Shades of tokens that the student chose: log p_teacher - log p_student '
        f"in nats. {shades}. Below each turn: its mean weight and advantage, and means of the "
        f"log-ratio and of its absolute value (distance) by part.</p>"
    )


_LEGEND = _legend()


def _credit_table(step: StepScores) -> str:
    rows = [
        f"<tr><td>{_escaped(name)}</td><td>{score.log_ratio:+.3f}</td>"
        f"<td>{score.distance:.3f}</td><td>{score.tokens}</td></tr>"
        for name, score in step.parts.items()
    ]
    head = "<tr><th>part</th><th>log-ratio</th><th>distance</th><th>tokens</th></tr>"
    table = f"<table>{head}{''.join(rows)}</table>" if rows else ""
    return f'<div class="credit">{_credit(step)}{table}</div>'


def _status(note: str, kind: str = "") -> str:
    return f'<p class="status {kind}">{_escaped(note)}</p>'


def _escaped(text: str) -> str:
    """Any text as text of the page."""
    return html.escape(printable(text))
