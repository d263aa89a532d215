"""The only loop that plays episodes, from their start or from a branch point inside them.

Tokens go in, tokens come out: an episode is the opening prompt, the student's tokens as it sampled
them, and the environments' answers, in one stream. Tools that wait (a sandbox, a server) run in
threads while the other rows go on. An environment that breaks, wherever it does, costs its own
episode only: this is the one boundary where an exception becomes data. Whatever ends a batch, an
interrupt too, every environment of it is closed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, NamedTuple

from journeyman.agents.errors import ContextFullError, NoSnapshotError
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.students.dialect import Dialect
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
from journeyman.envs.errors import EnvError
from journeyman.envs.shortfall import Shortfall
from journeyman.envs.types import said
from journeyman.tools.limits import shorten
from journeyman.tools.parsing import locate, token_ends
from journeyman.tools.types import ToolResult, ToolSpec

logger = logging.getLogger(__name__)

MAX_WORKERS = 32
"""Threads for environments whose tools wait."""

_LEAST_SHOWN = 64
"""Tokens, and characters, below which a part of a result is of no use."""


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
    most_turns: int | None = None,
) -> list[Episode]:
    """Play one episode a task.

    Args:
        player: Who plays.
        tasks: What to play; results come in the same order.
        batch_size: Conversations side by side.
        env_kwargs: Passed to every environment's constructor (`sandbox` to those that take it).
        progress: Called with the number of episodes that just ended.
        keep: Keep a branch point before each step, for forks.
        most_turns: That are played here, whatever the environment allows; an episode that comes to
            them without an end has `StopReason.MAX_TURNS`. None sets no limit.

    Returns:
        One `Episode` a task; one whose environment broke has `StopReason.INFRA_ERROR`.

    Raises:
        NoSnapshotError: Branch points are to be kept, and an environment has no snapshots.
    """
    episodes: list[Episode] = []
    for start in range(0, len(tasks), batch_size):
        batch = tasks[start : start + batch_size]
        with contextlib.ExitStack() as opened:
            rows = _Batch(player, batch, env_kwargs or {}, progress, keep, opened, most_turns)
            episodes.extend(rows.play())
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

    def __init__(self, task: TaskRef | Fork, env: ToolEnv) -> None:
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


class _Batch:
    """One batch of episodes, from reset to the last answer."""

    def __init__(
        self,
        player: Player,
        tasks: Sequence[TaskRef | Fork],
        env_kwargs: dict[str, Any],
        progress: Callable[[int], object],
        keep: bool,
        opened: contextlib.ExitStack,
        most_turns: int | None,
    ) -> None:
        self._player = player
        self._dialect = player.dialect
        self._progress = progress
        self._keep = keep
        self._most_turns = most_turns
        self._running: dict[Future[_Outcome], tuple[int, Turn, AssistantTurn]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._opened = opened
        self._records = [self._begin(task, env_kwargs) for task in tasks]

    def _begin(self, task: TaskRef | Fork, env_kwargs: dict[str, Any]) -> _Record:
        env = make_for_run(task.env_id, env_kwargs)
        record = _Record(task, env)
        self._opened.callback(record.close)
        try:
            if isinstance(task, Fork):
                self._begin_inside(record, task)
            else:
                self._begin_task(record, task)
        except Exception as error:
            if isinstance(task, TaskRef) and isinstance(error, KeyError | TypeError | EnvError):
                env.load_task(task.task_id)  # an id or a generator that is wrong fails here again
            record.fail(error)
        if record.episode is not None:
            self._progress(1)
        return record

    def _begin_task(self, record: _Record, task: TaskRef) -> None:
        messages, _ = record.env.reset(options={"task_id": task.task_id})
        tools = record.env.tools
        record.begin(self._dialect.opening(messages, tools), tuple(messages), tools)
        if self._room(record) <= 1:
            record.end(StopReason.CONTEXT_FULL)

    def _begin_inside(self, record: _Record, fork: Fork) -> None:
        """Goes to before a step of the fork's parent, or after the turn given instead."""
        parent, env = fork.parent, record.env
        record.begin(fork.prefix, parent.opening, parent.tools, parent.steps[: fork.step])
        env.restore(fork.parent.branch_points[fork.step].snapshot)
        env.reroll(fork.seed)
        record.branch_points += fork.parent.branch_points[: fork.step]
        if fork.turn is not None:
            record.branch_points.append(fork.parent.branch_points[fork.step])
            turn = Turn(-1, fork.turn, (0.0,) * len(fork.turn))
            read = self._read(record, turn)
            outcome = self._shown(record, turn, _step(env, read))
            record.add_reply(self._play_turn(record, turn, read, outcome, chosen=False))

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
                    if turn.failure is None:
                        self._submit(stream, turn.row, open_rows[turn.row], turn)
                    else:
                        self._end_unheard(open_rows[turn.row], turn.failure)
                        stream.finish(turn.row)
                self._collect(stream, open_rows, block=stream.idle)
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
        return [r.episode for r in self._records if r.episode is not None]

    def _submit(self, stream: Stream, row: int, index: int, turn: Turn) -> None:
        record = self._records[index]
        env = record.env
        try:
            read = self._read(record, turn)
            if self._keep:
                record.branch_points.append(branch_point(env))
            if env.waits:
                self._pool = self._pool or ThreadPoolExecutor(MAX_WORKERS)
                self._running[self._pool.submit(_step, env, read)] = (index, turn, read)
                return
            outcome = _step(env, read)
        except NoSnapshotError:
            raise
        except Exception as error:
            self._fail(record, error)
            stream.finish(row)
        else:
            self._settle(stream, index, turn, read, outcome)

    def _collect(self, stream: Stream, open_rows: list[int], block: bool) -> None:
        """Take up the steps that tools have finished; wait for one if nothing else is to do."""
        if not self._running:
            return
        done, _ = wait(self._running, timeout=None if block else 0, return_when=FIRST_COMPLETED)
        for future in done:
            index, turn, read = self._running.pop(future)
            error = future.exception()
            if error is None:
                self._settle(stream, index, turn, read, future.result())
            elif isinstance(error, Exception):
                self._fail(self._records[index], error)
                stream.finish(turn.row)
            else:
                raise error

    def _settle(
        self, stream: Stream, index: int, turn: Turn, read: AssistantTurn, outcome: _Outcome
    ) -> None:
        """Write a played turn down; feed the answer back or close the episode."""
        record = self._records[index]
        outcome = self._shown(record, turn, outcome)
        reply = self._play_turn(record, turn, read, outcome)
        if record.episode is None:
            record.add_reply(reply)
            stream.extend(turn.row, reply, outcome.messages)
        else:
            self._progress(1)
            stream.finish(turn.row)

    def _play_turn(
        self,
        record: _Record,
        turn: Turn,
        read: AssistantTurn,
        outcome: _Outcome,
        chosen: bool = True,
    ) -> Sequence[int]:
        """Write a played turn down; returns the reply's tokens, none if the episode is over."""
        start, told = len(record.tokens), tuple(outcome.messages)
        step = as_step(self._dialect, start, turn, read, outcome.results, told)
        record.add_turn(turn, step, chosen)
        spent = len(record.steps) - record.first_step == self._most_turns
        if outcome.terminated or outcome.truncated or spent:
            stop = StopReason.ANSWERED if outcome.terminated else StopReason.MAX_TURNS
            record.end(stop, outcome.reward, outcome.success)
            return ()
        reply = self._dialect.reply(outcome.messages)
        if self._room(record) - len(reply) <= 1:
            record.end(StopReason.CONTEXT_FULL, outcome.reward, outcome.success)
            return ()
        return reply

    def _shown(self, record: _Record, turn: Turn, outcome: _Outcome) -> _Outcome:
        """The outcome with results that would fill the context cut to half of what is left of it.

        The student can go on then. Where little is left, or no result is to blame, all stays.
        """
        room = self._room(record) - len(turn.tokens)
        aim, messages = room // 2, outcome.messages
        longest = max((len(m.content) for m in messages if m.role == "tool"), default=0)
        if outcome.terminated or outcome.truncated or min(aim, longest) < _LEAST_SHOWN:
            return outcome
        needed = len(self._dialect.reply(messages))
        if room - needed > 1:
            return outcome
        while needed > aim and longest > _LEAST_SHOWN:
            longest = min(longest - 1, longest * aim // needed)
            messages = tuple(
                replace(m, content=shorten(m.content, longest)) if m.role == "tool" else m
                for m in outcome.messages
            )
            needed = len(self._dialect.reply(messages))
        return outcome._replace(messages=messages) if needed <= aim else outcome

    def _room(self, record: _Record) -> int:
        return self._player.max_context - len(record.tokens)

    def _end_unheard(self, index: int, error: Exception) -> None:
        """Close the episode of a player that gave no turn."""
        if isinstance(error, ContextFullError):
            self._records[index].end(StopReason.CONTEXT_FULL, error=str(error))
            self._progress(1)
        else:
            self._fail(self._records[index], error)

    def _fail(self, record: _Record, error: Exception) -> None:
        record.fail(error)
        self._progress(1)

    def _read(self, record: _Record, turn: Turn) -> AssistantTurn:
        text = self._dialect.decode(turn.tokens[:-1])
        return self._dialect.read(text, record.env.tools, record.tokens)


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


def _step(env: ToolEnv, turn: AssistantTurn) -> _Outcome:
    messages, reward, terminated, truncated, info = env.step(turn)
    return _Outcome(messages, reward, terminated, truncated, info["calls"], info["success"])
