"""Whether a tokenizer's student can be played: what its dialect is, and what it was tried on.

Needs a tokenizer and no weights: random calls are written and read, as the dialect writes them and
as the chat template does, and a conversation in pieces is held against the whole one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import DialectError
from journeyman.agents.students.dialect.conversing import Dialect
from journeyman.agents.students.dialect.families import how_told
from journeyman.agents.students.dialect.template import REFUSALS, as_call
from journeyman.envs import Message
from journeyman.tools import ToolCall, ToolSpec

RANDOM_CALLS = 500


@dataclass(frozen=True, slots=True)
class CallTrips:
    """What became of random calls."""

    same: int = 0
    """Were read as they were meant."""
    refused: int = 0
    """Cannot be said in the form, which the dialect notices: none is written."""
    wrong: tuple[str, ...] = ()
    """Were read as something else, or wrote a control token that is not the call's."""


@dataclass(frozen=True, slots=True)
class StreamCheck:
    """A conversation in pieces, beside the chat template's rendering of the whole of it."""

    equal: bool
    where: str = ""
    """The first difference, in words."""


@dataclass(frozen=True, slots=True)
class DialectCheck:
    """What `journeyman models check` found."""

    told_by: str = ""
    dialect: Dialect | None = None
    refusal: str = ""
    """Why the student cannot be played; "" if it can."""
    written: CallTrips = field(default_factory=CallTrips)
    """Calls as the dialect writes them."""
    templated: CallTrips | None = None
    """Calls as the chat template writes them; None if it writes none."""
    stream: StreamCheck | None = None

    @property
    def playable(self) -> bool:
        """A student with this tokenizer can be played."""
        return not self.refusal and not self.written.wrong

    def rows(self) -> Iterator[tuple[str, str]]:
        """What was looked at, and what was found."""
        dialect = self.dialect
        if dialect is not None:
            summary = (type(dialect).__doc__ or "").strip().partition("\n")[0]
            yield "family", summary
            yield "dialect", dialect.name
            yield "told by", self.told_by
            yield from _features(dialect)
            tokens = (str(dialect.tokenizer.convert_ids_to_tokens(i)) for i in dialect.end_ids)
            yield "a turn ends by", " ".join(tokens)
            yield "calls written and read", _in_words(self.written)
            if self.templated is not None:
                yield "calls of the template read", _in_words(self.templated)
            if self.stream is not None:
                yield (
                    "stream equals the template",
                    "yes" if self.stream.equal else (f"no: {self.stream.where}"),
                )
        yield (
            "can be played",
            f"no: {self.refusal}"
            if self.refusal
            else ("yes" if self.playable else f"no: {self.written.wrong[0]}"),
        )


def _features(dialect: Dialect) -> Iterator[tuple[str, str]]:
    shown = {"full": "as schemas", "signature": "by signature", "names": "by name"}
    yield "tools are shown", shown[dialect.render]
    yield "the template shows calls", "yes" if dialect.calling.shown else "no"
    told = {
        "tool": "as messages of the tool",
        "calls": "as messages of the tool, after the call they answer",
        "user": "in the user's turn",
    }
    yield "results are told", told[dialect.telling.results]
    yield "system message", "yes" if dialect.chat.takes_system else "in the user's turn"
    pairs = (f"{pair.open} … {pair.close}" for pair in dialect.reasons)
    begun = "; a prompt begins it" if dialect.begins_reasoning else ""
    yield "reasons between", " or ".join(pairs) + begun
    switch = next((it for it in _SWITCHES if it in dialect.chat.variables_asked), "")
    yield "thinking switch", f"student.template_kwargs.{switch}" if switch else "none"


_SWITCHES = ("enable_thinking", "reasoning_effort", "thinking", "reasoning")


def _in_words(trips: CallTrips) -> str:
    total = trips.same + trips.refused + len(trips.wrong)
    words = f"{trips.same} of {total}"
    if trips.refused:
        words += f"; {trips.refused} cannot be said in the form and are refused"
    if trips.wrong:
        words += f"; {trips.wrong[0]}"
    return words


def check(
    tokenizer: PreTrainedTokenizerBase,
    name: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    ends: Sequence[int] = (),
    calls: int = RANDOM_CALLS,
) -> DialectCheck:
    """Try a tokenizer's dialect.

    Args:
        tokenizer: Has the chat template.
        name: Of the dialect; None asks the tokenizer.
        template_kwargs: For the chat template.
        ends: Tokens of the model's generation config.
        calls: How many random calls; always the same ones.

    Raises:
        DialectError: No dialect of that name.
    """
    family, told_by = how_told(tokenizer, name)
    try:
        dialect = family(tokenizer, None, template_kwargs, ends)
    except DialectError as error:
        return DialectCheck(refusal=str(error))
    if name is None:
        try:
            dialect.calling.check()
        except DialectError as error:
            return DialectCheck(told_by, dialect, str(error))
    given = list(random_calls(dialect, calls))
    try:
        streamed = stream(dialect)
    except DialectError as error:
        return DialectCheck(told_by, dialect, str(error))
    return DialectCheck(
        told_by,
        dialect,
        "",
        written_trips(dialect, given),
        template_trips(dialect, given) if dialect.calling.shown else None,
        streamed,
    )


def random_calls(dialect: Dialect, count: int, seed: int = 0) -> Iterator[ToolCall]:
    """Calls of nested values, in whose texts the dialect's own marks stand."""
    rng = random.Random(seed)
    marks = [*dialect.control_tokens, *dialect.write_call(_EXAMPLE).split()]
    for _ in range(count):
        names = rng.sample(_KEYS, rng.randrange(4))
        arguments = {key: _value(rng, marks, 0) for key in names}
        yield ToolCall(f"{rng.choice(_KEYS)}_{rng.randrange(99)}", arguments)


_EXAMPLE = ToolCall("tool", {"argument": "value", "other": 1})
_KEYS = ("city", "days", "units", "place", "text", "limit", "from", "arguments")
_WORDS = (
    "Zoë",
    "東京",
    "🦜",
    "a\nb",
    '"quoted"',
    "it's",
    "\\d",
    "{}",
    "[1]",
    "</b>",
    " ",
    "x: 1, y",
)


def _value(rng: random.Random, marks: Sequence[str], depth: int) -> Any:
    kind = rng.randrange(8 if depth < 2 else 6)
    if kind < 3:
        words = (*_WORDS, *(rng.choice(marks) for _ in _WORDS))
        return "".join(rng.choice(words) for _ in range(rng.randrange(4)))
    if kind < 6:
        return rng.choice((None, True, False, rng.randrange(-999, 999), rng.randrange(999) / 8))
    if kind == 6:
        return [_value(rng, marks, depth + 1) for _ in range(rng.randrange(3))]
    return {key: _value(rng, marks, depth + 1) for key in rng.sample(_KEYS, rng.randrange(3))}


_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def spec_of(call: ToolCall) -> ToolSpec:
    """A tool whose schema gives each argument the type that it has in a call."""
    kinds = {key: {"type": _TYPES[type(value)]} for key, value in call.arguments.items()}
    return ToolSpec(call.name, "", {"type": "object", "properties": kinds})


def written_trips(dialect: Dialect, calls: Sequence[ToolCall]) -> CallTrips:
    """Each call as the dialect writes it: read again, and as tokens."""
    same, refused = 0, 0
    wrong: list[str] = []
    own = set(dialect.controls(dialect.turn(dialect.say("", [_EXAMPLE]))))
    for call in calls:
        try:
            text = dialect.say("", [call])
        except DialectError:
            refused += 1
            continue
        found = dialect.read(text, [spec_of(call)]).calls
        tokens = dialect.turn(text)
        if [(it.name, it.arguments) for it in found] != [(call.name, call.arguments)]:
            wrong.append(f"{text!r} is read as {[(it.name, it.arguments) for it in found]}")
        elif not text.startswith(dialect.decode(tokens[:-1])):
            wrong.append(f"{text!r} becomes {dialect.decode(tokens)!r}")
        elif not own.issuperset(dialect.controls(tokens)):
            wrong.append(f"an argument of {text!r} becomes a control token")
        else:
            same += 1
    return CallTrips(same, refused, tuple(wrong))


def shown(dialect: Dialect, call: ToolCall) -> str:
    """A turn of one call as the chat template writes it, after a user's message; "" if not."""
    return dialect.chat.calling(as_call(dialect.id_of(call.name, 0), call), must_show="")


def template_trips(dialect: Dialect, calls: Sequence[ToolCall]) -> CallTrips:
    """Each call as the chat template writes it, read."""
    same, wrong = 0, []
    for call in calls:
        text = shown(dialect, call)
        found = dialect.form(text, [spec_of(call)])
        if any((it.name, it.arguments) == (call.name, call.arguments) for it in found):
            same += 1
        else:
            wrong.append(f"of the others it writes the first as {text[-120:]!r}")
    return CallTrips(same, 0, tuple(wrong))


_TOOLS = (
    ToolSpec(
        "weather",
        "The weather.",
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    ),
)
_OPENING = (Message("system", "Be brief."), Message("user", "Is it warm in Oslo?"))
_PARTS: tuple[Message | ToolCall, ...] = (
    ToolCall("weather", {"city": "Oslo", "days": 2}),
    Message("tool", "21 degrees", "weather"),
    Message("assistant", "It is."),
    Message("user", "And in Zürich?"),
    ToolCall("weather", {"city": "Zürich", "days": 1}),
    Message("tool", "9 degrees", "weather"),
    Message("assistant", "No."),
)


def stream(dialect: Dialect) -> StreamCheck:
    """A conversation of two questions with a call each, in pieces and as a whole."""
    tokens = dialect.opening(_OPENING, _TOOLS)
    places = [(len(tokens), "the opening")]
    for part in _PARTS:
        if isinstance(part, ToolCall):
            tokens += dialect.turn(dialect.say("", [part], prompt=tokens))
        elif part.role == "assistant":
            tokens += dialect.turn(dialect.say(part.content, prompt=tokens))
        else:
            tokens += dialect.reply([part])
        role = "a call" if isinstance(part, ToolCall) else f"a message of the {part.role}"
        places.append((len(tokens), role))
    try:
        whole = _whole(dialect)
    except REFUSALS as error:
        return StreamCheck(False, f"the template refuses the whole conversation: {error}")
    shared = next(
        (i for i, (a, b) in enumerate(zip(tokens, whole, strict=False)) if a != b),
        min(len(tokens), len(whole)),
    )
    left = dialect.decode(whole[shared:])
    for end in dialect.end_ids:  # some templates end the last turn once more
        left = left.replace(dialect.decode([end]), "")
    # And in some what ends a turn begins the next message, of which there is none.
    if shared >= len(tokens) - 1 and not left.strip():
        return StreamCheck(True)
    where = next((role for end, role in places if shared < end), places[-1][1])
    ours, theirs = (dialect.decode(ids[shared:])[:40] for ids in (tokens, whole))
    why = f"in {where} the template has {theirs!r} where the stream has {ours!r}"
    if _bare(dialect, tokens) == _bare(dialect, whole):
        return StreamCheck(False, f"only marks of reasoning differ: {why}")
    return StreamCheck(False, why)


def _bare(dialect: Dialect, ids: Sequence[int]) -> str:
    """A conversation without its blanks, its marks of reasoning, and the end of its last turn."""
    text = dialect.decode(ids)
    for pair in dialect.reasons:
        text = text.replace(pair.open, "").replace(pair.close, "")
    text = "".join(text.split())
    for end in dialect.end_ids:
        text = text.removesuffix(dialect.decode([end]))
    return text


def _whole(dialect: Dialect) -> list[int]:
    """Tokens of the conversation as the chat template has it."""
    told, prompt, schemas = dialect.prompt(_OPENING, _TOOLS, prompt=False)
    for part in _PARTS:
        if not isinstance(part, ToolCall):
            message = dialect.message(part)
            if part.role == "tool":
                message["tool_call_id"] = dialect.id_of(part.name or "", 0)
            told += dialect.telling.alternating([message])
        elif dialect.calling.shown:
            calls = [as_call(dialect.id_of(part.name, 0), part)]
            told.append({"role": "assistant", "content": "", "tool_calls": calls})
        else:
            told.append({"role": "assistant", "content": dialect.write_call(part)})
    return dialect.tokenized(dialect.chat.with_calls(told, prompt, schemas))
