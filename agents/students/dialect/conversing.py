"""Conversations as token ids: what a student reads, how its next prompt continues, what it said.

Token-in token-out: the opening is rendered once; after each student turn only the NEW messages are
rendered and appended, so the student's own tokens are never decoded and encoded again. What others
say stays text, whatever it looks like (`contents.py`). A turn is read here too, from its prompt on:
which calls a model makes, and where its reasoning ends, is a matter of its family, not of the
environment.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import DialectError
from journeyman.agents.students.contents import ContentGuard, clean, mapped, unescaped
from journeyman.agents.students.dialect.template import (
    GOLD,
    REASONING_FIELDS,
    REFUSALS,
    RESULT,
    SAID,
    SPOKEN,
    THOUGHT,
    USER,
    ChatTemplate,
    after_answer,
    as_call,
    first_that_works,
    gold_in,
)
from journeyman.agents.students.dialect.turns import TurnWriter
from journeyman.envs import AssistantTurn, Message
from journeyman.envs.types import Role
from journeyman.tools import ToolCall, ToolSpec
from journeyman.tools.parsing import (
    MARKS,
    THINK,
    CallFormat,
    Marks,
    begun_in,
    get_parser,
    read_turn,
    reasoning_in,
)

ToolRender = Literal["full", "signature", "names"]
"""How the prompt shows the tools: JSON schemas through the chat template; one signature a line with
a note on the call form; or names only, for students trained on these very tools."""


class Dialect:
    """One model family's way to converse: chat template, call form, end of turn.

    A family is a subclass that names its call form and what tells its chat template from others;
    another package adds one under the entry-point group `journeyman.dialects`.
    """

    name: ClassVar[str] = "hermes"
    """What `student.dialect=` knows it by."""
    form: ClassVar[CallFormat] = get_parser("hermes")
    """How it writes calls."""
    marks: ClassVar[tuple[str, ...]] = ()
    """Texts of which any in a chat template tells this family from the others."""
    hint: ClassVar[str] = ""
    """How to call, for a model that was not trained on the form; empty derives it from the form."""
    reasoning: ClassVar[tuple[Marks, ...]] = (THINK,)
    """What it reasons between, beside the marks that its chat template names."""
    results_as: ClassVar[Role] = "tool"
    """Who tells it what tools said; "user" is also taken where the chat template knows no tools."""
    with_marks: ClassVar[tuple[str, ...]] = ()
    """Texts that all stand in its chat template as well, where one of `marks` does."""
    marks_in_vocabulary: ClassVar[bool] = False
    """Any of `marks` in the vocabulary tells it too, where no template does."""
    answers: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Marks before and after an answer, in a template that writes them."""
    call_ends: ClassVar[tuple[str, ...]] = ()
    """Marks of its calls that end a turn."""
    call_id: ClassVar[str] = "call{number:05d}"
    """Of a call, by its `name` and `number`, for templates that ask."""
    calls_before_results: ClassVar[bool] = False
    """The chat template tells a result by the call before it; others are asked both ways."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        render: ToolRender | None = "full",
        template_kwargs: Mapping[str, Any] | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        """Check the template.

        Args:
            tokenizer: Has the chat template.
            render: How the prompt shows the tools; None is "full" where the template shows tools,
                "signature" elsewhere.
            template_kwargs: Variables for the template, such as `enable_thinking` for Qwen3's.
            ends: Tokens that end a turn beside the tokenizer's own.

        Raises:
            DialectError: No such `render`; or the tokenizer has no chat template, or none that
                shows tools while `render` is "full", or no end-of-turn token that it ends turns by,
                or it cannot be rendered, or it cannot go on from a turn with what a tool said.
        """
        self._chat = ChatTemplate(tokenizer, template_kwargs or {})
        template = self._chat.text
        if render is None:
            render = "full" if self._chat.shows_tools else "signature"
        if render not in ("full", "signature", "names"):
            raise DialectError(f"tools render {render!r}: use full, signature or names")
        if render == "full" and not self._chat.shows_tools:
            raise DialectError(
                "the chat template shows no tools; use render=signature to list them in the system "
                "message"
            )
        self.tokenizer = tokenizer
        self.render = render
        self.template_kwargs = self._chat.variables
        self._reasoning = self._marks_of(template)
        own = [
            self.form.render(*[_EXAMPLE] * 2),
            *self.marks,
            *(m for a in self.answers for m in a),
        ]
        own += [mark for pair in self._reasoning for mark in (pair.open, pair.close, *pair.before)]
        self._guard = ContentGuard(tokenizer, "\n".join((*own, template)))
        eos_id = _token_id(tokenizer)
        try:
            probed = self._chat.render([USER, SPOKEN], False)
        except REFUSALS as error:
            raise DialectError(
                f"the chat template cannot be used with this tokenizer: {error}"
            ) from error
        # Files of other formats may name another end of turn than the model was trained with.
        self._closing, told = self._ending(probed)
        end = told or str(tokenizer.convert_ids_to_tokens(eos_id))
        self._ended = f"{SAID}{self._closing}{end}"
        if told is None and self._ended not in probed:
            raise DialectError(f"the chat template does not end an assistant's turn with {end!r}")
        self.eos_id = self._guard.ids[told.strip()] if told else eos_id
        after_user = self._chat.render([USER], True)
        self.results, after_tool, self.call_end_id = self._check_results()
        self.end_ids = tuple(dict.fromkeys((self.eos_id, eos_id, self.call_end_id, *ends)))
        """Tokens of which any ends a turn; the first is what the template ends turns by."""
        self._begins = tuple(begun_in(it, self._reasoning) for it in (after_user, after_tool))
        """The reasoning that prompts begin, after a user's message and after a tool's."""
        self._no_reasoning = self._without_reasoning(after_user, probed)
        self._answer = self._around_answer(after_user, probed)
        self.shown_call, gold = self._shown_gold()
        """How the template writes a call, or "" if it shows none."""
        self._around_calls = self._beside(gold)
        self._another_form = bool(self.shown_call) and gold is None
        """True if the template tells the student to call in another form than is read."""
        own += self._around_calls
        self._turns = TurnWriter(
            self._guard, self.form, self._around_calls, self._reasoning, [*own, *self.call_ends]
        )
        # Templates and tokenizers take their time, and forks of an episode hear the same again.
        self._piece = functools.lru_cache(1 << 16)(self._decode)
        self._reply = functools.lru_cache(1 << 12)(self._render_reply)

    @classmethod
    def mark_in(cls, template: str) -> str | None:
        """The mark that tells this family in a chat template."""
        if not all(mark in template for mark in cls.with_marks):
            return None
        return next((mark for mark in cls.marks if mark in template), None)

    def _marks_of(self, template: str) -> tuple[Marks, ...]:
        told = (pair for pair in MARKS if pair.open in template or pair.close in template)
        return tuple(dict.fromkeys((*self.reasoning, *told)))

    def _ending(self, probed: str) -> tuple[str, str | None]:
        """What closes an answer, and the token that ends its turn, with the space before it.

        A template may end a turn by nothing but the mark that begins the next message.
        """
        after = probed.rpartition(SAID)[2]
        if not after.strip():
            after = self._chat.shown([USER, SPOKEN, USER]).rpartition(SAID)[2]
        closers = [closer for _, closer in self.answers if closer and after.startswith(closer)]
        return "".join(closers[:1]), after_answer(after, self._guard, closers)[0]

    def _without_reasoning(self, prompt: str, probed: str) -> str:
        """How a turn begins that only ends the reasoning that its prompt began."""
        begun = self._begins[0] or self._begins[1]
        if begun is None:
            return ""
        written = probed[len(prompt) :].rpartition(SAID)[0]
        ended = probed.startswith(prompt) and written.strip() == begun.close
        return written if ended else f"\n{begun.close}\n\n"

    def _around_answer(self, prompt: str, probed: str) -> tuple[str, str]:
        """What an answer is written between, beside what its prompt has begun."""
        lead = probed[len(prompt) :].partition(SAID)[0] if probed.startswith(prompt) else ""
        opened = next((mark for mark, _ in self.answers if lead.endswith(mark)), "")
        return opened, self._closing

    def _shown_gold(self) -> tuple[str, ToolCall | None]:
        """The call that the template was asked to show, and what is read of it."""
        text = self._chat.calling(as_call(self._id_of(GOLD.name, 0), GOLD))
        if not text:
            return "", None
        prompt = self._chat.shown([USER], True)
        text = text.removeprefix(prompt) if text.startswith(prompt) else text
        found = gold_in(text, self.form)
        if found is None or found.error or (found.name, found.arguments) != (*_said_by(GOLD),):
            return text, None
        return text, found

    def _beside(self, gold: ToolCall | None) -> tuple[str, str]:
        """What the template writes around the calls of a turn, beside the form's own marks."""
        if gold is None or gold.span is None:
            return "", ""
        opened, found, closed = self.shown_call[slice(*gold.span)].partition(self.form.render(GOLD))
        return (opened, closed) if found else ("", "")

    def check_call(self) -> None:
        """A call that the chat template writes must be read as itself.

        Raises:
            DialectError: It is not; it says what was written and what was read.
        """
        if not self.shown_call or gold_in(self.shown_call, self.form) is not None:
            return
        read = ", ".join(map(_in_words, self.form(self.shown_call))) or "as an answer"
        raise DialectError(
            f"the chat template writes a call as {self.shown_call[-200:]!r}, of which the dialect "
            f"{self.name} reads {read}: name the dialect that reads it by student.dialect=, or any "
            f"(such as hermes) to have the student told to call in that form instead"
        )

    @classmethod
    def _id_of(cls, name: str, number: int) -> str:
        return cls.call_id.format(name=name, number=number)

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec] | None) -> list[int]:
        """Tokens of the first prompt, up to where the student starts to write.

        Args:
            messages: What is said before it writes.
            tools: What may be called; of None the prompt says nothing.
        """

        def shown(veil: Veil) -> str:
            conversation = [self._message(m, veil) for m in self._told_as(messages)]
            schemas: list[Any] | None = None
            if tools is None:
                return self._chat.render(conversation, True)
            if self.render == "full":
                schemas = [mapped(t.as_function(), veil, named=False) for t in tools]
                if self._another_form:
                    conversation = _told(conversation, self.how_to_call)
            else:
                conversation = _told(conversation, self._listing(tools, veil))
            return self._chat.render(conversation, True, schemas)

        return self._encode(shown)

    def reply(self, messages: Sequence[Message]) -> list[int]:
        """Tokens between the student's end-of-turn token and its next turn.

        Args:
            messages: The environment's new messages; at least one.
        """
        return list(self._reply(tuple(messages)))

    def _render_reply(self, messages: tuple[Message, ...]) -> list[int]:
        return self._encode(functools.partial(self._continuation, messages))

    def _encode(self, shown: Callable[[Veil], str]) -> list[int]:
        """Tokens of a rendered conversation, in which contents stay text.

        Args:
            shown: Renders it; all that is not our own goes through the function it is given.
        """
        veiled = shown(self._guard.veil)
        if self._guard.unveil(unescaped(veiled)) == veiled:
            return self._guard.encode(veiled)
        plain = shown(clean)
        # A template may ask for some of the words, or write JSON in ASCII.
        for told in (veiled, unescaped(veiled), shown(self._guard.veil_edges)):
            if self._guard.unveil(told) == plain:
                return self._guard.encode(plain, told)
        return self._guard.encode(plain, veiled)

    def _told_as(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Messages in the roles that the template knows; it may ask that they alternate."""
        folds = messages[0].role == "system" and not self._chat.takes_system
        if self.results != "user" and not folds:
            return messages
        told: list[Message] = []
        for message in messages:
            user = message.role == "system" or (message.role == "tool" and self.results == "user")
            role: Role = "user" if user and (folds or message.role == "tool") else message.role
            if told and told[-1].role == role:
                told[-1] = Message(role, f"{told[-1].content}\n{message.content}")
            else:
                told.append(Message(role, message.content))
        return told

    def _message(self, message: Message, veil: Veil) -> dict[str, str]:
        own = message.role == "assistant" and veil is not clean
        content = self._turns.veil(message.content) if own else veil(message.content)
        told = {"role": message.role, "content": content}
        return told if message.name is None else told | {"name": veil(message.name)}

    def _continuation(self, messages: Sequence[Message], veil: Veil) -> str:
        called = self.results == "calls" and messages[0].role == "tool"
        return self._continued(messages, veil, called)[1]

    def _continued(
        self, messages: Sequence[Message], veil: Veil, called: bool
    ) -> tuple[str | None, str]:
        """The token that ends the turn before some messages, and the text after it.

        Args:
            messages: What is said after a turn.
            veil: See `_encode`.
            called: The turn is one that calls, since the template tells results by their calls.
        """
        told = [self._message(m, veil) for m in self._told_as(messages)]
        if called:
            return self._after_calls(told)
        text = self._chat.render([USER, SPOKEN, *told], True)
        # What stands before the end of the probe's turn does not matter: a template may write the
        # last turn with reasoning (be it none) and earlier ones without.
        _, said, new = text.partition(SAID)
        if not said:
            raise DialectError("the chat template rewrites earlier turns; it cannot be continued")
        end, after = after_answer(new, self._guard, [self._closing])
        if end is None:
            raise DialectError("the chat template does not end a turn before the next message")
        return end, after

    def _after_calls(self, told: Sequence[dict[str, str]]) -> tuple[str | None, str]:
        calls = []
        for number, message in enumerate(told):
            if message["role"] != "tool":
                break
            name = message.get("name", GOLD.name)
            message["tool_call_id"] = self._id_of(name, number)
            call = ToolCall(name, GOLD.arguments)
            calls.append(as_call(message["tool_call_id"], call))
        text = self._chat.calling(*calls, results=told)
        call = gold_in(text, self.form)
        if call is None or call.span is None:
            raise DialectError("the chat template shows no call before a tool's result")
        last = call.span[1]
        # The mark that ends a call may be the one that ends its turn.
        ended = next((end for end in self.call_ends if text.endswith(end, 0, last)), None)
        end, after = after_answer(text[last:], self._guard, ())
        return (ended, text[last:]) if ended else (end, after)

    def _check_results(self) -> tuple[str, str, int]:
        """In whose name a result is told, how a prompt goes on after one, and what ends the call.

        Raises:
            DialectError: The template shows a tool's result in no way.
        """
        result = [Message("tool", RESULT, "probe")]

        def attempt(way: str) -> str:
            self.results = way
            end, text = self._continued(result, clean, way == "calls")
            if RESULT not in text:
                raise DialectError(
                    "the chat template does not show a message of the role tool; use a model whose "
                    "template does"
                )
            self.call_end_id = self._guard.ids[end.strip()] if end else self.eos_id
            return text

        ways = ["calls", "tool"] if self.calls_before_results else ["tool", "calls"]
        ways = [*ways, "user"] if self.results_as == "tool" else ["user"]
        way, text = first_that_works(ways, attempt)
        return way, text, self.call_end_id

    def read(
        self, text: str, tools: Sequence[ToolSpec] = (), prompt: Sequence[int] | None = None
    ) -> AssistantTurn:
        """What a turn says: its calls, malformed ones too, or else its answer.

        Args:
            text: The turn without its end-of-turn token.
            tools: What may be called; some forms have the types of arguments from there.
            prompt: The tokens before the turn, which may begin its reasoning. None takes what the
                chat template does as a rule.
        """
        form, begun = self.form, self._begun_in(prompt)
        calls, visible = read_turn(text, lambda it: form(it, tools), self._reasoning, begun)
        for mark in {mark for pair in self.answers for mark in pair} - {""}:
            visible = visible.replace(mark, " " * len(mark))
        return AssistantTurn(text, calls, visible)

    def reasoning_in(
        self, text: str, prompt: Sequence[int] | None = None
    ) -> tuple[tuple[int, int], ...]:
        """Where a turn reasons: half-open ranges of its characters, marks included; see `read`."""
        return reasoning_in(text, self.form, self._reasoning, self._begun_in(prompt))

    def _begun_in(self, prompt: Sequence[int] | None) -> Marks | None:
        """The reasoning that a prompt begins; only the template does so, no content."""
        if prompt is None or not any(self._begins):
            return self._begins[0]
        return begun_in(self._decode(*prompt[-_TAIL:]), self._reasoning)

    def spoken(self, text: str, prompt: Sequence[int] | None = None) -> str:
        """A turn that says a text and no more: reasoning that the prompt began is ended first.

        Args:
            text: What is said; one that has marks of reasoning is left as it is.
            prompt: See `read`.
        """
        opened, closed = self._answer
        if (opened or closed) and not self.form(text) and not _MARK.search(text):
            text = f"{opened}{text}{closed}"
        begun = self._begun_in(prompt)
        if begun is None or begun.open in text or begun.close in text:
            return text
        return self._no_reasoning + text

    def write_call(self, *calls: ToolCall) -> str:
        """The text that makes a call, or several in one turn."""
        opened, closed = self._around_calls
        return f"{opened}{self.form.render(*calls)}{closed}"

    def say(
        self,
        content: str,
        calls: Sequence[ToolCall] = (),
        reasoning: str = "",
        prompt: Sequence[int] | None = None,
    ) -> str:
        """A whole turn as the family writes it, of parts that somebody else may have written.

        Args:
            content: What is said, before any call.
            calls: What is called.
            reasoning: What is considered first.
            prompt: See `read`.

        Raises:
            DialectError: The chat template shows no reasoning; or the turn would not be read as
                these calls, or as an answer where there are none.
        """
        text = content
        if calls:
            written = self.write_call(*calls)
            text = self.joined(content, written) if content else written
        if reasoning:
            opened, closed = ("", "") if calls else self._answer
            text = self.reasoned(reasoning, f"{opened}{text}{closed}", prompt)
        else:
            text = self.spoken(text, prompt)
        found = self.read(text, (), prompt).calls
        wrong = next((call.error for call in found if call.error), None)
        # Written again they are the same text: a form of plain text knows no types.
        same = self.form.render(*found) == self.form.render(*calls)
        if wrong or not same or [call.name for call in found] != [call.name for call in calls]:
            names = ", ".join(call.name for call in found if call.name) or "none"
            raise DialectError(
                f"{self.name} cannot write this turn: of {len(calls)} calls the text "
                f"{text[:80]!r} would be read as {len(found)} ({wrong or names})"
            )
        return text

    def joined(self, content: str, calls: str) -> str:
        """What is said and the calls after it, as one turn has them."""
        return f"{content}{self._before_calls}{calls}"

    def reasoned(self, reasoning: str, text: str, prompt: Sequence[int] | None) -> str:
        """A turn that reasons first.

        Raises:
            DialectError: The chat template shows no reasoning.
        """
        if self._around_reasoning is None:
            raise DialectError(
                "it has reasoning, and the student's chat template shows none (or is told to leave "
                "it out by student.template_kwargs): take the field out of the data, or choose a "
                "student that reasons"
            )
        opened, begun, closed = self._around_reasoning
        if self._begun_in(prompt) is not None:
            opened = opened.removeprefix(begun)
        return f"{opened}{reasoning}{closed}{text}"

    def unmarked(self, reasoning: str) -> str:
        """Reasoning as a turn has it, without the marks and empty lines around it."""
        text = reasoning.strip()
        for pair in self._reasoning:
            text = text.removeprefix(pair.open).removesuffix(pair.close)
        return text.strip("\n")

    @functools.cached_property
    def _before_calls(self) -> str:
        """What the chat template writes between what is said and the calls of a turn."""
        written = self._chat.calling(as_call(self._id_of(GOLD.name, 0), GOLD), content=_BEFORE)
        after = written.partition(_BEFORE)[2]
        found = self.form(after)
        between = after[: found[0].span[0]] if found and found[0].span else "\n"
        return "\n" if between.strip() else between

    @functools.cached_property
    def _around_reasoning(self) -> tuple[str, str, str] | None:
        """What stands before and after reasoning, and what of the former a prompt may begin.

        None where the chat template shows no reasoning, or more around it than its marks.
        """
        fields = dict.fromkeys(REASONING_FIELDS, THOUGHT)
        written = self._chat.shown([USER, {**SPOKEN, **fields}])
        before, _, after = written.partition(THOUGHT)
        closed = after.partition(SAID)[0]
        prompt = self._chat.render([USER], True)
        begun = self._begins[0]
        head = len(prompt) if begun is None else prompt.rindex(begun.open)
        opened = before[head:]
        marks = {(pair.open, pair.close) for pair in self._reasoning}
        known = (opened.strip(), closed.strip()) in marks
        return (opened, prompt[head:], closed) if known and before[:head] == prompt[:head] else None

    def turn(self, text: str) -> list[int]:
        """Tokens of a whole student turn, end-of-turn token included (for demonstrations).

        The family's marks are control tokens where they call or end reasoning; in the arguments of
        a call, and all others anywhere, they are text.
        """
        end = self.eos_id
        if self.call_end_id != end and read_turn(text, self.form, self._reasoning)[0]:
            end = self.call_end_id
            for mark in self.call_ends:
                text = text.removesuffix(mark)
        return [*self._turns.encode(text), end]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of student tokens, markers kept."""
        return self._piece(ids[0]) if len(ids) == 1 else self._decode(*ids)

    def _decode(self, *ids: int) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _listing(self, tools: Sequence[ToolSpec], veil: Veil) -> str:
        if self.render == "names":
            return "Tools: " + " ".join(veil(t.name) for t in tools)
        lines = (veil(f"{t.signature()}: {t.description}") for t in tools)
        return "\n".join(("Tools:", *lines, self.how_to_call))

    @property
    def how_to_call(self) -> str:
        """One line for a model that was not trained on the form: how a call is written."""
        example = self.form.render(ToolCall("<tool>", {"<argument>": "<value>"}))
        return f"To use a tool, write only: {self.hint or example}"


Veil = Callable[[str], str]


def _told(conversation: list[dict[str, str]], more: str) -> list[dict[str, str]]:
    """A conversation whose system message ends with something more."""
    if conversation and conversation[0]["role"] == "system":
        content = f"{conversation[0]['content']}\n{more}"
        return [{"role": "system", "content": content}, *conversation[1:]]
    return [{"role": "system", "content": more}, *conversation]


_TAIL = 32
"""Tokens that hold a mark at the end of a prompt, be they bytes."""
_EXAMPLE = ToolCall("tool", {"argument": "value"})
_BEFORE = "contentbefore"
_MARK = re.compile(r"<\|[^|>]*\|>")
"""A mark of a turn that says itself what it is."""


def _said_by(call: ToolCall) -> tuple[str, Mapping[str, Any]]:
    return call.name, call.arguments


def _in_words(call: ToolCall) -> str:
    return (
        f"a call of {call.name!r}" if call.error is None else f"a call with an error ({call.error})"
    )


def _token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    token_id = tokenizer.eos_token_id
    if not isinstance(token_id, int):
        raise DialectError("the tokenizer has no single eos_token that ends a turn")
    return token_id
