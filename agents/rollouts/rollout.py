"""The only loop that plays episodes, from their start or from a branch point inside them.

Tokens go in, tokens come out: an episode is the opening prompt, the student's tokens as it sampled
them, and the environments' answers, in one stream. Tools that wait (a sandbox, a server) run in
threads while the other rows go on. An environment that breaks costs its own episode only: this is
the one boundary where an exception becomes data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from journeyman.agents.errors import NoSnapshotError
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.students.player import Conversation, Player, Stream, Turn
from journeyman.envs import (
    AssistantTurn,
    BranchPoint,
    Episode,
    Message,
    Step,
    StopReason,
    ToolEnv,
    make_for_run,
)
from journeyman.envs.types import said
from journeyman.tools.parsing import locate, token_ends
from journeyman.tools.types import ToolResult

logger = logging.getLogger(__name__)

MAX_WORKERS = 32
"""Threads for environments whose tools wait."""


class _Outcome(NamedTuple):
    """What `env.step` said."""

    messages: tuple[Message, ...]
    reward: float
    terminated: bool
    truncated: bool
    results: tuple[ToolResult, ...]
    success: bool


def rollout(
    player: Player,
    tasks: Sequence[TaskRef | Fork],
    batch_size: int = 64,
    env_kwargs: dict[str, Any] | None = None,
    progress: Callable[[int], object] = lambda done: None,
    keep: bool = False,
) -> list[Episode]:
    """Play one episode a task.

    Args:
        player: Who plays.
        tasks: What to play; results come in the same order.
        batch_size: Conversations side by side.
        env_kwargs: Passed to every environment's constructor (`sandbox` to those that take it).
        progress: Called with the number of episodes that just ended.
        keep: Keep a branch point before each step, for forks.

    Returns:
        One `Episode` a task; one whose environment broke has `StopReason.INFRA_ERROR`.

    Raises:
        NoSnapshotError: Branch points are to be kept, and an environment has no snapshots.
    """
    episodes: list[Episode] = []
    for start in range(0, len(tasks), batch_size):
        batch = tasks[start : start + batch_size]
        episodes.extend(_Batch(player, batch, env_kwargs or {}, progress, keep).play())
    return episodes


def no_room(who: str, count: int, shortest: int, max_context: int) -> str:
    """What to say where no prompt of a batch left room for a turn.

    Args:
        who: Was to play.
        count: Prompts.
        shortest: Tokens of the shortest.
        max_context: Tokens that there is room for.
    """
    return (
        f"{who}: none of {count} prompts leaves room for a turn: the shortest has {shortest} "
        f"tokens, and student.max_context is {max_context}: raise it, or show less in the prompt "
        f"(student.render=signature or names)"
    )


class _Record:
    """An episode under construction."""

    def __init__(
        self,
        task: TaskRef | Fork,
        env: ToolEnv,
        prompt: Sequence[int] = (),
        opening: tuple[Message, ...] = (),
        steps: Sequence[Step] = (),
    ) -> None:
        self.task = task
        self.env = env
        self.opening = opening
        self.tokens = list(prompt)
        self.logprobs = [0.0] * len(prompt)
        self.mask = [False] * len(prompt)
        self.steps = list(steps)
        self.first_step = len(self.steps)
        self.branch_points: list[BranchPoint] = []
        self.episode: Episode | None = None

    def add_turn(self, turn: Turn, step: Step, chosen_by_student: bool = True) -> None:
        self.tokens.extend(turn.tokens)
        self.logprobs.extend(turn.logprobs)
        chosen = len(turn.tokens) - int(turn.truncated)  # a forced end token was not chosen
        chosen *= chosen_by_student
        self.mask.extend([True] * chosen + [False] * (len(turn.tokens) - chosen))
        self.steps.append(step)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said so far."""
        return said(self.opening, self.steps)

    def add_reply(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)
        self.logprobs.extend([0.0] * len(tokens))
        self.mask.extend([False] * len(tokens))

    def close(
        self, stop: StopReason, reward: float = 0.0, success: bool = False, error: str | None = None
    ) -> None:
        state_hash = "" if stop is StopReason.INFRA_ERROR else self.env.state_hash()
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
            seed=self.task.seed,
        )
        try:
            self.env.close()
        except Exception as error:  # the episode is played; what is left open is the env's own
            logger.warning("%s %s: close(): %r", self.task.env_id, self.task.task_id, error)


class _Batch:
    """One batch of episodes, from reset to the last answer."""

    def __init__(
        self,
        player: Player,
        tasks: Sequence[TaskRef | Fork],
        env_kwargs: dict[str, Any],
        progress: Callable[[int], object],
        keep: bool,
    ) -> None:
        self._player = player
        self._dialect = player.dialect
        self._progress = progress
        self._keep = keep
        self._running: dict[Future[_Outcome], tuple[int, Turn]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._records = [self._begin(task, env_kwargs) for task in tasks]

    def _begin(self, task: TaskRef | Fork, env_kwargs: dict[str, Any]) -> _Record:
        env = make_for_run(task.env_id, env_kwargs)
        try:
            if isinstance(task, Fork):
                return self._begin_inside(task, env)
            messages, _ = env.reset(options={"task_id": task.task_id})
        except Exception as error:
            if isinstance(task, TaskRef) and isinstance(error, (KeyError, TypeError)):
                raise  # a wrong id or a broken generator is the programmer's error
            record = _Record(task, env)
            self._fail(record, error)
            return record
        record = _Record(task, env, self._dialect.opening(messages, env.tools), tuple(messages))
        if self._room(record) <= 1:
            record.close(StopReason.CONTEXT_FULL)
            self._progress(1)
        return record

    def _begin_inside(self, fork: Fork, env: ToolEnv) -> _Record:
        """A record that stands before a step of its parent, or after the turn given instead."""
        parent = fork.parent
        record = _Record(fork, env, fork.prefix, parent.opening, parent.steps[: fork.step])
        env.restore(fork.parent.branch_points[fork.step].snapshot)
        env.reroll(fork.seed)
        record.branch_points += fork.parent.branch_points[: fork.step]
        if fork.turn is not None:
            record.branch_points.append(fork.parent.branch_points[fork.step])
            turn = Turn(-1, fork.turn, (0.0,) * len(fork.turn))
            reply = self._play_turn(record, turn, _step(env, self._read(turn, env)), chosen=False)
            record.add_reply(reply)
        return record

    def play(self) -> list[Episode]:
        """Run to the end; returns the episodes in order."""
        open_rows = [i for i, r in enumerate(self._records) if r.episode is None]
        stream = self._player.open(
            [
                Conversation(tuple(r.tokens), r.task.seed, r.env, r.messages)
                for r in (self._records[i] for i in open_rows)
            ]
        )
        try:
            while any(self._records[i].episode is None for i in open_rows):
                for turn in stream.advance():
                    self._submit(stream, turn.row, open_rows[turn.row], turn)
                self._collect(stream, open_rows, block=stream.idle)
        finally:
            if self._pool is not None:
                self._pool.shutdown()
        return [r.episode for r in self._records if r.episode is not None]

    def _submit(self, stream: Stream, row: int, index: int, turn: Turn) -> None:
        env = self._records[index].env
        read = self._read(turn, env)
        try:
            if self._keep:
                self._records[index].branch_points.append(_branch_point(env))
            if env.waits:
                self._pool = self._pool or ThreadPoolExecutor(MAX_WORKERS)
                self._running[self._pool.submit(_step, env, read)] = (index, turn)
                return
            outcome = _step(env, read)
        except NoSnapshotError:
            raise
        except Exception as error:
            self._fail(self._records[index], error)
            stream.finish(row)
        else:
            self._settle(stream, index, turn, outcome)

    def _collect(self, stream: Stream, open_rows: list[int], block: bool) -> None:
        """Take up the steps that tools have finished; wait for one if nothing else is to do."""
        if not self._running:
            return
        done, _ = wait(self._running, timeout=None if block else 0, return_when=FIRST_COMPLETED)
        for future in done:
            index, turn = self._running.pop(future)
            error = future.exception()
            if error is None:
                self._settle(stream, index, turn, future.result())
            elif isinstance(error, Exception):
                self._fail(self._records[index], error)
                stream.finish(turn.row)
            else:
                raise error

    def _settle(self, stream: Stream, index: int, turn: Turn, outcome: _Outcome) -> None:
        """Write a played turn down; feed the answer back or close the episode."""
        record = self._records[index]
        reply = self._play_turn(record, turn, outcome)
        record.add_reply(reply)
        if record.episode is None:
            stream.extend(turn.row, reply, outcome.messages)
        else:
            stream.finish(turn.row)

    def _play_turn(
        self, record: _Record, turn: Turn, outcome: _Outcome, chosen: bool = True
    ) -> Sequence[int]:
        """Write a played turn down; returns the reply's tokens, none if the episode is over."""
        record.add_turn(turn, self._make_step(record, turn, outcome), chosen)
        if outcome.terminated or outcome.truncated:
            stop = StopReason.ANSWERED if outcome.terminated else StopReason.MAX_TURNS
            self._close(record, stop, outcome)
            return ()
        reply = self._dialect.reply(outcome.messages)
        if self._room(record) - len(reply) <= 1:
            self._close(record, StopReason.CONTEXT_FULL, outcome)
            return ()
        return reply

    def _room(self, record: _Record) -> int:
        return self._player.max_context - len(record.tokens)

    def _make_step(self, record: _Record, turn: Turn, outcome: _Outcome) -> Step:
        start = len(record.tokens)
        body = turn.tokens[: len(turn.tokens) - 1]
        calls = locate([r.call for r in outcome.results], token_ends(body, self._dialect.decode))
        spans = tuple(
            (start + c.token_span[0], start + c.token_span[1]) for c in calls if c.token_span
        )
        end = start + len(turn.tokens)
        parts = {"call": spans, "stop": ((end - 1, end),)}
        if not spans:
            parts["answer"] = ((start, end - 1),)
        text = self._text(turn)
        return Step(
            (start, end), text, outcome.results, parts, turn.truncated, tuple(outcome.messages)
        )

    def _close(self, record: _Record, stop: StopReason, outcome: _Outcome) -> None:
        record.close(stop, outcome.reward, outcome.success)
        self._progress(1)

    def _fail(self, record: _Record, error: Exception) -> None:
        logger.warning("%s %s: %r", record.task.env_id, record.task.task_id, error)
        record.close(StopReason.INFRA_ERROR, error=f"{type(error).__name__}: {error}")
        self._progress(1)

    def _text(self, turn: Turn) -> str:
        return self._dialect.decode(turn.tokens[:-1])

    def _read(self, turn: Turn, env: ToolEnv) -> AssistantTurn:
        return self._dialect.read(self._text(turn), env.tools)


def _branch_point(env: ToolEnv) -> BranchPoint:
    try:
        return BranchPoint(env.snapshot(), env.state_hash())
    except NotImplementedError as error:
        raise NoSnapshotError(
            f"{type(env).__name__} takes no snapshots, and a search goes back to them: implement "
            f"snapshot() and restore(), or train without search=credit"
        ) from error


def _step(env: ToolEnv, turn: AssistantTurn) -> _Outcome:
    messages, reward, terminated, truncated, info = env.step(turn)
    return _Outcome(messages, reward, terminated, truncated, info["calls"], info["success"])
