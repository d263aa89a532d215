"""`ToolEnv`: a Gymnasium environment whose actions are assistant turns.

A subclass names its tools and generates tasks; nothing else is needed (see `envs/tasks/bank.py`).
Its state is a value: tools return a new state, so a snapshot is a reference and a branch is free.
An environment whose state lives elsewhere keeps a value that says how to get there, and overrides
`open_state`, `_execute` and `close` (see `envs/tasks/python.py`; `envs/bfcl/` for objects that
change in place).
"""

from __future__ import annotations

import functools
import itertools
import numbers
import random
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import gymnasium

from journeyman.envs.definition import require
from journeyman.envs.errors import (
    BadActionError,
    EnvBusyError,
    EpisodeOverError,
    InvalidEnvError,
    StateChangedError,
    UnknownTaskError,
)
from journeyman.envs.hashing import digest, seal
from journeyman.envs.shortfall import AnswerCheck, Difference, Shortfall, differences
from journeyman.envs.spaces import ActionSpace, MessagesSpace
from journeyman.envs.task import ANSWER, Task, UserTurn, extract_answer, matches
from journeyman.envs.types import LEVELS, SPLITS, AssistantTurn, Level, Message, Split
from journeyman.tools import (
    CallLimits,
    Tool,
    ToolCall,
    ToolResult,
    ToolSpec,
    execute,
    parse_hermes,
    render_hermes,
)
from journeyman.tools.live import LiveTools, PlayedCall
from journeyman.tools.parsing import read_turn

Action = str | AssistantTurn | Sequence[ToolCall]
Observation = tuple[Message, ...]

SYSTEM = f"Use the tools. End with one line: {ANSWER} value"

ENDLESS = 2**31
"""How many tasks `reset` draws from where they have no end."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A branch point: opaque, immutable, reusable any number of times."""

    task: Task
    state: Any
    turns: int
    answers: tuple[str, ...]
    over: bool
    transcript: tuple[Message, ...]
    env: type[ToolEnv]
    """Whose branch point it is; no other class can restore it."""
    played: tuple[PlayedCall, ...] = ()
    """What leads to the state of the servers that its tools live in."""


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _alone(
    method: Callable[Concatenate[ToolEnv, _P], _R],
) -> Callable[Concatenate[ToolEnv, _P], _R]:
    """Refuse a second thread while one plays; costs a fraction of a microsecond."""

    @functools.wraps(method)
    def guarded(self: ToolEnv, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            self._turnstile.pop()
        except IndexError:
            raise EnvBusyError(
                f"{method.__name__}() while another thread plays on this {type(self).__name__}: "
                f"one env plays one episode at a time; make one for each thread"
            ) from None
        try:
            return method(self, *args, **kwargs)
        finally:
            self._turnstile.append(None)

    return guarded


class ToolEnv(gymnasium.Env[Observation, Action]):
    """A multi-turn tool environment over seeded tasks.

    When the student speaks without calling a tool, that is its answer to what the user said last:
    the user says the next thing, and after the last answer the episode ends. It also ends after
    `max_turns`. Reward is 1.0 at the end if the final state equals the one the gold calls lead to
    and the answers are right, else 0.0. One env plays one episode at a time; envs are cheap, make
    as many as needed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's protocol
        "render_modes": ["ansi"],
        "render_fps": 1,
    }
    toolset: ClassVar[tuple[Tool, ...]]
    """The tools, in the order the prompt lists them."""
    waits: ClassVar[bool] = False
    """True if a tool may wait for something outside this process: such steps run in threads. So may
    every tool that lives in a server."""
    limits: ClassVar[CallLimits] = CallLimits()
    """How long a call may take and how much it may say; a tool may have limits of its own."""
    system: ClassVar[str] = SYSTEM
    """System message; the agent side adds the tools in the form the model knows."""
    levels: ClassVar[tuple[Level, ...]] = LEVELS[:1]
    """The difficulties that `generate` knows."""
    harmless: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Why a near-miss of a gold program may succeed (see `envs/nearmiss.py`): a reason by task kind
    or tool name, or by what was done: "dropped", "changed", "added", "answer" or "no_op". Under
    "refused", why gold calls may be turned down that are not declared so one by one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Note that tools of servers wait."""
        super().__init_subclass__(**kwargs)
        toolset = cls.__dict__.get("toolset", ())
        # What is no toolset is named when an environment is made.
        tools = toolset if isinstance(toolset, list | tuple) else ()
        if any(getattr(tool, "live", None) is not None for tool in tools):
            cls.waits = True

    def __init__(
        self,
        split: str = "train",
        max_turns: int = 20,
        render_mode: str | None = None,
    ) -> None:
        """Make an environment.

        Args:
            split: Where `reset` draws tasks from unless its options say otherwise: "test", or with
                a level, "test/hard".
            max_turns: Student turns before truncation; the longest gold program of the built-in
                domains takes 12, the rest is room to err.
            render_mode: None or "ansi" (`render()` returns the transcript).

        Raises:
            UnknownTaskError: No such split or level.
            ValueError: A turn limit below one, or another render mode.
            InvalidEnvError: The class cannot work as it is written.
        """
        require(type(self))
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns!r}: expected at least 1")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode={render_mode!r}: expected None or 'ansi'")
        self.split = pool_name(*self._read_split(split))
        self.max_turns = max_turns
        self.render_mode = render_mode
        self.observation_space = MessagesSpace()
        self.action_space = ActionSpace()
        self._live = LiveTools(self.toolset)
        self._tools = self._live.tools
        if len(self._tools) != len(self.toolset):
            names = ", ".join(t.name for t in self.toolset)
            raise ValueError(f"{type(self).__name__} has two tools of one name: {names}")
        # Holds an entry while nobody plays. A lock would do, but could not be copied with the env.
        self._turnstile: list[None] = [None]
        self._task: Task | None = None
        self._wanted: tuple[Task, Any, str] | None = None
        self._state: Any = None
        self._turns = 0
        self._answers: tuple[str, ...] = ()
        self._over = True
        self._verdict: bool | None = None
        self._transcript: tuple[Message, ...] = ()

    # What a subclass writes

    @classmethod
    @abstractmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw one task; the id is filled in by the caller.

        Args:
            rng: All randomness comes from it.
            split: Splits must share no task.
            level: One of `levels`.
        """

    @classmethod
    def outcome(cls, state: Any) -> Any:
        """The part of the state that decides success; by default all of it."""
        return state

    @classmethod
    def task_count(cls, split: Split, level: Level) -> int | None:
        """How many tasks there are; None if they never run out."""
        return None

    # Tasks

    @classmethod
    def tasks(cls, split: str) -> Iterator[str]:
        """Task ids of a split, perhaps without end; splits share no task.

        Args:
            split: "test", or with a level, "test/hard".
        """
        where = cls._read_split(split)
        count = cls.task_count(*where)
        numbers = itertools.count() if count is None else range(count)
        return (f"{pool_name(*where)}/{i}" for i in numbers)

    @classmethod
    def load_task(cls, task_id: str) -> Task:
        """The task of that id, generated anew; equal ids give equal tasks.

        Raises:
            UnknownTaskError: The id is not "<split>/<number>" or "<split>/<level>/<number>", or
                there are fewer tasks.
        """
        split, _, number = task_id.rpartition("/") if isinstance(task_id, str) else ("", "", "")
        if not split or not _NUMBER.fullmatch(number):
            raise UnknownTaskError(
                f"no task {str(task_id)[:80]!r}: write <split>/<number> or "
                f"<split>/<level>/<number>, e.g. test/0"
            )
        where = cls._read_split(split)
        count = cls.task_count(*where)
        if count is not None and int(number) >= count:
            raise UnknownTaskError(f"no task {task_id!r}: {split} has {count} tasks, from 0 on")
        return cls._task_at(*where, int(number))

    @classmethod
    def _task_at(cls, split: Split, level: Level, number: int) -> Task:
        task_id = f"{pool_name(split, level)}/{number}"
        rng = random.Random(f"{cls.__name__}/{task_id}")
        task: object = cls.generate(rng, split, level)
        if not isinstance(task, Task):
            raise InvalidEnvError(
                f"{cls.__name__}.generate() returned {task!r:.80}: expected a Task"
            )
        return replace(task, id=task_id)

    @classmethod
    def _read_split(cls, text: str) -> tuple[Split, Level]:
        split, slash, level = text.partition("/") if isinstance(text, str) else (text, "", "")
        if split not in SPLITS:
            raise UnknownTaskError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
        level = level if slash else cls.levels[0]
        if level not in cls.levels:
            known = ", ".join(cls.levels)
            raise UnknownTaskError(f"no level {level!r} in {cls.__name__}; there are: {known}")
        return split, level

    # Gymnasium

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds the choice of task.
            options: "task_id" names the task; or "split" says where to draw it from ("test", or
                with a level, "test/hard").

        Returns:
            The system and user messages, and info with the task id.

        Raises:
            UnknownTaskError: No such split or task, or a split without tasks.
            ValueError: No such option.
            EnvBusyError: Another thread plays on this env.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            # Unheard, a misspelt task_id would play a random task.
            if name not in ("task_id", "split"):
                raise ValueError(f"no option {name!r}; there are: task_id, split")
        task_id = options.get("task_id")
        if task_id is None:
            where = self._read_split(options.get("split", self.split))
            count = self.task_count(*where)
            if count == 0:
                raise UnknownTaskError(f"{type(self).__name__} has no tasks in {pool_name(*where)}")
            number = int(self.np_random.integers(ENDLESS if count is None else count))
            task_id = f"{pool_name(*where)}/{number}"
        return self.begin(self.load_task(task_id))

    @_alone
    def begin(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        """Start an episode on a given task: what `reset` does once it has chosen one."""
        self._over = True  # stays so if the state cannot be opened
        self._live.begin()
        self._state = self.open_state(task)
        self._task, self._turns, self._answers, self._over = task, 0, (), False
        self._verdict = None
        system = f"{self.system}\n{task.policy}" if task.policy else self.system
        messages = (Message("system", system), Message("user", task.prompt))
        self._transcript = messages
        return messages, {"task_id": task.id, "kind": task.kind}

    @_alone
    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play one assistant turn.

        Args:
            action: The assistant's calls; or its turn as the student's dialect read it (calls, or
                an answer); or its raw text, which is read as Hermes.

        Returns:
            The new messages (tool results, or what the user says next), reward, terminated,
            truncated, and info: "calls" (one `ToolResult` per attempted call), "success", and at
            the end of an episode "score" (see `score`).

        Raises:
            EpisodeOverError: No episode is running.
            EnvBusyError: Another thread plays on this env.
            InvalidEnvError: `score` is no number in 0..1.
            BadActionError: The action is of another type.
            Exception: What a tool raised that is not a `ToolError`: the infrastructure failed. The
                episode is over then, since half a turn may have been played.
        """
        task = self._running()
        turn = self._read(action)
        self._over = True  # stays so if a tool breaks
        results = tuple(self._execute(call) for call in turn.calls)
        self._turns += 1
        messages = tuple(Message("tool", r.content, r.call.name or None) for r in results)
        terminated = False
        if not turn.calls:
            self._take_answer(turn.answer)
            turns = task.turns
            terminated = len(self._answers) == len(turns)
            if not terminated:
                messages = (Message("user", turns[len(self._answers)].prompt),)
        self._transcript += (Message("assistant", turn.text), *messages)
        truncated = not terminated and self._turns >= self.max_turns
        self._over = terminated or truncated
        self._verdict = success = terminated and self.solved()
        info = {"calls": results, "success": success, "task_id": task.id}
        if self._over:
            info["score"] = self.scored()
        return messages, float(success), terminated, truncated, info

    def render(self) -> str | None:
        """The transcript so far, in render mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        return "\n".join(f"[{m.role}] {m.content}" for m in self._transcript)

    # Beyond Gymnasium

    @property
    def tools(self) -> list[ToolSpec]:
        """The schemas of the tools."""
        return [t.spec for t in self.toolset]

    @property
    def task(self) -> Task:
        """The task of the current (or last) episode."""
        if self._task is None:
            raise EpisodeOverError("no task yet: call reset() first")
        return self._task

    @property
    def over(self) -> bool:
        """True before the first `reset()` and after the end of an episode."""
        return self._over

    @property
    def user_turn(self) -> UserTurn:
        """What the user said last; after the last answer, the last of all."""
        turns = self.task.turns
        return turns[min(len(self._answers), len(turns) - 1)]

    def oracle(self) -> list[ToolCall]:
        """The gold calls for what the user said last."""
        return list(self.user_turn.gold)

    def snapshot(self) -> Snapshot:
        """The current branch point.

        Raises:
            NoBranchError: A tool lives in a server whose state cannot be reached twice.
        """
        return Snapshot(
            self.task,
            self._state,
            self._turns,
            self._answers,
            self._over,
            self._transcript,
            type(self),
            self._live.branch(),
        )

    @_alone
    def restore(self, snapshot: Snapshot) -> None:
        """Go back (or across) to a branch point of any env of this class.

        Raises:
            ValueError: The snapshot comes from another class.
        """
        if snapshot.env is not type(self):
            raise ValueError(
                f"a snapshot of {snapshot.env.__name__} cannot be restored into a "
                f"{type(self).__name__}"
            )
        self._task, self._state = snapshot.task, snapshot.state
        self._turns, self._answers = snapshot.turns, snapshot.answers
        self._over = snapshot.over
        self._verdict = None
        self._transcript = snapshot.transcript
        self._live.seek(snapshot.played)

    @classmethod
    def travels(cls, snapshot: Any) -> bool:
        """Whether a snapshot of this class is as good in another process, where it can be pickled.

        False of one that holds something alive, such as a fork of a session: an episode is played
        on from it where it was taken.
        """
        return True

    def close(self) -> None:
        """End what was opened outside this process; the env can be reset and used again."""
        self._live.close()
        super().close()

    def reroll(self, seed: int) -> None:
        """Throw other dice from here on; a search calls it after `restore`. Most have none.

        An environment that has dice keeps them in its state, so that an episode replays, and out of
        `hashed_state`, since nobody can see them (see `envs/exact.py`).
        """

    def state_hash(self) -> str:
        """128-bit hex digest of task, state, turn and answers; equal in every process.

        Of a server's state, it has the calls that led there.
        """
        state = self.hashed_state()
        if self._live.played:
            state = (state, self._live.played)
        return digest((self.task.id, state, self._turns, self._answers, self._over))

    def hashed_state(self) -> Any:
        """What `state_hash` sees of the state; by default all of it."""
        return self._state

    def solved(self) -> bool:
        """Final state and answers are those of the gold program; asked at the end of an episode."""
        if not self.answered():
            return False
        return digest(self.outcome(self._state)) == self._gold_outcome()[1]

    def answered(self) -> bool:
        """Every answer is the one that its user turn asks for."""
        return all(
            turn.answer is None or matches(answer, turn.answer)
            for turn, answer in zip(self.task.turns, self._answers, strict=True)
        )

    def score(self) -> float:
        """Partial credit for what was reached, 0 to 1; by default the verdict.

        Asked when an episode ends, wherever it does: at the turn limit too, where not every user
        turn has an answer. The reward stays the verdict.
        """
        if self._verdict is None:
            self._verdict = len(self._answers) == len(self.task.turns) and self.solved()
        return float(self._verdict)

    def scored(self) -> float:
        """`score` after a look at it.

        Raises:
            InvalidEnvError: It is no number in 0..1.
        """
        score: object = self.score()
        if isinstance(score, numbers.Real) and 0 <= float(score) <= 1:
            return float(score)
        raise InvalidEnvError(f"{type(self).__name__}.score() is {score!r:.80}: expected 0 to 1")

    def shortfall(self) -> Shortfall:
        """What an episode lacks that ended unsolved; the same wherever it ended."""
        return Shortfall(self.difference(), self.checked_answers())

    def difference(self) -> tuple[Difference, ...]:
        """Where the state reached is not the one that the gold calls lead to.

        By default of what `outcome` sees. An environment that overrides `solved` judges by
        something else, and says nothing (an empty tuple) unless it overrides this too.
        """
        if type(self).solved is not ToolEnv.solved:
            return ()
        return differences(self.outcome(self._state), self._gold_outcome()[0])

    def checked_answers(self) -> tuple[AnswerCheck, ...]:
        """What was answered to each user turn; by the rule of `answered`."""
        given: tuple[str | None, ...] = self._answers
        given += (None,) * (len(self.task.turns) - len(given))
        return tuple(
            AnswerCheck.of(
                answer,
                turn.answer,
                answer is not None and (turn.answer is None or matches(answer, turn.answer)),
            )
            for turn, answer in zip(self.task.turns, given, strict=True)
        )

    def _gold_outcome(self) -> tuple[Any, str]:
        """What decides success where the gold calls lead, and its digest."""
        task = self.task
        if self._wanted is None or self._wanted[0] is not task:  # a tree ends in it often
            outcome = self.outcome(self._gold_state(task))
            self._wanted = (task, outcome, digest(outcome))
        return self._wanted[1:]

    def _gold_state(self, task: Task) -> Any:
        """Where the gold calls lead."""
        state = task.state
        for turn in task.turns:
            for call in turn.gold:
                # A server's tools leave the value as it is, and its session is the student's.
                if call.name not in self._tools or self._tools[call.name].live is None:
                    state, _ = self._apply(call, state)
        return state

    def open_state(self, task: Task) -> Any:
        """The state an episode starts from."""
        return task.state

    def _execute(self, call: ToolCall) -> ToolResult:
        """Run one call and take over the state it leads to."""
        self._state, result = self._apply(call, self._state)
        return result

    def _apply(self, call: ToolCall, state: Any) -> tuple[Any, ToolResult]:
        """Run one call on a state that is a value: it must be the same after the call.

        A state that is changed in place takes with it every snapshot and the task's own state, from
        which the goal is found: a wrong call would be rewarded.
        """
        before = seal(state)
        after, result = execute(call, self._tools, state, self.limits, self.waits)
        if seal(state) != before:
            raise StateChangedError(
                f"tool {call.name!r} changed the state that it was given, a "
                f"{type(state).__name__}: return a new one, and leave the old one as it is"
            )
        return after, result

    def _take_answer(self, text: str) -> None:
        """Note the student's answer to what the user said last, before the user goes on."""
        self._answers += (extract_answer(text),)

    def _running(self) -> Task:
        if self._task is None or self._over:
            raise EpisodeOverError("the episode is over: call reset() before step()")
        return self._task

    def _read(self, action: Action) -> AssistantTurn:
        if isinstance(action, AssistantTurn):
            return action
        if isinstance(action, str):
            return AssistantTurn(action, *read_turn(action, parse_hermes))
        if isinstance(action, Sequence) and not isinstance(action, bytes):
            calls = tuple(c for c in action if isinstance(c, ToolCall))
            if len(calls) == len(action):
                return AssistantTurn("\n".join(render_hermes(c) for c in calls), calls)
        raise BadActionError(
            f"an action is the assistant's text or a list of ToolCall, not {type(action).__name__}"
        )


# Python refuses to read a number of thousands of digits.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


def pool_name(split: Split, level: Level) -> str:
    """How a split and a level are written: the first level goes without saying."""
    return split if level == LEVELS[0] else f"{split}/{level}"
