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
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import DialectError
from journeyman.agents.students.contents import ContentGuard, clean, mapped, unescaped
from journeyman.agents.students.dialect.calling import Calling
from journeyman.agents.students.dialect.telling import Telling
from journeyman.agents.students.dialect.template import (
    REFUSALS,
    SAID,
    SPOKEN,
    USER,
    ChatTemplate,
)
from journeyman.agents.students.dialect.thinking import Thinking, marks_of
from journeyman.agents.students.dialect.traits import FamilyTraits
from journeyman.agents.students.dialect.turns import TurnWriter
from journeyman.envs import AssistantTurn, Message
from journeyman.tools import ToolCall, ToolSpec
from journeyman.tools.parsing import (
    Marks,
    begun_in,
    read_turn,
    reasoning_in,
)

ToolRender = Literal["full", "signature", "names"]
"""How the prompt shows the tools: JSON schemas through the chat template; one signature a line with
a note on the call form; or names only, for students trained on these very tools."""


class Dialect(FamilyTraits):
    """One model family's way to converse: chat template, call form, end of turn.

    A family is a subclass that names its call form and what tells its chat template from others;
    another package adds one under the entry-point group `journeyman.dialects`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        render: ToolRender | None = "full",
        template_kwargs: Mapping[str, Any] | None = None,
        ends: Sequence[int] = (),
        foreign: bool = False,
    ) -> None:
        """Check the template.

        Args:
            tokenizer: Has the chat template.
            render: How the prompt shows the tools; None is "full" where the template shows tools,
                "signature" elsewhere.
            template_kwargs: Variables for the template, such as `enable_thinking` for Qwen3's.
            ends: Tokens that end a turn beside the tokenizer's own.
            foreign: The template is another family's: the prompt names the form to call in.

        Raises:
            DialectError: No such `render`; or the tokenizer has no chat template, or none that
                shows tools while `render` is "full", or no end-of-turn token that it ends turns by,
                or it cannot be rendered, or it cannot go on from a turn with what a tool said.
        """
        self.chat = ChatTemplate(tokenizer, template_kwargs or {})
        template = self.chat.text
        if render is None:
            render = "full" if self.chat.shows_tools else "signature"
        if render not in ("full", "signature", "names"):
            raise DialectError(f"tools render {render!r}: use full, signature or names")
        if render == "full" and not self.chat.shows_tools:
            raise DialectError(
                "the chat template shows no tools; use render=signature to list them in the system "
                "message"
            )
        self.tokenizer = tokenizer
        self.render = render
        self.template_kwargs = self.chat.variables
        self.reasons = marks_of(template, self.reasoning)
        own = [
            self.form.render(*[_EXAMPLE] * 2),
            *self.marks,
            *(m for a in self.answers for m in a),
        ]
        own += [mark for pair in self.reasons for mark in (pair.open, pair.close, *pair.before)]
        self._guard = ContentGuard(tokenizer, "\n".join((*own, template)))
        eos_id = _token_id(tokenizer)
        try:
            probed = self.chat.render([USER, SPOKEN], False)
        except REFUSALS as error:
            raise DialectError(
                f"the chat template cannot be used with this tokenizer: {error}"
            ) from error
        eos = str(tokenizer.convert_ids_to_tokens(eos_id))
        self.telling = Telling(self.chat, type(self), self._guard, probed, eos)
        # Files of other formats may name another end of turn than the model was trained with.
        self.eos_id, self.call_end_id = (
            self._guard.ids.get(end.strip(), eos_id)
            for end in (self.telling.end, self.telling.call_end)
        )
        self.end_ids = tuple(dict.fromkeys((self.eos_id, eos_id, self.call_end_id, *ends)))
        """Tokens of which any ends a turn; the first is what the template ends turns by."""
        self._answer = self._around_answer(self.chat.render([USER], True), probed)
        self._thinking = Thinking(
            self.chat, self.reasons, self.telling.after_result, probed, self._answer[0]
        )
        self._begins = self._thinking.begins
        self.calling = Calling(self.chat, type(self), foreign)
        self._foreign = foreign
        own += [*self.calling.around, *self.call_ends]
        self._turns = TurnWriter(self._guard, self.form, self.calling.around, self.reasons, own)
        # Templates and tokenizers take their time, and forks of an episode hear the same again.
        self._piece = functools.lru_cache(1 << 16)(self._decode)
        self._reply = functools.lru_cache(1 << 12)(self._render_reply)

    def __reduce__(self) -> tuple[type[Dialect], tuple[Any, ...]]:
        """What is pickled is what it was made of: all else is found out by rendering."""
        made = (self.tokenizer, self.render, self.template_kwargs, self.end_ids, self._foreign)
        return type(self), made

    def _around_answer(self, prompt: str, probed: str) -> tuple[str, str]:
        """What an answer is written between, beside what its prompt has begun."""
        # A prompt may have more than the turn is written with later, such as reasoning, be it none.
        lead = probed.partition(SAID)[0]
        opened = next(
            (m for m, _ in self.answers if lead.endswith(m) and not prompt.endswith(m)), ""
        )
        return opened, self.telling.closing

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec] | None) -> list[int]:
        """Tokens of the first prompt, up to where the student starts to write.

        Args:
            messages: What is said before it writes.
            tools: What may be called; of None the prompt says nothing.

        Raises:
            DialectError: The chat template refuses them.
        """
        return self._encode(lambda veil: self.chat.opened(*self.prompt(messages, tools, veil)))

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] | None,
        veil: Veil = clean,
        prompt: bool = True,
    ) -> tuple[list[Any], bool, list[Any] | None]:
        """What the template is given for a first prompt: messages, `prompt`, and schemas."""
        conversation = [self.message(m, veil) for m in messages]
        schemas: list[Any] | None = None
        if tools is not None and self.render == "full":
            schemas = [mapped(t.as_function(), veil, named=False) for t in tools]
            if self.chat.shows_tools_with_system:
                conversation = _told(conversation, "")
            if self.calling.another_form:
                conversation = _told(conversation, self.how_to_call)
        elif tools is not None:
            conversation = _told(conversation, self._listing(tools, veil))
        return self.telling.alternating(conversation), prompt, schemas

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

    def message(self, message: Message, veil: Veil = clean) -> dict[str, str]:
        """A message as chat templates take it."""
        own = message.role == "assistant" and veil is not clean
        content = self._turns.veil(message.content) if own else veil(message.content)
        told = {"role": message.role, "content": content}
        return told if message.name is None else told | {"name": veil(message.name)}

    def _continuation(self, messages: Sequence[Message], veil: Veil) -> str:
        told = self.telling.alternating([self.message(m, veil) for m in messages])
        return self.telling.continued(told)

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
        calls, visible = read_turn(text, lambda it: form(it, tools), self.reasons, begun)
        for mark in {*self.unsaid, *(mark for pair in self.answers for mark in pair)} - {""}:
            visible = visible.replace(mark, " " * len(mark))
        return AssistantTurn(text, calls, visible)

    def reasoning_in(
        self, text: str, prompt: Sequence[int] | None = None
    ) -> tuple[tuple[int, int], ...]:
        """Where a turn reasons: half-open ranges of its characters, marks included; see `read`."""
        return reasoning_in(text, self.form, self.reasons, self._begun_in(prompt))

    def _begun_in(self, prompt: Sequence[int] | None) -> Marks | None:
        """The reasoning that a prompt begins; only the template does so, no content."""
        if prompt is None or not any(self._begins):
            return self._begins[0]
        return begun_in(self._decode(*prompt[-_TAIL:]), self.reasons)

    def spoken(self, text: str, prompt: Sequence[int] | None = None) -> str:
        """A turn that says a text and no more: reasoning that the prompt began is ended first.

        Args:
            text: What is said; one that has marks of reasoning is left as it is.
            prompt: See `read`.
        """
        begun, (opened, closed) = self._begun_in(prompt), self._answer
        if begun is None and not (opened or closed):
            return text
        calls = [call.span for call in self.form(text) if call.span and call.error is None]
        around = text
        for start, end in calls:  # marks in their arguments are no marks
            around = around[:start] + " " * (end - start) + around[end:]
        marked = any(mark and mark in around for pair in self.answers for mark in pair)
        # Where the template knows no calls they are answers to it.
        called = self.calling.shown and (calls or _MARK.search(text))
        if (opened or closed) and not marked and not called:
            text = f"{opened}{text}{closed}"
        if begun is None or begun.open in around or begun.close in around:
            return text
        return self._thinking.none + text

    def write_call(self, *calls: ToolCall) -> str:
        """The text that makes a call, or several in one turn."""
        return self.calling.write(*calls)

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
        return f"{content}{self.calling.joint}{calls}"

    def reasoned(self, reasoning: str, text: str, prompt: Sequence[int] | None) -> str:
        """A turn that reasons first.

        Raises:
            DialectError: The chat template shows no reasoning.
        """
        if self._thinking.around is None:
            raise DialectError(
                "it has reasoning, and the student's chat template shows none (or is told to leave "
                "it out by student.template_kwargs): take the field out of the data, or choose a "
                "student that reasons"
            )
        opened, begun, closed = self._thinking.around
        if self._begun_in(prompt) is not None:
            opened = opened.removeprefix(begun)
        return f"{opened}{reasoning}{closed}{text}"

    def unmarked(self, reasoning: str) -> str:
        """Reasoning as a turn has it, without the marks and empty lines around it."""
        text = reasoning.strip()
        for pair in self.reasons:
            text = text.removeprefix(pair.open).removesuffix(pair.close)
        return text.strip("\n")

    def turn(self, text: str) -> list[int]:
        """Tokens of a whole student turn, end-of-turn token included (for demonstrations).

        The family's marks are control tokens where they call or end reasoning; in the arguments of
        a call, and all others anywhere, they are text.
        """
        end = self.eos_id
        if self.call_end_id != end and read_turn(text, self.form, self.reasons)[0]:
            end = self.call_end_id
            for mark in self.call_ends:
                text = text.removesuffix(mark)
        return [*self._turns.encode(text), end]

    @property
    def begins_reasoning(self) -> bool:
        """A prompt opens the student's reasoning."""
        return any(self._begins)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """What no content may become."""
        return tuple(self._guard.ids)

    def controls(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among some tokens, in order."""
        known = set(self._guard.ids.values())
        return [token for token in ids if token in known]

    def tokenized(self, text: str) -> list[int]:
        """Tokens of what a chat template wrote of harmless contents."""
        return self._guard.encode(text)

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
        if not more:
            return conversation
        content = f"{conversation[0]['content']}\n{more}"
        return [{"role": "system", "content": content}, *conversation[1:]]
    return [{"role": "system", "content": more}, *conversation]


_TAIL = 32
"""Tokens that hold a mark at the end of a prompt, be they bytes."""
_EXAMPLE = ToolCall("tool", {"argument": "value"})
_MARK = re.compile(r"<\|[^|>]*\|>")
"""A mark of a turn that says itself what it is."""


def _token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    token_id = tokenizer.eos_token_id
    if not isinstance(token_id, int):
        raise DialectError("the tokenizer has no single eos_token that ends a turn")
    return token_id
