"""A teacher with another tokenizer: it reads the conversation as its own family writes it.

Its prompt is by its own chat template; the student's turns stand in it as the student wrote them,
calls in the student's form, which the prompt explains where the template tells another. So both
judge the same characters. What can be compared then are spans of them (`spans.py`): the
log-probability of a text is the sum over its tokens, however a model cuts it up. (TRL's GOLD merges
tokens in the same way where two tokenizers disagree; ULD, arXiv:2402.12030, compares sorted
probabilities instead, whose tokens need not be the same.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import DialectError, SettingError, VocabularyMismatchError
from journeyman.agents.networks.loading import load_model, load_tokenizer
from journeyman.agents.students.dialect import Dialect, ToolRender
from journeyman.agents.students.player import Trainable
from journeyman.agents.students.settings import recall
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.agents.teachers.signal import Detail, Signal, Teacher
from journeyman.agents.teachers.spans import char_spans, token_edges
from journeyman.envs import Episode, Message, Step
from journeyman.tools import ToolCall

Span = tuple[int, int]

_SAMPLE = ToolCall("find_order", {"city": "Zürich  (old)", "count": 1024})


@dataclass(frozen=True)
class _Retold:
    """A row as the teacher reads it."""

    row: Episode
    """In its tokens; those that are compared are the chosen ones."""
    spans: dict[Span, Span]
    """The student's tokens -> the teacher's."""


class CrossTokenizerTeacher(Teacher):
    """Judges spans of a student's turns, whatever its own tokenizer."""

    gives: ClassVar[Detail] = Detail.SPANS

    def __init__(
        self,
        reader: Teacher,
        tokenizer: PreTrainedTokenizerBase,
        longest: int,
        render: ToolRender | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a reader of token rows; it is known to a student by `check`.

        Args:
            reader: Gives log-probabilities of the teacher's own tokens.
            tokenizer: The teacher's, with its chat template.
            longest: Row that the reader can read; turns that end beyond it are not taught.
            render: How its prompt shows the tools (see `Dialect`).
            template_kwargs: Variables for its chat template.
        """
        self._reader = reader
        self._tokenizer = tokenizer
        self._longest = longest
        self._render = render
        self._template_kwargs = template_kwargs
        self._student: Dialect | None = None
        self._own: Dialect | None = None

    def check(self, student: Trainable) -> None:
        """See `Teacher.check`.

        Raises:
            DialectError: Its chat template does not carry an episode.
            SettingError: One of the two chat templates begins reasoning, and the other does not.
            VocabularyMismatchError: Its tokenizer changes texts, so that nothing can be compared.
        """
        own = self._dialect(type(student.dialect))
        begun = [_begins_reasoning(dialect) for dialect in (student.dialect, own)]
        if begun[0] != begun[1]:
            with_it, without = ("student", "teacher") if any(begun[0]) else ("teacher", "student")
            raise SettingError(
                f"the chat template of the {with_it} begins reasoning for it and the {without}'s "
                f"does not: what they read would differ; set {with_it}.template_kwargs or "
                f"{without}.template_kwargs (such as {{enable_thinking: false}})"
            )
        text = f"First\n\tthen…\n{own.write_call(_SAMPLE)}"
        tokens = own.turn(text)[:-1]
        if not token_edges(tokens, own.decode, text):
            raise VocabularyMismatchError(
                f"the teacher's tokenizer gives {own.decode(tokens)!r} for {text!r}: texts that it "
                f"changes cannot be compared"
            )
        self._student, self._own = student.dialect, own

    def _dialect(self, family: type[Dialect]) -> Dialect:
        """Its chat template, and the student's call form."""
        try:
            return family(self._tokenizer, self._render, self._template_kwargs)
        except DialectError:  # Gemma's template knows no tools: the user says what they said
            told: type[Dialect] = type(family.__name__, (family,), {"results_as": "user"})
            return told(self._tokenizer, self._render, self._template_kwargs)

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        """See `Teacher.annotate`.

        `logprobs` are such that over each span they add up to the teacher's; where nothing can be
        compared they are the student's own. Sums are in float64.
        """
        retold = [self._retell(row) for row in rows]
        read = [it.row for it in retold if it.spans]
        told = iter(self._reader.annotate(read, Detail.SAMPLED) if read else ())
        return [
            _signal(row, it.spans, next(told) if it.spans else None)
            for row, it in zip(rows, retold, strict=True)
        ]

    def _retell(self, row: Episode) -> _Retold:
        assert self._own is not None  # `check` saw to it
        tokens = self._own.opening(row.opening, row.tools)
        spans: dict[Span, Span] = {}
        for step in row.steps:
            turn = self._own.turn(step.text)
            if len(tokens) + len(turn) > self._longest:
                break
            spans |= self._common(row, step, turn, len(tokens))
            tokens += turn
            if step is not row.steps[-1]:
                tokens += self._own.reply(step.reply)
        mask = [False] * len(tokens)
        for start, end in spans.values():
            mask[start:end] = [True] * (end - start)
        # What comes after the last turn that is compared need not be read.
        size = max((end for _, end in spans.values()), default=0)
        nothing = (0.0,) * size
        retold = Episode(
            row.env_id, row.task_id, tuple(tokens[:size]), nothing, tuple(mask[:size]), (), row.stop
        )
        return _Retold(retold, spans)

    def _common(
        self, row: Episode, step: Step, turn: Sequence[int], place: int
    ) -> dict[Span, Span]:
        """Spans of one turn: the student's tokens -> the teacher's, whose turn begins at `place`.

        A turn that was not chosen has none, nor one with pieces of characters, which no other
        tokenizer can write.
        """
        assert self._own is not None and self._student is not None
        start, end = step.span
        if not any(row.mask[start:end]) or "\N{REPLACEMENT CHARACTER}" in step.text:
            return {}
        ours = token_edges(row.tokens[start : end - 1], self._student.decode, step.text)
        theirs = token_edges(turn[:-1], self._own.decode, step.text)
        if not (ours and theirs):
            return {}
        spans = {
            (start + ours[first], start + ours[last]): (place + theirs[first], place + theirs[last])
            for first, last in char_spans(step, ours.keys() & theirs.keys())
        }
        if row.mask[end - 1]:  # the student ended its turn by itself
            spans[end - 1, end] = (place + len(turn) - 1, place + len(turn))
        return spans


def _begins_reasoning(dialect: Dialect) -> tuple[bool, bool]:
    """True where a prompt begins the reasoning of the turn: after a user, and after a tool."""
    after_tool = dialect.reply([Message("tool", "1", "probe")])
    return dialect.spoken("a") != "a", dialect.spoken("a", after_tool) != "a"


def _signal(row: Episode, spans: Mapping[Span, Span], read: Signal | None) -> Signal:
    own = torch.tensor(row.logprobs, dtype=torch.float64)
    numbers = torch.full((len(row.tokens),), -1)
    told = own.clone()
    for number, (ours, theirs) in enumerate(spans.items()):
        assert read is not None
        numbers[slice(*ours)] = number
        teacher = read.logprobs[slice(*theirs)].double().sum()
        # Spread evenly: whoever reads tokens finds the span's sum in them.
        told[slice(*ours)] += (teacher - own[slice(*ours)].sum()) / (ours[1] - ours[0])
    heard = numbers >= 0
    chosen = torch.tensor(row.mask, dtype=torch.bool)
    return Signal(told, spans=numbers, spoken=None if heard[chosen].all() else heard)


def load_cross_tokenizer_teacher(
    model: str,
    render: ToolRender | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    dtype: str | None = None,
    device: str | None = None,
) -> CrossTokenizerTeacher:
    """A teacher with another tokenizer, by model name; what is None is as it was trained here.

    Raises:
        ModelNotFoundError: No such model here.
        SettingError: A value is out of its range.
    """
    if type(batch_size) is not int or batch_size < 1:  # before the model is loaded
        raise SettingError(f"batch_size={batch_size}: expected a whole number, 1 or more")
    ways = recall(model, {"render": render, "template_kwargs": template_kwargs})
    loaded = load_model(model, dtype, device)
    tokenizer = load_tokenizer(model)
    reader = LocalTeacher(loaded, tokenizer, batch_size)
    longest = int(loaded.config.get_text_config().max_position_embeddings)
    return CrossTokenizerTeacher(reader, tokenizer, longest, **ways)
