"""An episode while it is played: what was said so far, and its environment.

`journeyman.agents.rollouts.rollout` begins one a task and drops it once there is an `Episode`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from journeyman.agents.errors import NoSnapshotError
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import Turn
from journeyman.envs import (
    AssistantTurn,
    BranchPoint,
    Episode,
    Message,
    Step,
    StopReason,
    ToolEnv,
)
from journeyman.envs.shortfall import Shortfall
from journeyman.envs.types import said
from journeyman.tools.parsing import locate, token_ends
from journeyman.tools.types import ToolResult, ToolSpec

logger = logging.getLogger(__name__)


class Underway:
    """An episode under construction."""

    def __init__(self, task: TaskRef | Fork, env: ToolEnv) -> None:
        """Nothing was said yet.

        Args:
            task: What is played.
            env: Its environment, which is closed with the episode's end.
        """
        self.task = task
        self.env = env
        self.opening: tuple[Message, ...] = ()
        self.tools: tuple[ToolSpec, ...] = ()
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.mask: list[bool] = []
        self.steps: list[Step] = []
        self.first_step = 0
        self.branch_points: list[BranchPoint] = []
        self.episode: Episode | None = None
        self._open = True

    def begin(
        self,
        prompt: Sequence[int],
        opening: tuple[Message, ...],
        tools: Sequence[ToolSpec],
        steps: Sequence[Step] = (),
    ) -> None:
        """Take in what was said before the first turn that is played here."""
        self.add_reply(prompt)
        self.opening = opening
        self.tools = tuple(tools)
        self.steps = list(steps)
        self.first_step = len(steps)

    def add_turn(self, turn: Turn, step: Step, chosen_by_student: bool = True) -> None:
        """Write a turn down, and what came of it."""
        self.tokens.extend(turn.tokens)
        self.logprobs.extend(turn.logprobs)
        chosen = len(turn.tokens) - int(turn.truncated)  # a forced end token was not chosen
        chosen *= chosen_by_student and turn.own
        self.mask.extend([True] * chosen + [False] * (len(turn.tokens) - chosen))
        self.steps.append(step)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said so far."""
        return said(self.opening, self.steps)

    def add_reply(self, tokens: Sequence[int]) -> None:
        """Write down what the environment said."""
        self.tokens.extend(tokens)
        self.logprobs.extend([0.0] * len(tokens))
        self.mask.extend([False] * len(tokens))

    def end(
        self,
        stop: StopReason,
        reward: float = 0.0,
        success: bool = False,
        error: str | None = None,
    ) -> None:
        """Make the episode of what was played, and close the environment."""
        try:
            score, state = self.env.scored(), self.env.state_hash()
        except Exception as broken:
            self.fail(broken)
            return
        self._make_episode(stop, state, reward, success, error, score)
        self.close()

    def fail(self, error: Exception) -> None:
        """Make a broken episode of what was played until something broke, and close."""
        self._warn(repr(error))
        text = f"{type(error).__name__}: {error}"
        self._make_episode(StopReason.INFRA_ERROR, "", 0.0, False, text)
        self.close()

    def close(self) -> None:
        """Close the environment, once; whatever that raises, there is no more to play in it."""
        if self._open:
            self._open = False
            close_env(self.env, self.task)

    def _shortfall(self) -> Shortfall | None:
        """What the episode lacks; forks, of which a search plays thousands, are not asked."""
        if isinstance(self.task, Fork):
            return None
        try:
            return self.env.shortfall()
        except Exception as error:  # the verdict stands, whatever can be said of it
            self._warn(f"shortfall(): {error!r}")
            return None

    def _warn(self, what: str) -> None:
        logger.warning("%s %s: %s", self.task.env_id, self.task.task_id, what)

    def _make_episode(
        self,
        stop: StopReason,
        state_hash: str,
        reward: float,
        success: bool,
        error: str | None = None,
        score: float | None = None,
    ) -> None:
        sound = score is not None
        self.episode = Episode(
            env_id=self.task.env_id,
            task_id=self.task.task_id,
            tokens=tuple(self.tokens),
            logprobs=tuple(self.logprobs),
            mask=tuple(self.mask),
            steps=tuple(self.steps),
            stop=stop,
            reward=reward,
            success=success,
            state_hash=state_hash,
            error=error,
            first_step=self.first_step,
            branch_points=tuple(self.branch_points),
            opening=self.opening,
            tools=self.tools,
            seed=self.task.seed,
            score=score,
            gold=tuple(turn.gold for turn in self.env.task.turns) if sound else None,
            shortfall=self._shortfall() if sound and not success else None,
        )


def close_env(env: ToolEnv, task: TaskRef | Fork) -> None:
    """Close an environment; what that raises is told to the log, since the episode is played."""
    try:
        env.close()
    except Exception as error:
        logger.warning("%s %s: close(): %r", task.env_id, task.task_id, error)


def as_step(
    dialect: Dialect,
    start: int,
    turn: Turn,
    read: AssistantTurn,
    results: tuple[ToolResult, ...],
    reply: tuple[Message, ...] = (),
) -> Step:
    """A turn as an episode has it.

    Args:
        dialect: Of whoever wrote it.
        start: Tokens before it.
        turn: Its tokens.
        read: The same as it was understood.
        results: What came of its calls.
        reply: What was said to it.
    """
    calls = locate([r.call for r in results], token_ends(turn.tokens[:-1], dialect.decode))
    spans = tuple((start + c.token_span[0], start + c.token_span[1]) for c in calls if c.token_span)
    end = start + len(turn.tokens)
    parts = {"call": spans, "stop": ((end - 1, end),)}
    if not spans:
        parts["answer"] = ((start, end - 1),)
    return Step(
        (start, end),
        read.text,
        results,
        parts,
        turn.truncated,
        reply,
        None if read.calls or read.answer == read.text else read.answer.strip(),
        turn.usage,
    )


def branch_point(env: ToolEnv) -> BranchPoint:
    """Where an environment is now, for forks.

    Raises:
        NoSnapshotError: It has no snapshots.
        NoBranchError: A tool of it lives in a server that cannot be brought there again.
    """
    try:
        return BranchPoint(env.snapshot(), env.state_hash())
    except NotImplementedError as error:
        why = str(error) or "implement snapshot() and restore(), or train without search=credit"
        raise NoSnapshotError(
            f"{type(env).__name__} takes no snapshots, and a search goes back to them: {why}"
        ) from error
