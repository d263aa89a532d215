"""Conversations as token ids: what a student reads, how its next prompt continues, what it said.

Token-in token-out: the opening is rendered once; after each student turn only the NEW messages are
rendered and appended, so the student's own tokens are never decoded and encoded again. What others
say stays text, whatever it looks like (`contents.py`). A turn is read here too, from its prompt on:
which calls a model makes, and where its reasoning ends, is a matter of its family, not of the
environment.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import DialectError
from journeyman.agents.students.contents import ContentGuard, clean, mapped, unescaped
from journeyman.envs import AssistantTurn, Message
from journeyman.envs.types import Role
from journeyman.tools import ToolCall, ToolSpec
from journeyman.tools.doors import load_group
from journeyman.tools.parsing import (
    ANALYSIS,
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

ENTRY_POINTS = "journeyman.dialects"
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""What chat templates and servers call the reasoning of a message."""


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
    """Who tells it what tools said: "user" where the chat template knows no tools."""

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
        template = tokenizer.chat_template
        if not template:
            raise DialectError(
                "the tokenizer has no chat template; set tokenizer.chat_template or use an "
                "instruction-tuned model"
            )
        shows_tools = "tools" in str(template)
        if render is None:
            render = "full" if shows_tools else "signature"
        if render not in ("full", "signature", "names"):
            raise DialectError(f"tools render {render!r}: use full, signature or names")
        if render == "full" and not shows_tools:
            raise DialectError(
                "the chat template shows no tools; use render=signature to list them in the system "
                "message"
            )
        self.tokenizer = tokenizer
        self.render = render
        self.template_kwargs = dict(template_kwargs or {})
        self._reasoning = self._marks_of(str(template))
        own = [self.form.render(*[_EXAMPLE] * 2), *self.marks]
        own += [mark for pair in self._reasoning for mark in (pair.open, pair.close, *pair.before)]
        self._guard = ContentGuard(tokenizer, "\n".join((*own, str(template))))
        self._own = {token for text in own for token in self._guard.found(text)}
        """Control tokens that a student writes to call and to reason."""
        eos_id = _token_id(tokenizer)
        try:
            probed = self._template(list(_PROBE), False)
        except TemplateError as error:
            raise DialectError(
                f"the chat template cannot be used with this tokenizer: {error}"
            ) from error
        # Files of other formats may name another end of turn than the model was trained with.
        told = self._guard.end_after(probed.rpartition(_PROBE_TEXT)[2])
        end = told or str(tokenizer.convert_ids_to_tokens(eos_id))
        self._ended = _PROBE_TEXT + end
        if self._ended not in probed:
            raise DialectError(f"the chat template does not end an assistant's turn with {end!r}")
        self.eos_id = self._guard.ids[told.strip()] if told else eos_id
        self.end_ids = tuple(dict.fromkeys((self.eos_id, eos_id, *ends)))
        """Tokens of which any ends a turn; the first is what the template ends turns by."""
        after_user = self._template(list(_PROBE[:1]), True)
        prompts = (after_user, self._check_results())
        self._begins = tuple(begun_in(prompt, self._reasoning) for prompt in prompts)
        """The reasoning that prompts begin, after a user's message and after a tool's."""
        self._no_reasoning = self._without_reasoning(after_user, probed)
        self._another_form = self._form_told(str(template)) not in (None, self.form.name)
        """True if the template tells the student to call in another form than is read."""
        # Templates and tokenizers take their time, and forks of an episode hear the same again.
        self._piece = functools.lru_cache(1 << 16)(self._decode)
        self._reply = functools.lru_cache(1 << 12)(self._render_reply)

    def _marks_of(self, template: str) -> tuple[Marks, ...]:
        told = (pair for pair in MARKS if pair.open in template or pair.close in template)
        return tuple(dict.fromkeys((*self.reasoning, *told)))

    def _without_reasoning(self, prompt: str, probed: str) -> str:
        """How a turn begins that only ends the reasoning that its prompt began."""
        begun = self._begins[0] or self._begins[1]
        if begun is None:
            return ""
        written = probed[len(prompt) :].rpartition(self._ended)[0]
        ended = probed.startswith(prompt) and written.strip() == begun.close
        return written if ended else f"\n{begun.close}\n\n"

    @staticmethod
    def _form_told(template: str) -> str | None:
        """The call form that a template tells, if it tells one."""
        for family in FAMILIES:
            if any(mark in template for mark in family.marks):
                return family.form.name
        return Hermes.form.name if "<tool_call>" in template else None

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
                return self._template(conversation, True)
            if self.render == "full":
                schemas = [mapped(t.as_function(), veil, named=False) for t in tools]
                if self._another_form:
                    conversation = _told(conversation, self.how_to_call)
            else:
                conversation = _told(conversation, self._listing(tools, veil))
            return self._template(conversation, True, schemas)

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
        if self.results_as == "tool":
            return messages
        told: list[Message] = []
        for message in messages:
            role = self.results_as if message.role == "tool" else message.role
            if told and told[-1].role == role:
                told[-1] = Message(role, f"{told[-1].content}\n{message.content}")
            else:
                told.append(Message(role, message.content))
        return told

    def _message(self, message: Message, veil: Veil) -> dict[str, str]:
        own = message.role == "assistant" and veil is not clean
        content = self._veil_turn(message.content) if own else veil(message.content)
        told = {"role": message.role, "content": content}
        return told if message.name is None else told | {"name": veil(message.name)}

    def _continuation(self, messages: Sequence[Message], veil: Veil) -> str:
        told = (self._message(m, veil) for m in self._told_as(messages))
        text = self._template([*_PROBE, *told], True)
        # What stands before the end of the probe's turn does not matter: a template may write the
        # last turn with reasoning (be it none) and earlier ones without.
        _, ended, new = text.partition(self._ended)
        if not ended:
            raise DialectError("the chat template rewrites earlier turns; it cannot be continued")
        return new

    def _check_results(self) -> str:
        """How a prompt continues after a tool's result; it must show the result."""
        try:
            text = self._continuation([Message("tool", _RESULT, "probe")], clean)
        except TemplateError as error:
            raise DialectError(
                f"the chat template refuses a tool's result ({error}); use a model trained on tools"
            ) from error
        if _RESULT not in text:
            raise DialectError(
                "the chat template does not show a message of the role tool; use a model whose "
                "template does"
            )
        return text

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
        begun = self._begun_in(prompt)
        if begun is None or begun.open in text or begun.close in text:
            return text
        return self._no_reasoning + text

    def write_call(self, *calls: ToolCall) -> str:
        """The text that makes a call, or several in one turn."""
        return self.form.render(*calls)

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
            text = f"{content}{self._before_calls}{written}" if content else written
        text = self._reasoned(reasoning, text, prompt) if reasoning else self.spoken(text, prompt)
        found = self.read(text, (), prompt).calls
        wrong = next((call.error for call in found if call.error), None)
        if wrong or [call.name for call in found] != [call.name for call in calls]:
            names = ", ".join(call.name for call in found if call.name) or "none"
            raise DialectError(
                f"{self.name} cannot write this turn: of {len(calls)} calls the text "
                f"{text[:80]!r} would be read as {len(found)} ({wrong or names})"
            )
        return text

    def _reasoned(self, reasoning: str, text: str, prompt: Sequence[int] | None) -> str:
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
        function = {"name": _EXAMPLE.name, "arguments": dict(_EXAMPLE.arguments)}
        call = {"type": "function", "id": "call00000", "function": function}
        written = self._shown_of({"content": _PROBE_SAID, "tool_calls": [call]})
        after = written.partition(_PROBE_SAID)[2]
        found = self.form(after)
        between = after[: found[0].span[0]] if found and found[0].span else "\n"
        return "\n" if between.strip() else between

    @functools.cached_property
    def _around_reasoning(self) -> tuple[str, str, str] | None:
        """What stands before and after reasoning, and what of the former a prompt may begin.

        None where the chat template shows no reasoning, or more around it than its marks.
        """
        fields = dict.fromkeys(REASONING_FIELDS, _PROBE_THOUGHT)
        written = self._shown_of({"content": _PROBE_TEXT, **fields})
        before, _, after = written.partition(_PROBE_THOUGHT)
        closed = after.partition(self._ended)[0]
        prompt = self._template(list(_PROBE[:1]), True)
        begun = self._begins[0]
        head = len(prompt) if begun is None else prompt.rindex(begun.open)
        opened = before[head:]
        marks = {(pair.open, pair.close) for pair in self._reasoning}
        known = (opened.strip(), closed.strip()) in marks
        return (opened, prompt[head:], closed) if known and before[:head] == prompt[:head] else None

    def _shown_of(self, turn: Mapping[str, Any]) -> str:
        """A turn as the chat template shows it; "" if it refuses."""
        try:
            return self._template([_PROBE[0], {"role": "assistant", **turn}], False)
        except (TemplateError, TypeError, ValueError):
            return ""

    def turn(self, text: str) -> list[int]:
        """Tokens of a whole student turn, end-of-turn token included (for demonstrations).

        The family's marks are control tokens where they call or end reasoning; in the arguments of
        a call, and all others anywhere, they are text.
        """
        text = clean(text)
        veiled = self._veil_turn(text) if self._guard.found(text) else text
        return [*self._guard.encode(text, veiled), self.eos_id]

    def _veil_turn(self, text: str) -> str:
        """A turn with all veiled but the marks that it calls and reasons by."""
        text = clean(text)
        veiled = list(self._guard.veil(text))
        arguments = self._arguments(text)
        for start, end, token in self._guard.places(text):
            if token in self._own and not arguments.intersection(range(start, end)):
                veiled[start:end] = token
        return "".join(veiled)

    def _arguments(self, text: str) -> set[int]:
        """Critical places in the arguments of calls that stand there as they are written here."""
        found: set[int] = set()
        unmarked = not self._guard.found(self.form.render(_EXAMPLE))
        for call in read_turn(text, self.form, self._reasoning)[0]:
            if call.error is None and call.span is not None:
                start, end = call.span
                arguments = mapped(call.arguments, self._guard.veil)
                hidden = self.form.render(ToolCall(self._guard.veil(call.name), arguments))
                if unmarked:
                    found |= set(range(start, end))
                elif self._guard.unveil(hidden) == text[start:end]:
                    pairs = enumerate(zip(hidden, text[start:end], strict=True), start)
                    found |= {i for i, (there, bare) in pairs if there != bare}
        return found

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

    def _template(
        self, conversation: list[Any], prompt: bool, tools: list[Any] | None = None
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                conversation,
                tools=tools,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.template_kwargs,
            )
        )


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
_RESULT = "1024"
_PROBE_TEXT = "ok"
_PROBE_SAID, _PROBE_THOUGHT = "saidbefore", "thoughtbefore"
_PROBE = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": _PROBE_TEXT})


def _token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    token_id = tokenizer.eos_token_id
    if not isinstance(token_id, int):
        raise DialectError("the tokenizer has no single eos_token that ends a turn")
    return token_id


class Hermes(Dialect):
    """Hermes, Qwen 2.5 and Qwen 3: JSON between `<tool_call>` markers."""

    hint = '<tool_call>\n{"name": "<tool>", "arguments": {"<argument>": <value>}}\n</tool_call>'


class Qwen3Coder(Dialect):
    """Qwen 3.5 and later, Qwen3-Coder, Nemotron 3: `<function=…>` with `<parameter=…>`."""

    name = "qwen3_coder"
    form = get_parser("qwen3_coder")
    marks = ("<function=",)


class GLM45(Dialect):
    """GLM 4.5 and later: `<arg_key>` and `<arg_value>` pairs."""

    name = "glm45"
    form = get_parser("glm45")
    marks = ("<arg_key>",)


class Mistral(Dialect):
    """Mistral: `[TOOL_CALLS]`."""

    name = "mistral"
    form = get_parser("mistral")
    reasoning = (Marks("[THINK]", "[/THINK]"), THINK)
    marks = ("[TOOL_CALLS]",)


class Harmony(Dialect):
    """gpt-oss: calls in a channel of their own."""

    name = "harmony"
    form = get_parser("harmony")
    reasoning = (ANALYSIS, THINK)
    marks = ("<|channel|>",)


class Llama3(Dialect):
    """Llama 3.1 and later: bare JSON with `parameters`."""

    name = "llama3_json"
    form = get_parser("llama3_json")
    marks = ("<|python_tag|>", '"parameters": ')


class Pythonic(Dialect):
    """LFM2, Llama 4: a list of Python calls."""

    name = "pythonic"
    form = get_parser("pythonic")
    marks = (
        *("<|tool_call_start|>", "<|tool_call_end|>", "<|tool_list_start|>"),
        *("<|python_start|>", "<|python_end|>", "[func_name1("),
    )


FAMILIES = (Hermes, Qwen3Coder, GLM45, Mistral, Harmony, Llama3, Pythonic)


@functools.cache
def dialects() -> Mapping[str, type[Dialect]]:
    """All families by name, those of other packages first: a template may be told by them too."""
    found: dict[str, type[Dialect]] = {}
    for name, loaded in load_group(ENTRY_POINTS, _is_dialect).items():
        if loaded.name == name:  # a trained model is remembered by it
            found[name] = loaded
        else:
            warnings.warn(
                f"dialect {name!r} is left out: its class is named {loaded.name!r}; the entry "
                f"point and the class must have one name",
                stacklevel=2,
            )
    return found | {family.name: family for family in FAMILIES}


def _is_dialect(loaded: object) -> str | None:
    """What is wrong with what a package offers as a dialect."""
    if isinstance(loaded, type) and issubclass(loaded, Dialect):
        return None
    return f"expected a subclass of Dialect, not {loaded!r}"


def dialect_of(
    tokenizer: PreTrainedTokenizerBase,
    name: str | None = None,
    render: ToolRender | None = "full",
    template_kwargs: Mapping[str, Any] | None = None,
    ends: Sequence[int] = (),
) -> Dialect:
    """A tokenizer's dialect.

    Args:
        tokenizer: Has the chat template.
        name: Of the family; None asks the template, and takes Hermes where nothing speaks.
        render: See `Dialect`.
        template_kwargs: See `Dialect`.
        ends: See `Dialect`.

    Raises:
        DialectError: No dialect of that name, or the template does not carry an episode.
    """
    return family_of(tokenizer, name)(tokenizer, render, template_kwargs, ends)


def family_of(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> type[Dialect]:
    """The family of a tokenizer; see `dialect_of`.

    Raises:
        DialectError: No dialect of that name.
    """
    known = dialects()
    if name is not None:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise DialectError(f"no dialect {name!r}; {hint}")
        return known[name]
    template = str(tokenizer.chat_template or "")
    told = (family for family in known.values() if any(m in template for m in family.marks))
    return next(told, Hermes)
