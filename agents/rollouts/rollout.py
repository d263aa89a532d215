"""The only loop that plays episodes, from their start or from a branch point inside them.

Tokens go in, tokens come out: an episode is the opening prompt, the student's tokens as it sampled
them, and the environments' answers, in one stream. So many episodes are played side by side as
there are places; once one is over, the next task takes its place, and its environment is made only
then. Tools that wait (a sandbox, a server) run in threads while the other rows go on. An
environment that breaks, wherever it does, costs its own episode only: this is the one boundary
where an exception becomes data. Whatever ends a rollout, an interrupt too, every environment of it
is closed.
"""

from __future__ import annotations

import contextlib
import operator
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, NamedTuple

from journeyman.agents.errors import ContextFullError, NoSnapshotError
from journeyman.agents.rollouts.occupancy import Occupancy
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.underway import Underway, as_step, branch_point
from journeyman.agents.students.player import Conversation, Player, Stream, Turn
from journeyman.envs import (
    AssistantTurn,
    Episode,
    Message,
    StopReason,
    ToolEnv,
    make_for_run,
)
from journeyman.envs.errors import EnvError
from journeyman.tools.limits import shorten
from journeyman.tools.types import ToolResult

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
    occupancy: Occupancy | None = None,
) -> list[Episode]:
    """Play one episode a task.

    Args:
        player: Who plays.
        tasks: What to play; results come in the same order.
        batch_size: Places: conversations side by side, each with an open environment.
        env_kwargs: Passed to every environment's constructor (`sandbox` to those that take it).
        progress: Called with the number of episodes that just ended.
        keep: Keep a branch point before each step, for forks.
        most_turns: That are played here, whatever the environment allows; an episode that comes to
            them without an end has `StopReason.MAX_TURNS`. None sets no limit.
        occupancy: Is told how many places were taken.

    Returns:
        One `Episode` a task; one whose environment broke has `StopReason.INFRA_ERROR`.

    Raises:
        NoSnapshotError: Branch points are to be kept, and an environment has no snapshots.
        ValueError: There are no places.
    """
    ended = played(player, tasks, batch_size, env_kwargs, progress, keep, most_turns, occupancy)
    return [episode for _, episode in sorted(ended, key=operator.itemgetter(0))]


def played(
    player: Player,
    tasks: Sequence[TaskRef | Fork],
    batch_size: int = 64,
    env_kwargs: dict[str, Any] | None = None,
    progress: Callable[[int], object] = lambda done: None,
    keep: bool = False,
    most_turns: int | None = None,
    occupancy: Occupancy | None = None,
    more: Callable[[], Sequence[TaskRef | Fork]] = tuple,
) -> Iterator[tuple[int, Episode]]:
    """The same as `rollout`: the index of a task, and its episode, as they end.

    Close the iterator to end the rollout before its time. Where a place is free and no task is left
    for it, `more` is asked for further ones, whose indices go on from those before.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    kwargs = env_kwargs or {}
    places = _Rollout(player, tasks, batch_size, kwargs, progress, keep, most_turns, more)
    return places.play(occupancy or Occupancy())


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


class _Rollout:
    """Episodes from the reset of the first to the last answer."""

    def __init__(
        self,
        player: Player,
        tasks: Sequence[TaskRef | Fork],
        places: int,
        env_kwargs: dict[str, Any],
        progress: Callable[[int], object],
        keep: bool,
        most_turns: int | None,
        more: Callable[[], Sequence[TaskRef | Fork]],
    ) -> None:
        self._player = player
        self._dialect = player.dialect
        self._places = places
        self._env_kwargs = env_kwargs
        self._progress = progress
        self._keep = keep
        self._most_turns = most_turns
        self._tasks = deque(enumerate(tasks))
        """Those that have not begun."""
        self._more = more
        self._count = len(tasks)
        self._open: dict[int, Underway] = {}
        """Those whose environment is open, by the index of their task."""
        self._rows: dict[int, int] = {}
        """Row of the stream -> index of the task that is played there."""
        self._ended: list[tuple[int, Episode]] = []
        """Those that are over, and not given out yet."""
        self._stream: Stream | None = None
        self._running: dict[Future[_Outcome], tuple[Turn, AssistantTurn]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def play(self, occupancy: Occupancy) -> Iterator[tuple[int, Episode]]:
        """Run to the end; gives each episode, with the index of its task, as it ends."""
        try:
            self._fill()
            yield from self._given_out()
            while self._stream is not None and self._rows:
                occupancy.note(len(self._rows), self._places, bool(self._tasks))
                self._advance(self._stream)
                self._fill()
                yield from self._given_out()
        finally:
            with contextlib.ExitStack() as last:
                for record in self._open.values():
                    last.callback(record.close)
                if self._pool is not None:  # before anything is closed that a tool is at work in
                    last.callback(self._pool.shutdown, cancel_futures=True)

    def _given_out(self) -> Iterator[tuple[int, Episode]]:
        ended, self._ended = self._ended, []
        yield from ended

    def _fill(self) -> None:
        """Begin tasks until each place is taken."""
        begun: list[int] = []
        while len(self._rows) + len(begun) < self._places and self._has_more():
            index, task = self._tasks.popleft()
            if self._begin(index, task):
                begun.append(index)
        if not begun:
            return
        conversations = [
            Conversation(tuple(r.tokens), r.task.seed, r.env, r.messages)
            for r in map(self._open.__getitem__, begun)
        ]
        if self._stream is None:
            self._stream = self._player.open(conversations)
            rows = list(range(len(begun)))
        else:
            rows = [self._stream.add(it) for it in conversations]
        self._rows.update(zip(rows, begun, strict=True))

    def _has_more(self) -> bool:
        """True if a task is left to begin, perhaps one that has just come."""
        if not self._tasks:
            further = self._more()
            self._tasks.extend(enumerate(further, self._count))
            self._count += len(further)
        return bool(self._tasks)

    def _begin(self, index: int, task: TaskRef | Fork) -> bool:
        """Open an environment, and what is said first; False if the episode is over by then."""
        env = make_for_run(task.env_id, self._env_kwargs)
        record = self._open[index] = Underway(task, env)
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
            self._put_away(index)
        return record.episode is None

    def _put_away(self, index: int) -> None:
        """An episode is over: its environment need not be kept."""
        episode = self._open.pop(index).episode
        assert episode is not None
        self._ended.append((index, episode))
        self._progress(1)

    def _begin_task(self, record: Underway, task: TaskRef) -> None:
        messages, _ = record.env.reset(options={"task_id": task.task_id})
        tools = record.env.tools
        record.begin(self._dialect.opening(messages, tools), tuple(messages), tools)
        if self._room(record) <= 1:
            record.end(StopReason.CONTEXT_FULL)

    def _begin_inside(self, record: Underway, fork: Fork) -> None:
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

    def _advance(self, stream: Stream) -> None:
        """Let the player go on, play what it wrote, and take up what tools have finished."""
        for turn in stream.advance():
            record = self._of(turn)
            if turn.failure is None:
                self._submit(stream, record, turn)
            elif isinstance(turn.failure, ContextFullError):
                record.end(StopReason.CONTEXT_FULL, error=str(turn.failure))
                self._leave(stream, turn)
            else:
                record.fail(turn.failure)
                self._leave(stream, turn)
        room = bool(self._tasks) and len(self._rows) < self._places
        self._collect(stream, block=stream.idle and not room)

    def _of(self, turn: Turn) -> Underway:
        return self._open[self._rows[turn.row]]

    def _leave(self, stream: Stream, turn: Turn) -> None:
        """The episode of a turn is over: its place is free."""
        self._put_away(self._rows.pop(turn.row))
        stream.finish(turn.row)

    def _submit(self, stream: Stream, record: Underway, turn: Turn) -> None:
        env = record.env
        try:
            read = self._read(record, turn)
            if self._keep:
                record.branch_points.append(branch_point(env))
            if env.waits:
                self._pool = self._pool or ThreadPoolExecutor(MAX_WORKERS)
                self._running[self._pool.submit(_step, env, read)] = (turn, read)
                return
            outcome = _step(env, read)
        except NoSnapshotError:
            raise
        except Exception as error:
            record.fail(error)
            self._leave(stream, turn)
        else:
            self._settle(stream, turn, read, outcome)

    def _collect(self, stream: Stream, block: bool) -> None:
        """Take up the steps that tools have finished; wait for one if nothing else is to do."""
        if not self._running:
            return
        done, _ = wait(self._running, timeout=None if block else 0, return_when=FIRST_COMPLETED)
        # In the order in which they were asked for: `done` is a set.
        for future in [it for it in self._running if it in done]:
            turn, read = self._running.pop(future)
            error = future.exception()
            if error is None:
                self._settle(stream, turn, read, future.result())
            elif isinstance(error, Exception):
                self._of(turn).fail(error)
                self._leave(stream, turn)
            else:
                raise error

    def _settle(self, stream: Stream, turn: Turn, read: AssistantTurn, outcome: _Outcome) -> None:
        """Write a played turn down; feed the answer back or close the episode."""
        record = self._of(turn)
        outcome = self._shown(record, turn, outcome)
        reply = self._play_turn(record, turn, read, outcome)
        if record.episode is None:
            record.add_reply(reply)
            stream.extend(turn.row, reply, outcome.messages)
        else:
            self._leave(stream, turn)

    def _play_turn(
        self,
        record: Underway,
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

    def _shown(self, record: Underway, turn: Turn, outcome: _Outcome) -> _Outcome:
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

    def _room(self, record: Underway) -> int:
        return self._player.max_context - len(record.tokens)

    def _read(self, record: Underway, turn: Turn) -> AssistantTurn:
        text = self._dialect.decode(turn.tokens[:-1])
        return self._dialect.read(text, record.env.tools, record.tokens)


def _step(env: ToolEnv, turn: AssistantTurn) -> _Outcome:
    messages, reward, terminated, truncated, info = env.step(turn)
    return _Outcome(messages, reward, terminated, truncated, info["calls"], info["success"])
