"""A small environment without a fault, and others that have one each.

Each is the good one with one thing changed. The decorator says which check must name it, and words
of what it must say.
"""

# Much of this is wrong on purpose.
# mypy: ignore-errors

import itertools
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from immutables import Map

from journeyman.envs import Split, Task, ToolEnv, refused
from journeyman.envs.hashing import digest
from journeyman.tools import Tool, ToolCall, ToolError, tool
from journeyman.tools.limits import CallLimits

SHELVES = {
    "train": ("art", "law", "music", "travel"),
    "validation": ("poetry", "physics", "cooking", "history"),
    "test": ("drama", "chess", "biology", "gardens"),
}


def _on(state: Map, shelf: str) -> int:
    if shelf not in state:
        raise ToolError(f"no shelf {shelf!r}")
    return state[shelf]


@tool
def look(state: Map, shelf: str) -> tuple[Map, int]:
    """Count the books on a shelf.

    Args:
        shelf: Its name.
    """
    return state, _on(state, shelf)


@tool
def put(state: Map, shelf: str, count: int) -> tuple[Map, dict]:
    """Put books on a shelf.

    Args:
        shelf: Its name.
        count: How many.
    """
    if not 0 < count < 100:
        raise ToolError("a trolley takes 1 to 99 books")
    return state.set(shelf, _on(state, shelf) + count), {"shelf": shelf}


@tool
def audit(state: Map) -> tuple[Map, int]:
    """Count all books; no gold program needs it."""
    return state, sum(state.values())


class LibraryEnv(ToolEnv):
    """Shelves of books."""

    toolset = (look, put, audit)

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        """Draw shelves and a trolley."""
        state = Map({shelf: rng.randint(100, 10**6) for shelf in SHELVES[split]})
        shelf, count = rng.choice(SHELVES[split]), rng.randint(1, 99)
        gold = (ToolCall("look", {"shelf": shelf}), ToolCall("put", _books(shelf, count)))
        prompt = f"Put {count} books on the shelf {shelf}. How many are on it then?"
        return Task("", "put", prompt, state, gold, str(state[shelf] + count))


def _books(shelf: str, count: Any) -> dict[str, Any]:
    return {"shelf": shelf, "count": count}


class Fault(NamedTuple):
    """An environment with one fault."""

    env: type[ToolEnv]
    check: str
    """The one check that must fail."""
    words: str
    """A pattern of what it must say."""


FAULTS: list[Fault] = []


def planted(check: str, words: str) -> Callable[[type[ToolEnv]], type[ToolEnv]]:
    """Enter an environment in the table."""

    def enter(env: type[ToolEnv]) -> type[ToolEnv]:
        FAULTS.append(Fault(env, check, words))
        return env

    return enter


def _with(**tools: Any) -> tuple[Any, ...]:
    """The tools, some of them replaced."""
    return tuple(tools.get(t.name, t) for t in LibraryEnv.toolset)


# What is written


@planted("definition", r"NoGenerate has no generate\(cls, rng, split, level\)")
class NoGenerate(ToolEnv):
    toolset = LibraryEnv.toolset


@planted("definition", r"NoTools has no tools: write toolset")
class NoTools(LibraryEnv):
    toolset = None


@planted("definition", r"generate is no class method: write @classmethod")
class GenerateOfAnInstance(LibraryEnv):
    def generate(self, rng, split, level):
        return LibraryEnv.generate(rng, split, level)


@planted("definition", r"outcome is no class method")
class OutcomeOfAnInstance(LibraryEnv):
    def outcome(self, state):
        return state


@planted("definition", r"toolset is a single tool: write \(look,\)")
class SingleTool(LibraryEnv):
    toolset = look


@planted("definition", r"holds the function sweep: write @tool above it")
class PlainFunction(LibraryEnv):
    def sweep(state: Map) -> tuple[Map, str]:
        """Sweep."""
        return state, "clean"

    toolset = (*LibraryEnv.toolset, sweep)


@planted("definition", r"holds 'look': expected a tool")
class NamedTool(LibraryEnv):
    toolset = ("look", put, audit)


@planted("definition", r"two tools of one name: look")
class TwiceTheSame(LibraryEnv):
    toolset = (look, put, audit, look)


@planted("definition", r"tool 'audit'.*docstring")
class NoDocstring(LibraryEnv):
    @tool
    def audit(state: Map) -> tuple[Map, int]:
        return state, sum(state.values())

    toolset = _with(audit=audit)


@planted("definition", r"tool 'look'.*no description for the argument 'shelf'")
class UndocumentedArgument(LibraryEnv):
    @tool
    def look(state: Map, shelf: str) -> tuple[Map, int]:
        """Count the books on a shelf."""
        return state, _on(state, shelf)

    toolset = _with(look=look)


@planted("definition", r"tool 'audit' has no description")
class NoDescription(LibraryEnv):
    toolset = _with(
        audit=Tool.from_schema(
            {"name": "audit", "description": "", "parameters": {"type": "object"}},
            lambda: 1,
        )
    )


@planted("definition", r"the schema of 'what' takes anything")
class Untyped(LibraryEnv):
    toolset = _with(
        audit=Tool.from_schema(
            {
                "name": "audit",
                "description": "Count.",
                "parameters": {"type": "object", "properties": {"what": {"description": "What."}}},
            },
            lambda what=None: 1,
        )
    )


@planted("definition", r"tool 'audit' is async")
class Async(LibraryEnv):
    @tool
    async def audit(state: Map) -> tuple[Map, int]:
        """Count all books."""
        return state, 1

    toolset = _with(audit=audit)


@planted("definition", r"levels is 'easy': expected a tuple")
class OneLevel(LibraryEnv):
    levels = "easy"


@planted("definition", r"harmless is \{'dropped'\}: expected a mapping")
class NoReason(LibraryEnv):
    harmless = {"dropped"}  # noqa: RUF012


# Tasks


def _redrawn(**fields: Callable[[Task], Any]) -> Any:
    """A `generate` that changes fields of the good one's tasks."""

    @classmethod
    def generate(cls, rng, split, level):
        task = LibraryEnv.generate(rng, split, level)
        return replace(task, **{name: change(task) for name, change in fields.items()})

    return generate


@planted("tasks", r"generate\(\) returned None: expected a Task")
class ReturnsNone(LibraryEnv):
    @classmethod
    def generate(cls, rng, split, level):
        LibraryEnv.generate(rng, split, level)


@planted("tasks", r"answer=\d+: expected a str or None.*planted.py, line")
class IntAnswer(LibraryEnv):
    generate = _redrawn(answer=lambda task: int(task.answer))


@planted("tasks", r"gold=ToolCall.*expected a tuple of ToolCall; write \(call,\)")
class LoneCall(LibraryEnv):
    generate = _redrawn(gold=lambda task: task.gold[1])


@planted("tasks", r"then=\('And now\?',\): expected a tuple of UserTurn")
class TextForATurn(LibraryEnv):
    generate = _redrawn(then=lambda task: ("And now?",))


@planted("tasks", r"task train/0 has an empty prompt")
class NoPrompt(LibraryEnv):
    generate = _redrawn(prompt=lambda task: " ")


@planted("tasks", r"another task when it is loaded again")
class GlobalDice(LibraryEnv):
    @classmethod
    def generate(cls, rng, split, level):
        return LibraryEnv.generate(random, split, level)


@planted("tasks", r"another task when it is loaded again")
class NumpyDice(LibraryEnv):
    generate = _redrawn(policy=lambda task: f"Rule {np.random.rand()}.")


@planted("tasks", r"another task when it is loaded again")
class GoldOfTheMoment(LibraryEnv):
    generate = _redrawn(gold=lambda task: tuple(random.sample(task.gold * 8, 16)))


@planted("tasks", r"tasks\('train/easy'\) gave train/\d, then train/\d at the same place")
class MovingList(LibraryEnv):
    _numbers = itertools.count()

    @classmethod
    def tasks(cls, split):
        start = next(cls._numbers) % 2
        return (f"{split.removesuffix('/easy')}/{start + i}" for i in itertools.count())


@planted("tasks", r"gives the id train/0 twice")
class SameIds(LibraryEnv):
    @classmethod
    def tasks(cls, split):
        return (f"{split.removesuffix('/easy')}/{i // 2}" for i in itertools.count())


@planted("tasks", r"no split of \w+ has a task")
class NoTasks(LibraryEnv):
    @classmethod
    def task_count(cls, split, level):
        return 0


@planted("tasks", r"no split has a task of level 'hard'")
class EmptyLevel(LibraryEnv):
    levels = ("easy", "hard")

    @classmethod
    def task_count(cls, split, level):
        return 0 if level == "hard" else None


@planted("tasks", r"IndexError")
class CountsTooMany(LibraryEnv):
    @classmethod
    def task_count(cls, split, level):
        return 1000

    @classmethod
    def _task_at(cls, split, level, number):
        return super()._task_at(split, level, range(900)[number])


@planted("tasks", r"task train/0 calls itself ''")
class NoId(LibraryEnv):
    @classmethod
    def _task_at(cls, split, level, number):
        return cls.generate(random.Random(f"{split}/{number}"), split, level)


@planted("tasks", r"the state of task train/0: cannot hash a _Room")
class ObjectState(LibraryEnv):
    class _Room:
        pass

    generate = _redrawn(state=lambda task: ObjectState._Room())


def _local_task() -> type[Task]:
    @dataclass(frozen=True, slots=True)
    class LocalTask(Task):
        pass

    return LocalTask


@planted("tasks", r"task train/0 cannot be pickled.*LocalTask")
class Unpicklable(LibraryEnv):
    kind = _local_task()

    @classmethod
    def generate(cls, rng, split, level):
        task = LibraryEnv.generate(rng, split, level)
        return cls.kind("", "put", task.prompt, task.state, task.gold, task.answer)


@planted("splits", r"task validation/\d+ is also task train/\d+")
class OneSplit(LibraryEnv):
    @classmethod
    def generate(cls, rng, split, level):
        return LibraryEnv.generate(random.Random(rng.randrange(5)), "train", level)


# What happens when it is played


@planted("gymnasium", r"super\(\)\.reset\(seed=seed\)|random number generator")
class NoSuperReset(LibraryEnv):
    def reset(self, *, seed=None, options=None):
        task_id = (options or {}).get("task_id") or f"train/{(seed or 0) % 1000}"
        return self.begin(self.load_task(task_id))


@planted("episode", r"the observation \[.*is not in the space")
class ListForATuple(LibraryEnv):
    def begin(self, task):
        messages, info = super().begin(task)
        return list(messages), info


@planted("gymnasium", r"render fps")
class NoFrames(LibraryEnv):
    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012


@planted("tools", r"tool 'look' raised KeyError.*planted.py, line \d+.*raise ToolError")
class BareException(LibraryEnv):
    @tool
    def look(state: Map, shelf: str) -> tuple[Map, int]:
        """Count the books on a shelf.

        Args:
            shelf: Its name.
        """
        return state, state[shelf]

    toolset = _with(look=look)


@planted("tools", r"tool 'audit' raised ZeroDivisionError")
class ToolThatGoldNeverCalls(LibraryEnv):
    @tool
    def audit(state: Map) -> tuple[Map, int]:
        """Count all books."""
        return state, 1 // 0

    toolset = _with(audit=audit)


@planted("tools", r"tool 'put' takes the state, so it must return \(new state, result\)")
class ToolReturnsNone(LibraryEnv):
    @tool
    def put(state: Map, shelf: str, count: int) -> None:
        """Put books on a shelf.

        Args:
            shelf: Its name.
            count: How many.
        """
        state.set(shelf, count)

    toolset = _with(put=put)


@planted("tools", r"tool 'look' does not end: .*no result within 0.1 s")
class Hangs(LibraryEnv):
    limits = CallLimits(timeout_s=0.1)

    @tool
    def look(state: Map, shelf: str) -> tuple[Map, int]:
        """Count the books on a shelf.

        Args:
            shelf: Its name.
        """
        while shelf == "?":
            time.sleep(0.01)
        return state, _on(state, shelf)

    toolset = _with(look=look)


@planted("tools", r"tool 'look' tried to end the process \(status 2\)")
class Leaves(LibraryEnv):
    @tool
    def look(state: Map, shelf: str) -> tuple[Map, int]:
        """Count the books on a shelf.

        Args:
            shelf: Its name.
        """
        if shelf not in state:
            raise SystemExit(2)
        return state, _on(state, shelf)

    toolset = _with(look=look)


@planted("tasks", r"SystemExit: 3")
class TasksLeave(LibraryEnv):
    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        raise SystemExit(3)


@planted("episode", r"reward nan")
class RewardIsNoNumber(LibraryEnv):
    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


@planted("tools", r"tool 'look' returned what is not JSON")
class NotJson(LibraryEnv):
    @tool
    def look(state: Map, shelf: str) -> tuple[Map, object]:
        """Count the books on a shelf.

        Args:
            shelf: Its name.
        """
        return state, {_on(state, shelf)}

    toolset = _with(look=look)


@planted("tools", r"tool 'audit' prints 'counting")
class Prints(LibraryEnv):
    @tool
    def audit(state: Map) -> tuple[Map, int]:
        """Count all books."""
        print("counting")
        return state, sum(state.values())

    toolset = _with(audit=audit)


@planted("tools", r"tool 'put' changed the state that it was given, a dict")
class InPlace(LibraryEnv):
    @tool
    def put(state: dict, shelf: str, count: int) -> tuple[dict, dict]:
        """Put books on a shelf.

        Args:
            shelf: Its name.
            count: How many.
        """
        state[shelf] = _on(state, shelf) + count
        return state, {"shelf": shelf}

    toolset = _with(put=put)
    generate = _redrawn(state=lambda task: dict(task.state))


@dataclass(frozen=True)
class Room:
    books: list


@planted("tools", r"tool 'audit' changed the state that it was given, a Room")
class ListInARecord(LibraryEnv):
    """The tool that does it is one that no gold program calls."""

    @tool
    def look(state: Room, shelf: str) -> tuple[Room, int]:
        """Count the books on a shelf.

        Args:
            shelf: Its name.
        """
        return state, len(state.books)

    @tool
    def audit(state: Room) -> tuple[Room, int]:
        """Count all books."""
        state.books.append(0)
        return state, len(state.books)

    toolset = (look, audit)

    @classmethod
    def generate(cls, rng, split, level):
        books = [rng.randrange(10**9) for _ in range(3)]
        shelf = SHELVES[split][0]
        gold = (ToolCall("look", {"shelf": shelf}),)
        return Task("", "look", f"How many books? {books} {shelf}", Room(books), gold, "3")


@planted("tools", r"tool 'put' raised TypeError: cannot hash a int64")
class NumpyState(LibraryEnv):
    @tool
    def put(state: Map, shelf: str, count: int) -> tuple[Map, dict]:
        """Put books on a shelf.

        Args:
            shelf: Its name.
            count: How many.
        """
        return state.set(shelf, np.int64(_on(state, shelf) + count)), {"shelf": shelf}

    toolset = _with(put=put)


def _looking(result: Callable[[], Any]) -> Tool:
    """A `look`, which gold only reads with, that says something more."""

    @tool
    def look(state: Map, shelf: str) -> tuple[Map, list]:
        """Count the books on a shelf.

        Args:
            shelf: Its name.
        """
        return state, [_on(state, shelf), result()]

    return look


@planted("seeds", r"same actions in two envs.*gave observation")
class RandomResult(LibraryEnv):
    toolset = _with(look=_looking(random.random))


@planted("seeds", r"same actions in two envs.*gave observation")
class UuidResult(LibraryEnv):
    toolset = _with(look=_looking(lambda: uuid.uuid4().hex))


@planted("seeds", r"same actions in two envs.*nothing kept in a module, a class")
class ModuleCounter(LibraryEnv):
    toolset = _with(look=_looking(itertools.count().__next__))


@planted("seeds", r"same actions in two envs.*gave hash")
class TimeInState(LibraryEnv):
    @tool
    def put(state: Map, shelf: str, count: int) -> tuple[Map, dict]:
        """Put books on a shelf.

        Args:
            shelf: Its name.
            count: How many.
        """
        return state.set(shelf, _on(state, shelf) + count).set("at", time.perf_counter_ns()), {}

    toolset = _with(put=put)


@planted("seeds", r"same actions in two envs.*gave hash")
class HashOfAnAddress(LibraryEnv):
    def state_hash(self):
        return digest((super().state_hash(), id(self)))


@planted("attempts", r"a second attempt in a new env.*a class or a default argument")
class SharedDefault(LibraryEnv):
    """`audit`, which no gold program calls, remembers in a default argument."""

    def _count(state, seen=[]):  # noqa: B006
        seen.append(state)
        return state, len(seen)

    toolset = _with(
        audit=Tool.from_schema(
            {"name": "audit", "description": "Count.", "parameters": {"type": "object"}},
            _count,
            stateful=True,
        )
    )


@planted("attempts", r"a second attempt in the same env.*begin\(\) must start from the task alone")
class NoFreshStart(LibraryEnv):
    count = 0

    def _execute(self, call):
        self.count += 1
        result = super()._execute(call)
        return replace(result, content=f"{result.content} ({self.count})")


@planted("attempts", r"a second attempt in the same env")
class ResetThatResetsNothing(LibraryEnv):
    def open_state(self, task):
        kept = self.task if self._task is not None and self._task.id == task.id else None
        return task.state if kept is None else self._state


@planted("prefixes", r"after restore: turn 0.*belongs in its snapshots")
class SnapshotForgets(LibraryEnv):
    def begin(self, task):
        self.count = 0
        return super().begin(task)

    def _execute(self, call):
        self.count = getattr(self, "count", 0) + 1
        result = super()._execute(call)
        return replace(result, content=f"{result.content} ({self.count})")


@planted("prefixes", r"restore gave hash")
class RestoresNothing(LibraryEnv):
    def restore(self, snapshot):
        self._over = snapshot.over


class _Drawers:
    """A state of the env's own that is changed in place."""

    def open_state(self, task):
        return dict(task.state)

    def _execute(self, call):
        after, result = super()._apply(call, Map(self._state))
        self._state.update(after)
        return result


@planted("prefixes", r"restore gave hash.*not changed in place")
class SnapshotIsNoCopy(_Drawers, LibraryEnv):
    pass


@planted("prefixes", r"a second time: restore gave hash")
class RestoreIsNoCopy(_Drawers, LibraryEnv):
    """A snapshot is a copy, but whoever goes on from it plays in it."""

    def snapshot(self):
        snapshot = super().snapshot()
        return replace(snapshot, state=dict(snapshot.state))


@planted("hashes", r"state_hash\(\) leaves a part of the state out")
class HashOfAPart(LibraryEnv):
    def hashed_state(self):
        return sorted(self._state)


@planted("episode", r"step\(\) after the end is not refused")
class Endless(LibraryEnv):
    def step(self, action):
        if self._task is not None and self.over:
            return (), 0.0, True, False, {"calls": (), "success": False, "task_id": self.task.id}
        return super().step(action)


@planted("episode", r"step\(\) before reset\(\) is not refused")
class NeverBegun(LibraryEnv):
    def step(self, action):
        if self._task is None:
            self.reset(seed=0)
        return super().step(action)


def _stepping(change: Callable[..., Any]) -> Any:
    """A `step` that changes what the good one returns once a call is made."""

    def step(self, action):
        returned = LibraryEnv.step(self, action)
        return change(*returned) if returned[4]["calls"] or returned[2] else returned

    return step


@planted("episode", r"reward 2\.0, expected a number from 0 to 1")
class TooMuch(LibraryEnv):
    step = _stepping(lambda o, r, *rest: (o, 2 * r, *rest))


@planted("episode", r"reward -1\.0, expected a number from 0 to 1")
class Punishing(LibraryEnv):
    step = _stepping(lambda o, r, *rest: (o, -1.0, *rest))


@planted("episode", r"the observation \[.*is not in the space")
class ListLater(LibraryEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        return ([*observation] if rest[3]["calls"] else observation, *rest)


@planted("episode", r"step\(\)'s info has no success")
class NoSuccess(LibraryEnv):
    step = _stepping(
        lambda *seen: (*seen[:4], {n: v for n, v in seen[4].items() if n != "success"})
    )


@planted("episode", r"max_turns=3, and the episode goes on")
class NoLimit(LibraryEnv):
    def step(self, action):
        self.max_turns = 10**6
        return super().step(action)


# What counts as success


@planted("gold", r"the gold call .*'?\"put\".* is turned down \(tool_error\).*refused\(call\)")
class GoldTheToolRefuses(LibraryEnv):
    """Where it is refused, less is done than was asked for, and gold agrees with itself."""

    @classmethod
    def generate(cls, rng, split, level):
        task = LibraryEnv.generate(rng, split, level)
        more = ToolCall("put", _books(SHELVES[split][0], rng.choice((5, 500))))
        return replace(task, gold=(*task.gold, more), prompt=f"{task.prompt} {more.arguments}")


@planted("gold", r"turned down \(unknown_tool\).*Did you mean look\?")
class GoldMisspelsATool(LibraryEnv):
    generate = _redrawn(gold=lambda task: (ToolCall("loook", {"shelf": "x"}), *task.gold[1:]))


@planted("gold", r"turned down \(invalid_arguments\).*look has no argument 'name'")
class GoldMisspelsAnArgument(LibraryEnv):
    generate = _redrawn(gold=lambda task: (ToolCall("look", {"name": "x"}), *task.gold[1:]))


@planted("gold", r"turned down \(invalid_arguments\).*'7' is not of type 'integer'")
class GoldOfAWrongType(LibraryEnv):
    generate = _redrawn(gold=lambda task: (*task.gold, ToolCall("put", _books("art", "7"))))


@planted("gold", r"declared to end in tool_error, but it ended in ok")
class DeclaredForNothing(LibraryEnv):
    generate = _redrawn(gold=lambda task: (refused(task.gold[0]), *task.gold[1:]))


@planted("gold", r"22 gold turns reach the turn limit|20 gold turns reach the turn limit")
class TooLong(LibraryEnv):
    generate = _redrawn(gold=lambda task: (*(task.gold[:1] * 20), *task.gold[1:]))


@planted("gold", r"the gold program got reward 0\.0")
class NeverSolved(LibraryEnv):
    def solved(self):
        return False


@planted("no_op", r"'Answer: done' at once got 1\.0")
class AlwaysSolved(LibraryEnv):
    def solved(self):
        return True


@planted("no_op", r"'Answer: done' at once got 1\.0")
class NothingAskedFor(LibraryEnv):
    """Gold only reads, and no answer is asked for."""

    generate = _redrawn(gold=lambda task: task.gold[:1], answer=lambda task: None)


@planted("no_op", r"'Answer: full' at once got 1\.0")
class RuleTellsTheAnswer(LibraryEnv):
    generate = _redrawn(
        gold=lambda task: task.gold[:1],
        answer=lambda task: "full",
        policy=lambda task: "Where a shelf is full, put nothing and answer: full",
    )


@planted("near_misses", r"with dropped .*\"put\".* succeeds all the same")
class AnswerAloneDecides(LibraryEnv):
    @classmethod
    def outcome(cls, state):
        return None


@planted("near_misses", r"with (changed|added) .*\"put\".* succeeds all the same")
class AnyNumberOfBooks(LibraryEnv):
    generate = _redrawn(answer=lambda task: None)

    def solved(self):
        now, before = self._state, self.task.state
        return any(now[shelf] > before[shelf] for shelf in before)


@planted("near_misses", r"with answer .* succeeds all the same")
class DeafToAnswers(LibraryEnv):
    def answered(self):
        return True


@planted("near_misses", r"with added .*\"put\".* succeeds all the same")
class TooManyIsEnough(LibraryEnv):
    def solved(self):
        goal = self.task.state
        for call in self.task.gold:
            goal, _ = self._apply(call, goal)
        return self.answered() and all(self._state[shelf] >= goal[shelf] for shelf in goal)
