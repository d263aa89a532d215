"""`teacher=self`: the student itself, as it was or as it was on average, which reads a hint too.

It reads each row under a prompt of its own, the student's with a hint at its end; all tokens after
the prompt are the row's own, never tokenised again, and what it says of them is brought back to the
row's places. So the student learns to do without the hint what it would do with it (OPSD,
arXiv:2601.18734; SDFT, 2601.19897; SDPO, 2601.20802).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from journeyman.agents.errors import SettingError
from journeyman.agents.networks.adapters import is_adapted, twin
from journeyman.agents.students.contents import with_hint
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import HFPlayer, alike
from journeyman.agents.students.player import Conversation, Player, Stream, Trainable
from journeyman.agents.teachers.hints import Hint, hint_of
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.agents.teachers.signal import Detail, Signal, Teacher, silent
from journeyman.envs import Episode, Message, ToolEnv, env_class, make
from journeyman.envs.task import Task
from journeyman.tools import ToolSpec

WEIGHTS = ("frozen", "average")


class SelfTeacher(Teacher):
    """Judges by a copy of the student that is told more.

    Where there is nothing to tell, or the row would not fit the model's context with the hint in
    it, it is silent: such rows teach nothing.
    """

    gives = Detail.FULL

    def __init__(
        self,
        hint: str | Hint = "gold",
        weights: str = "frozen",
        rate: float = 0.05,
        batch_size: int = 16,
        top_k: int = 64,
    ) -> None:
        """Choose what it is told, and which weights it has.

        Args:
            hint: Name of a hint (see `hints.py`), or one made by a `_target_` of your own.
            weights: "frozen", as the student was at the start; or "average", a moving average.
            rate: Of the average: how far it goes towards the student before each rollout.
            batch_size: Rows that pass through it at once.
            top_k: Tokens that it names where its most probable ones are asked for.

        Raises:
            SettingError: No such hint or weights, or a number out of its range.
        """
        if weights not in WEIGHTS:
            raise SettingError(f"weights={weights}: expected {' or '.join(WEIGHTS)}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise SettingError(f"rate={rate}: expected above 0 and at most 1")
        for name, count in (("batch_size", batch_size), ("top_k", top_k)):
            if type(count) is not int or count < 1:
                raise SettingError(f"{name}={count}: expected a whole number, 1 or more")
        self._hint = hint_of(hint)
        self._moving = weights == "average"
        self._rate = float(rate)
        self._batch_size, self._top_k = batch_size, top_k
        self._taught: _Taught | None = None

    def check(self, student: Trainable) -> None:
        """Take the copy: the student is as it was at the start.

        Of a student with an adapter the base is shared, and the copy is one of the adapter.
        """
        model = twin(student.model)
        reader = LocalTeacher(model, student.dialect.tokenizer, self._batch_size, self._top_k)
        longest = int(model.config.get_text_config().max_position_embeddings)
        self._taught = _Taught(student, model, reader, _Prompts(student.dialect, self._hint))
        self._longest = longest

    def player(self, student: Trainable) -> Player | None:
        """See `Teacher.player`: with a hint that is known ahead it plays by it."""
        taught = self._known()
        if not self._hint.ahead:
            return None
        return HintedPlayer(alike(student, taught.model), taught.prompts, self._longest)

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        """See `Teacher.annotate`; states stay on the model's device."""
        taught = self._known()
        hinted = [taught.prompts.row(row, self._longest) for row in rows]
        read = [plain if told is None else told for plain, told in zip(rows, hinted, strict=True)]
        signals = taught.reader.annotate(read, detail)
        return [
            silent(row, signal) if told is None else _brought_back(row, told, signal)
            for row, told, signal in zip(rows, hinted, signals, strict=True)
        ]

    @torch.no_grad()
    def advance(self) -> None:
        """See `Teacher.advance`: the average goes a step towards the student.

        Raises:
            SettingError: The student got adapters, of which the average has none.
        """
        if not self._moving:
            return
        taught = self._known()
        theirs = dict(taught.student.model.named_parameters())
        ours = taught.own()
        if not ours.keys() <= theirs.keys():
            raise SettingError(
                "teacher.weights=average: the student is trained by adapters that it got after the "
                "average was begun (trainer.peft_config); expected student.lora, of which an "
                "average is taken, or teacher.weights=frozen, which is the student without them"
            )
        for name, own in ours.items():
            own.lerp_(theirs[name].to(own.device, own.dtype), self._rate)

    def state_dict(self) -> dict[str, Any]:
        """See `Teacher.state_dict`: the average; frozen weights are those the run starts from."""
        if not self._moving:
            return {}
        return {name: it.detach() for name, it in self._known().own().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Teacher.load_state_dict`.

        Raises:
            ValueError: The state is that of other weights.
        """
        ours = self._known().own() if self._moving else {}
        if ours.keys() != state.keys():
            raise ValueError(
                f"teacher=self keeps {len(ours)} tensors and was given {len(state)}: the "
                f"checkpoint is of another teacher.weights or another student"
            )
        for name, own in ours.items():
            own.copy_(state[name])

    def _known(self) -> _Taught:
        if self._taught is None:
            raise ValueError("teacher=self does not know its student yet: call check(student)")
        if is_adapted(self._taught.model):  # their base may have been moved
            self._taught.model.to(self._taught.student.model.device)
        return self._taught


@dataclass(frozen=True)
class _Taught:
    """What is known once the student is."""

    student: Trainable
    model: PreTrainedModel
    """The copy."""
    reader: LocalTeacher
    """Reads with it."""
    prompts: _Prompts

    def own(self) -> dict[str, torch.nn.Parameter]:
        """The copy's parameters by name, without those that it shares with the student."""
        theirs = set(map(id, self.student.model.parameters()))
        return {name: it for name, it in self.model.named_parameters() if id(it) not in theirs}


class _Prompts:
    """Prompts with the hint in them."""

    def __init__(self, dialect: Dialect, hint: Hint) -> None:
        self._dialect = dialect
        self._hint = hint
        self._env = functools.cache(make)

    def row(self, row: Episode, longest: int) -> Episode | None:
        """The same row under the hinted prompt; None if there is no hint, or no room for it.

        Args:
            row: Of the student.
            longest: Tokens that there is room for.
        """
        task = env_class(row.env_id).load_task(row.task_id)
        text = self._hint.tell(task, self._dialect, row)
        if text is None:
            return None
        tools = self._tools(row.env_id, task)
        plain, told = self._both(row.opening, tools, text)
        if row.tokens[: len(plain)] != plain:
            raise SettingError(
                f"teacher=self writes the prompt of {row.env_id} {row.task_id} anew to put a hint "
                f"into it, and it does not come out as it was played; expected an environment "
                f"whose prompt hangs on its task alone: choose another teacher=…"
            )
        if len(told) - len(plain) + len(row.tokens) > longest:
            return None
        new = len(told)
        rest = slice(len(plain), None)
        return dataclasses.replace(
            row,
            tokens=told + row.tokens[rest],
            logprobs=(0.0,) * new + row.logprobs[rest],
            mask=(False,) * new + row.mask[rest],
        )

    def before(self, conversation: Conversation, room: int) -> Conversation:
        """A conversation under the hinted prompt; as it is if the hint takes more than `room`."""
        text = self._hint.tell(conversation.env.task, self._dialect, None)
        said = conversation.messages
        first = next((i for i, it in enumerate(said) if it.role == "assistant"), len(said))
        plain, told = self._both(said[:first], conversation.env.tools, text or "")
        fits = len(told) - len(plain) <= room and conversation.tokens[: len(plain)] == plain
        if text is None or not fits:
            return conversation
        return dataclasses.replace(conversation, tokens=told + conversation.tokens[len(plain) :])

    def _both(
        self, opening: Sequence[Message], tools: Sequence[ToolSpec], text: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The prompt without and with the hint."""
        plain = self._dialect.opening(opening, tools)
        return tuple(plain), tuple(self._dialect.opening(with_hint(opening, text), tools))

    def _tools(self, env_id: str, task: Task) -> Sequence[ToolSpec]:
        """What the prompt of a task shows; an environment is opened only where that can differ."""
        env: ToolEnv = self._env(env_id)
        if type(env).tools is ToolEnv.tools:
            return env.tools
        try:
            env.begin(task)
            return env.tools
        finally:
            env.close()


def _brought_back(row: Episode, told: Episode, signal: Signal) -> Signal:
    """A signal of the hinted row at the row's own places; lists and states are of chosen tokens."""
    logprobs: Tensor = torch.zeros(len(row.tokens), dtype=signal.logprobs.dtype)
    chosen = torch.tensor(row.mask, dtype=torch.bool)
    logprobs[chosen] = signal.logprobs[torch.tensor(told.mask, dtype=torch.bool)]
    return dataclasses.replace(signal, logprobs=logprobs)


class HintedPlayer:
    """Plays as the student would if it were told; its episodes show the student's prompts.

    A quarter of the model's context, at least, is kept for hints; a conversation whose hint does
    not fit into it is played without.
    """

    def __init__(self, inner: HFPlayer, prompts: _Prompts, longest: int) -> None:
        """Play with `inner`, whose model reads at most `longest` tokens."""
        room = longest - inner.sampling.max_tokens
        self.dialect = inner.dialect
        self.max_context = min(inner.max_context, room - room // 4)
        self.sampling = inner.sampling
        self._inner = inner
        self._prompts = prompts
        self._longest = longest

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """See `Player.open`."""
        most = self._longest - self.sampling.max_tokens
        told = [
            self._prompts.before(it, most - max(len(it.tokens), self.max_context))
            for it in conversations
        ]
        return self._inner.open(told)

    def at(self, **changes: Any) -> HintedPlayer:
        """The same with other sampling."""
        return HintedPlayer(self._inner.at(**changes), self._prompts, self._longest)
