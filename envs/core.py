"""`ToolEnv`: a Gymnasium environment whose actions are assistant turns.

A subclass names its tools and generates tasks; nothing else is needed (see `envs/tasks/bank.py`).
Its state is a value: tools return a new state, so a snapshot is a reference and a branch is free.
An environment whose state lives elsewhere keeps a value that says how to get there, and overrides
`open_state`, `_execute` and `close` (see `envs/tasks/python.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import gymnasium

from journeyman.envs.errors import BadActionError, EpisodeOverError, UnknownTaskError
from journeyman.envs.spaces import ActionSpace, MessagesSpace
from journeyman.envs.types import SPLITS, Message, Split
from journeyman.tools import (
    Tool,
    ToolCall,
    ToolResult,
    ToolSpec,
    execute,
    get_parser,
    render_hermes,
)

Action = str | Sequence[ToolCall]
Observation = tuple[Message, ...]

ANSWER = "Answer:"
SYSTEM = f"Use the tools. End with one line: {ANSWER} value"


@dataclass(frozen=True, slots=True)
class Task:
    """One problem with its solution."""

    id: str
    """"<split>/<index>"; with the environment id it names the task for good."""
    kind: str
    """The generator's name for this shape of task; evaluation breaks results down by it."""
    prompt: str
    """What the user says."""
    state: Any
    """Initial state."""
    gold: tuple[ToolCall, ...]
    """Calls that solve it."""
    answer: str
    """The value to report."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A branch point: opaque, immutable, reusable any number of times."""

    task: Task
    state: Any
    turns: int
    over: bool
    transcript: tuple[Message, ...]
    env: type[ToolEnv]
    """Whose branch point it is; no other class can restore it."""


class ToolEnv(gymnasium.Env[Observation, Action]):
    """A multi-turn tool environment over seeded tasks.

    The episode ends when the student speaks without calling a tool (its answer) or after
    `max_turns`. Reward is 1.0 at the end if the final state equals the one the gold calls lead to
    and the answer is right, else 0.0. One env plays one episode at a time; envs are cheap, make as
    many as needed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's protocol
        "render_modes": ["ansi"],
        "render_fps": 1,
    }
    toolset: ClassVar[tuple[Tool, ...]]
    """The tools, in the order the prompt lists them."""
    waits: ClassVar[bool] = False
    """True if a tool may wait for something outside this process: such steps run in threads."""
    system: ClassVar[str] = SYSTEM
    """System message; the agent side adds the tools in the form the model knows."""

    def __init__(
        self,
        split: Split = "train",
        max_turns: int = 12,
        parser: str = "hermes",
        render_mode: str | None = None,
    ) -> None:
        """Make an environment.

        Args:
            split: Where `reset` draws tasks from unless its options say otherwise.
            max_turns: Student turns before truncation.
            parser: Form of calls in text actions, a key of `journeyman.tools.parsing.PARSERS`.
            render_mode: None or "ansi" (`render()` returns the transcript).

        Raises:
            UnknownTaskError: No such split.
            ValueError: A turn limit below one, or another render mode.
            KeyError: No such parser.
        """
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns!r}: expected at least 1")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode={render_mode!r}: expected None or 'ansi'")
        self.split = _check_split(split)
        self.max_turns = max_turns
        self.render_mode = render_mode
        self.observation_space = MessagesSpace()
        self.action_space = ActionSpace()
        self._parse = get_parser(parser)
        self._tools = {t.name: t for t in self.toolset}
        if len(self._tools) != len(self.toolset):
            names = ", ".join(t.name for t in self.toolset)
            raise ValueError(f"{type(self).__name__} has two tools of one name: {names}")
        self._task: Task | None = None
        self._state: Any = None
        self._turns = 0
        self._over = True
        self._transcript: tuple[Message, ...] = ()

    # What a subclass writes

    @classmethod
    @abstractmethod
    def generate(cls, rng: random.Random, split: Split) -> Task:
        """Draw one task; the id is filled in by the caller. All randomness comes from `rng`."""

    @classmethod
    def outcome(cls, state: Any) -> Any:
        """The part of the state that decides success; by default all of it."""
        return state

    # Tasks

    @classmethod
    def tasks(cls, split: Split) -> Iterator[str]:
        """Task ids of a split, without end; splits share no task."""
        _check_split(split)
        return (f"{split}/{i}" for i in itertools.count())

    @classmethod
    def load_task(cls, task_id: str) -> Task:
        """The task of that id, generated anew; equal ids give equal tasks.

        Raises:
            UnknownTaskError: The id is not "<split>/<number>".
        """
        if not isinstance(task_id, str) or not _TASK_ID.fullmatch(task_id):
            raise UnknownTaskError(f"no task {task_id!r}: write <split>/<number>, e.g. test/0")
        split = _check_split(task_id.partition("/")[0])
        rng = random.Random(f"{cls.__name__}/{task_id}")
        return replace(cls.generate(rng, split), id=task_id)

    # Gymnasium

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds the choice of task.
            options: "task_id" names the task; or "split" says where to draw it from.

        Returns:
            The system and user messages, and info with the task id.

        Raises:
            UnknownTaskError: No such split or task.
            ValueError: No such option.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            # Unheard, a misspelt task_id would play a random task.
            if name not in ("task_id", "split"):
                raise ValueError(f"no option {name!r}; there are: task_id, split")
        task_id = options.get("task_id")
        if task_id is None:
            split = _check_split(options.get("split", self.split))
            task_id = f"{split}/{int(self.np_random.integers(2**31))}"
        return self.begin(self.load_task(task_id))

    def begin(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        """Start an episode on a given task: what `reset` does once it has chosen one."""
        self._over = True  # stays so if the state cannot be opened
        self._state = self.open_state(task)
        self._task, self._turns, self._over = task, 0, False
        messages = (Message("system", self.system), Message("user", task.prompt))
        self._transcript = messages
        return messages, {"task_id": task.id, "kind": task.kind}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play one assistant turn.

        Args:
            action: The assistant's raw text, or its calls.

        Returns:
            The tool results as new messages, reward, terminated, truncated, and info: "calls" (one
            `ToolResult` per attempted call) and "success".

        Raises:
            EpisodeOverError: No episode is running.
            BadActionError: The action is of another type.
            Exception: What a tool raised that is not a `ToolError`: the infrastructure failed. The
                episode is over then, since half a turn may have been played.
        """
        task = self._running()
        text, calls = self._read(action)
        self._over = True  # stays so if a tool breaks
        results = tuple(self._execute(call) for call in calls)
        self._turns += 1
        messages = tuple(Message("tool", r.content, r.call.name or None) for r in results)
        self._transcript += (Message("assistant", text), *messages)
        terminated = not calls
        truncated = not terminated and self._turns >= self.max_turns
        self._over = terminated or truncated
        success = terminated and self.solved(task, extract_answer(text))
        info = {"calls": results, "success": success, "task_id": task.id}
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

    def oracle(self) -> list[ToolCall]:
        """The gold calls of the current task."""
        return list(self.task.gold)

    def snapshot(self) -> Snapshot:
        """The current branch point."""
        return Snapshot(
            self.task, self._state, self._turns, self._over, self._transcript, type(self)
        )

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
        self._turns, self._over = snapshot.turns, snapshot.over
        self._transcript = snapshot.transcript

    def state_hash(self) -> str:
        """128-bit hex digest of task, state and turn; equal in every process."""
        return digest((self.task.id, self._state, self._turns, self._over))

    def solved(self, task: Task, answer: str) -> bool:
        """Final state and answer are those of the gold calls."""
        if normalise(answer) != normalise(task.answer):
            return False
        state = task.state
        for call in task.gold:
            state, _ = execute(call, self._tools, state)
        return digest(self.outcome(state)) == digest(self.outcome(self._state))

    def open_state(self, task: Task) -> Any:
        """The state an episode starts from."""
        return task.state

    def _execute(self, call: ToolCall) -> ToolResult:
        """Run one call and take over the state it leads to."""
        self._state, result = execute(call, self._tools, self._state)
        return result

    def _running(self) -> Task:
        if self._task is None or self._over:
            raise EpisodeOverError("the episode is over: call reset() before step()")
        return self._task

    def _read(self, action: Action) -> tuple[str, Sequence[ToolCall]]:
        if isinstance(action, str):
            return action, self._parse(action)
        if isinstance(action, Sequence) and not isinstance(action, bytes):
            calls = [c for c in action if isinstance(c, ToolCall)]
            if len(calls) == len(action):
                return "\n".join(render_hermes(c) for c in calls), calls
        raise BadActionError(
            f"an action is the assistant's text or a list of ToolCall, not {type(action).__name__}"
        )


_TASK_ID = re.compile(r"[a-z]+/(0|[1-9][0-9]*)", re.ASCII)


def _check_split(split: str) -> Split:
    for known in SPLITS:
        if split == known:
            return known
    raise UnknownTaskError(f"no split {split!r}; there are: {', '.join(SPLITS)}")


def extract_answer(text: str) -> str:
    """What follows the last "Answer:", or the whole text if there is none."""
    return text.rpartition(ANSWER)[2].strip()


_QUOTES = "\"' "


def normalise(answer: str) -> str:
    """Case, outer quotes and a final full stop do not decide an answer."""
    text = " ".join(answer.split()).strip(_QUOTES)
    return text.rstrip(".").strip(_QUOTES).casefold()


def digest(value: Any) -> str:
    """128-bit hex digest of a frozen value, equal in every process."""
    return hashlib.blake2b(canonical(value).encode(), digest_size=16).hexdigest()


def canonical(value: Any) -> str:
    """A text form of dataclasses, mappings, sets, sequences and scalars.

    Injective but for one thing: a list and a tuple of equal items are the same sequence.
    """
    if is_dataclass(value) and not isinstance(value, type):
        inner = ",".join(canonical(getattr(value, f.name)) for f in fields(value))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, Mapping):
        items = sorted((canonical(k), canonical(v)) for k, v in value.items())
        return "{" + ",".join(f"{k}:{v}" for k, v in items) + "}"
    if isinstance(value, (set, frozenset)):
        return "<" + ",".join(sorted(canonical(v) for v in value)) + ">"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(canonical(v) for v in value) + "]"
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return repr(value)
    raise TypeError(
        f"cannot hash a {type(value).__name__}: build states from dataclasses, mappings, sets, "
        f"sequences, str, int, float, bool, bytes and None"
    )
