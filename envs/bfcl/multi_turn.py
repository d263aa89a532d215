"""BFCL's multi-turn tasks: eight stateful APIs, several user turns, a check after each.

The benchmark's own checker runs the student's calls and the gold calls on objects kept in module
globals. Here the student's calls run as it makes them; when it has answered, the benchmark's
`state_checker` and `response_checker` compare its objects and results with gold's after the same
turn (`multi_turn_checker`, whose loop this is).
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from journeyman.envs.benchmark import BenchmarkEnv, BenchmarkTool, benchmark_module
from journeyman.envs.bfcl.apis import Apis, Objects, initial_objects, live, plain
from journeyman.envs.bfcl.data import Record, api_functions, entries, gold_call, ground_truth
from journeyman.envs.core import Observation, Snapshot
from journeyman.envs.shortfall import Difference, differences
from journeyman.envs.task import Task, UserTurn
from journeyman.tools import Tool, ToolCall, ToolError, ToolResult, ToolSpec, execute

MORE_FUNCTIONS = "I have updated some more functions you can choose from. What about now?"
"""The benchmark's words where functions appear that were held back."""


@dataclass(frozen=True, slots=True)
class MultiTurnState:
    """State of an episode: the objects, and what the checks have come to."""

    objects: Objects
    results: tuple[str, ...] = ()
    """Texts of all results so far."""
    attempts: int = 0
    """Well-formed calls in this user turn."""
    passed: bool = True
    """Every user turn so far was solved."""


class _Gold:
    """A task's gold calls, played along with the first attempt; one for all attempts.

    Whoever asks for an earlier turn makes it play them once more and keep what each turn led to.
    """

    def __init__(self, turns: Sequence[UserTurn], initial: Objects) -> None:
        """Begin with the objects that attempts begin with."""
        self._turns = turns
        self._initial = initial
        self._apis = Apis(initial)
        self._results: list[list[str]] = []
        """Texts of the results, by user turn."""
        self._kept: list[Objects] = []
        self._lock = threading.Lock()

    def agrees(self, turn: int, objects: Objects, results: Sequence[str]) -> bool:
        """The benchmark's checks of an attempt at the end of a user turn.

        Args:
            turn: Counted from 0.
            objects: The attempt's.
            results: Texts of all its results so far.
        """
        checker = benchmark_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
        with self._lock:
            gold = self._at(turn)
            if not checker.state_checker(objects, gold)["valid"]:
                return False
            found = checker.response_checker(list(results), list(self._results[turn]), turn)
            return bool(found["valid"])

    def after(self, turn: int) -> Any:
        """The objects after a user turn, as `plain` values."""
        with self._lock:
            return plain(self._at(turn))

    def _at(self, turn: int) -> Objects:
        if not self._kept and turn < len(self._results) - 1:
            again = Apis(self._initial)
            self._results = []
            for user_turn in self._turns:
                self._results.append(_play(again, user_turn))
                self._kept.append(again.share())
        if self._kept:
            return live(self._kept[turn])
        while len(self._results) <= turn:
            self._results.append(_play(self._apis, self._turns[len(self._results)]))
        return self._apis.objects


def _play(apis: Apis, turn: UserTurn) -> list[str]:
    """Make the gold calls of a user turn; returns the texts of their results."""
    results = []
    for call in turn.gold:
        try:
            results.append(apis.call(call.name, call.arguments))
        except ToolError as error:
            results.append(str(error))
    return results


class BFCLMultiTurn(BenchmarkEnv):
    """A category of BFCL's multi-turn tasks; reward 1.0 if every user turn is solved."""

    system = (
        "Use the tools. At each turn, try your best to complete what the user asks within that "
        "turn. If none of the tools can be used, or a parameter is missing, say so. End the turn "
        "with a message without a call."
    )
    category: ClassVar[str]

    @classmethod
    def size(cls) -> int:
        """As many tasks as the category's file has lines."""
        return len(entries(cls.category))

    @classmethod
    @functools.cache
    def load(cls, number: int) -> Task:
        """The task with its gold calls; its state is the configuration of the APIs."""
        entry = entries(cls.category)[number]
        classes = entry["involved_classes"]
        gold = ground_truth(cls.category)[entry["id"]]
        turns = tuple(
            UserTurn(
                _prompt(entry, i), tuple(gold_call(text, classes) for text in calls), answer=None
            )
            for i, calls in enumerate(gold)
        )
        first, *then = turns
        state = {"classes": classes, "config": entry["initial_config"]}
        return Task("", cls.category, first.prompt, state, first.gold, None, tuple(then))

    # An episode

    def open_state(self, task: Task) -> MultiTurnState:
        """The objects as the task finds them."""
        return MultiTurnState(self._initial(task.id))

    def begin(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with the tools of the task."""
        opening = super().begin(task)
        self._resume(task)
        return opening

    def snapshot(self) -> Snapshot:
        """The current branch point; the next call of each object copies it."""
        self.task  # noqa: B018 - raises before the first reset
        self._state = replace(self._state, objects=self._apis.share())
        return super().snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Go back (or across) to a branch point of any env of this class."""
        super().restore(snapshot)
        self._resume(snapshot.task)

    def hashed_state(self) -> Any:
        """The objects' attributes, private ones included, and what the checks have come to."""
        progress = self._state
        objects = plain(self._apis.objects)
        return (objects, progress.results, progress.attempts, progress.passed)

    def solved(self) -> bool:
        """The checks after all user turns passed."""
        return bool(self._state.passed)

    def difference(self) -> tuple[Difference, ...]:
        """Attributes of the objects after the last user turn that ended.

        The benchmark's check of what a user turn showed (`response_checker`) is not among them.
        """
        turn = len(self._answers) - 1
        if turn < 0:
            return ()
        reached, wanted = plain(self._apis.objects), self._gold(self.task.id).after(turn)
        return differences(_untagged(reached), _untagged(wanted))

    @property
    def tools(self) -> list[ToolSpec]:
        """What the student has been shown: functions that are held back come with a user turn."""
        if self._task is None:
            return []
        entry = self._entry(self.task)
        later = _held_back(entry, after=len(self._answers))
        return [tool.spec for name, tool in self._tools.items() if name not in later]

    # Inside

    def _resume(self, task: Task) -> None:
        self._apis = Apis(self._state.objects)
        self._tools = _toolset(tuple(self._entry(task)["involved_classes"]))

    @classmethod
    def _entry(cls, task: Task) -> Record:
        return entries(cls.category)[int(task.id.rpartition("/")[2])]

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def _initial(cls, task_id: str) -> Objects:
        """The objects that all attempts and the gold calls start from, and copy when they call."""
        state = cls.load_task(task_id).state
        return initial_objects(state["classes"], state["config"], "long_context" in cls.category)

    def _execute(self, call: ToolCall) -> ToolResult:
        # As in the benchmark, a function runs even while it is held back: one gold program
        # (miss_func_49) needs that. What the student is told of tools is what it was shown.
        later = _held_back(self._entry(self.task), after=len(self._answers)) - {call.name}
        known = {n: t for n, t in self._tools.items() if n not in later} if later else self._tools
        _, result = execute(call, known, self)
        if call.error is None:
            self._state = replace(self._state, attempts=self._state.attempts + 1)
        return result

    def call_api(self, function: str, arguments: Mapping[str, Any]) -> str:
        """Call a function of the task and note its result; what the tools do.

        Raises:
            ToolError: The function raised, or returned nothing but an error.
        """
        try:
            text = self._apis.call(function, arguments)
        except ToolError as error:
            self._note(str(error))
            raise
        self._note(text)
        refused = _refusal(text)
        if refused is not None:
            raise ToolError(refused)
        return text

    def _note(self, text: str) -> None:
        self._state = replace(self._state, results=(*self._state.results, text))

    def _take_answer(self, text: str) -> None:
        """Check what was done for the user turn that ends."""
        turn, progress = len(self._answers), self._state
        passed = progress.passed
        if passed and self.task.turns[turn].gold:
            gold = self._gold(self.task.id)
            passed = progress.attempts > 0 and gold.agrees(
                turn, self._apis.objects, progress.results
            )
        self._state = replace(progress, attempts=0, passed=passed)
        super()._take_answer(text)

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def _gold(cls, task_id: str) -> _Gold:
        return _Gold(cls.load_task(task_id).turns, cls._initial(task_id))


def _untagged(value: Any) -> Any:
    """`plain` values without names of classes and what is private, at which no check looks."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict):
        value = {k: v for k, v in value[1].items() if not k.startswith("_")}
    if isinstance(value, dict):
        return {key: _untagged(item) for key, item in value.items()}
    return [_untagged(item) for item in value] if isinstance(value, list) else value


def _prompt(entry: Record, turn: int) -> str:
    """What the user says; functions that were held back are shown as in the prompting mode."""
    said = entry["question"][turn]
    if said:
        return "\n".join(message["content"] for message in said)
    names = entry["missed_function"][str(turn)]
    specs = {n: s for owner in entry["involved_classes"] for n, s in api_functions(owner).items()}
    shown = [specs[name].as_function() for name in names if name in specs]
    return f"{json.dumps(shown, ensure_ascii=False)}\n{MORE_FUNCTIONS}"


def _held_back(entry: Record, after: int) -> set[str]:
    """Functions that are not shown until a user turn after `after` (counted from 0)."""
    missed = entry.get("missed_function", {}).items()
    return {name for turn, names in missed if int(turn) > after for name in names}


def _refusal(text: str) -> str | None:
    """The message of a result that is nothing but an error."""
    if not text.startswith('{"error": "'):
        return None
    result = json.loads(text)
    return str(result["error"]) if len(result) == 1 else None


@functools.cache
def _toolset(classes: tuple[str, ...]) -> dict[str, Tool]:
    """The functions of the classes, in the order the benchmark lists them."""
    return {
        name: BenchmarkTool(functools.partial(_call, name), name, True, spec)
        for owner in classes
        for name, spec in api_functions(owner).items()
    }


def _call(name: str, env: BFCLMultiTurn, arguments: dict[str, Any]) -> str:
    return env.call_api(name, arguments)
