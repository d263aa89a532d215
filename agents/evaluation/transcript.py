"""Episodes for people: as text, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from typing import get_args

from journeyman.agents.evaluation.printing import one_line, printable
from journeyman.agents.evaluation.records import Played
from journeyman.envs import Message, env_class
from journeyman.envs.task import solution
from journeyman.envs.types import Role
from journeyman.tools import CallStatus, ToolResult


def as_text(played: Played) -> str:
    """An episode the way `journeyman play` shows one: who said what, statuses, the verdict."""
    lines = [heading(played), *map(said, played.episode.opening)]
    for step in played.episode.steps:
        lines.append(said(Message("assistant", step.text)))
        lines += map(said, step.reply)
        lines += (f"(status: {note})" for note in _notes(step.results))
        if step.truncated:
            lines.append("(the turn hit its token limit)")
    lines.append(verdict(played))
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
    for step in episode.steps:
        parts.append(_bubble(Message("assistant", step.text)))
        parts += map(_bubble, step.reply)
        parts += (_status(note) for note in _notes(step.results))
        if step.results and all(result.ok for result in step.results):
            parts.append(_status(CallStatus.OK, "ok"))
        if step.truncated:
            parts.append(_status("the turn hit its token limit"))
    parts.append(f'<p class="verdict">{_escaped(verdict(played))}</p>')
    if gold := _solution(played):
        parts.append(_bubble(Message("tool", "\n".join(gold), "one way to solve it")))
    return "\n".join((*parts, "</details>"))


def _bubble(message: Message) -> str:
    role = message.role if message.role in get_args(Role) else "unknown"
    return (
        f'<div class="message {role}"><b>{_escaped(_speaker(message))}</b>'
        f"<pre>{_escaped(message.content)}</pre></div>"
    )


def _status(note: str, kind: str = "") -> str:
    return f'<p class="status {kind}">{_escaped(note)}</p>'


def _escaped(text: str) -> str:
    """Any text as text of the page."""
    return html.escape(printable(text))
