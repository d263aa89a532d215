"""Episodes for people, as text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from journeyman.agents.evaluation.failures import INFRASTRUCTURE, failure
from journeyman.agents.evaluation.lost import chance_in_words, in_words
from journeyman.agents.evaluation.printing import one_line, printable
from journeyman.agents.evaluation.records import Played
from journeyman.agents.evaluation.scores import StepScores
from journeyman.agents.evaluation.tables import aligned
from journeyman.envs import Episode, Message, env_class
from journeyman.envs.shortfall import Shortfall
from journeyman.envs.task import solution
from journeyman.tools import ToolResult


def as_text(played: Played, scores: bool = False) -> str:
    """An episode the way `journeyman play` shows one: who said what, statuses, the verdict.

    Args:
        played: The episode.
        scores: What teacher and credit said of each turn too, where that is known.
    """
    lines = [heading(played), *map(said, played.episode.opening)]
    for turn, step in enumerate(played.episode.steps):
        lines += (f"({note})" for note in chances(played, turn))
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
    lines += why(played.episode)
    lines += (in_words(lost, played.episode) for lost in played.lost)
    if gold := known_solution(played):
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


def why(episode: Episode) -> list[str]:
    """Why an episode failed, a line each: its failure, the state, answers; none if it succeeded."""
    name = failure(episode)
    if name is None or name == INFRASTRUCTURE:  # which the verdict has said
        return []
    lines, lacks = [f"Failed by: {name}."], episode.shortfall or Shortfall()
    for it in lacks.state:
        if it.reached is None and it.wanted is None:
            lines.append(f"  state: {it.path}")
        else:
            reached, wanted = it.reached or "absent", it.wanted or "absent"
            lines.append(f"  state: {it.path} is {reached}, wanted {wanted}")
    for turn, check in enumerate(lacks.answers, 1):
        if not check.right:
            where = f"answer {turn}" if len(lacks.answers) > 1 else "answer"
            given = "none" if check.given is None else repr(check.given)
            wanted = "any" if check.wanted is None else repr(check.wanted)
            lines.append(f"  {where}: {given}, wanted {wanted}")
    return [one_line(line) for line in lines]


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


def chances(played: Played, turn: int) -> list[str]:
    """What was found of playing on from before a turn (index), a note for each search."""
    known = ((it.at(turn), it.player) for it in played.lost)
    return [chance_in_words(chance, player) for chance, player in known if chance is not None]


def _notes(results: Sequence[ToolResult]) -> list[str]:
    """Statuses of calls that failed; what is wrong with them the tool has said."""
    return [result.call.status.value for result in results if not result.ok]


def known_solution(played: Played) -> Sequence[str]:
    """Gold calls of a task that was not solved; none if its environment is not installed here."""
    if played.episode.success:
        return ()
    return _solution(played.episode.env_id, played.episode.task_id)


@lru_cache(maxsize=10_000)  # rows play the same tasks, and some are slow to make
def _solution(env_id: str, task_id: str) -> tuple[str, ...]:
    try:
        task = env_class(env_id).load_task(task_id)
    except Exception:  # a plugin or a benchmark of another machine: each fails in its own way
        return ()
    return tuple(solution(task))
