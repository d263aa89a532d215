"""Conversations as token ids: what a student reads, how its next prompt continues, what it said.

Token-in token-out: the opening is rendered once; after each student turn only the NEW messages are
rendered and appended, so the student's own tokens are never decoded and encoded again. A turn is
read here too: which calls a model makes is a matter of its family, not of the environment.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import DialectError
from journeyman.envs import AssistantTurn, Message
from journeyman.tools import ToolCall, ToolSpec
from journeyman.tools.doors import load_group
from journeyman.tools.parsing import CallFormat, blank_reasoning, get_parser

ToolRender = Literal["full", "signature", "names"]
"""How the prompt shows the tools: JSON schemas through the chat template; one signature a line with
a note on the call form; or names only, for students trained on these very tools."""

ENTRY_POINTS = "journeyman.dialects"


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
                or it cannot go on from a turn with what a tool said.
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
        self.eos_id = _token_id(tokenizer)
        self.end_ids = tuple(dict.fromkeys((self.eos_id, *ends)))
        """Tokens of which any ends a turn; the first is what the template ends turns by."""
        self.template_kwargs = dict(template_kwargs or {})
        end = str(tokenizer.convert_ids_to_tokens(self.eos_id))
        self._ended = _PROBE_TEXT + end
        if self._ended not in self._template(list(_PROBE), False):
            raise DialectError(f"the chat template does not end an assistant's turn with {end!r}")
        self._check_results()
        # Templates and tokenizers take their time, and forks of an episode hear the same again.
        self._piece = functools.lru_cache(1 << 16)(self._decode)
        self._reply = functools.lru_cache(1 << 12)(self._render_reply)

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Tokens of the first prompt, up to where the student starts to write."""
        conversation = [m.as_dict() for m in messages]
        schemas: list[Any] | None = None
        if self.render == "full":
            schemas = [t.as_function() for t in tools]
        else:
            conversation = self._list_tools(conversation, tools)
        return self._encode(self._template(conversation, True, schemas))

    def reply(self, messages: Sequence[Message]) -> list[int]:
        """Tokens between the student's end-of-turn token and its next turn.

        Args:
            messages: The environment's new messages; at least one.
        """
        return list(self._reply(tuple(messages)))

    def _render_reply(self, messages: tuple[Message, ...]) -> list[int]:
        return self._encode(self._continuation(messages))

    def _continuation(self, messages: Sequence[Message]) -> str:
        text = self._template([*_PROBE, *(m.as_dict() for m in messages)], True)
        # What stands before the end of the probe's turn does not matter: a template may write the
        # last turn with reasoning (be it none) and earlier ones without.
        _, ended, new = text.partition(self._ended)
        if not ended:
            raise DialectError("the chat template rewrites earlier turns; it cannot be continued")
        return new

    def _check_results(self) -> None:
        try:
            shown = _RESULT in self._continuation([Message("tool", _RESULT, "probe")])
        except TemplateError as error:
            raise DialectError(
                f"the chat template refuses a tool's result ({error}); use a model trained on tools"
            ) from error
        if not shown:
            raise DialectError(
                "the chat template does not show a message of the role tool; use a model whose "
                "template does"
            )

    def read(self, text: str, tools: Sequence[ToolSpec] = ()) -> AssistantTurn:
        """What a turn says: its calls, malformed ones too, or else its answer.

        Args:
            text: The turn without its end-of-turn token.
            tools: What may be called; some forms have the types of arguments from there.
        """
        visible = self.visible(text)
        return AssistantTurn(text, tuple(self.form(visible, tools)), visible)

    def visible(self, text: str) -> str:
        """A turn with its reasoning as blanks; a family with other marks than `<think>` says so."""
        return blank_reasoning(text)

    def write_call(self, call: ToolCall) -> str:
        """The text of a turn that makes a call."""
        return self.form.render(call)

    def turn(self, text: str) -> list[int]:
        """Tokens of a whole student turn, end-of-turn token included (for demonstrations)."""
        return [*self._encode(text), self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of student tokens, markers kept."""
        return self._piece(ids[0]) if len(ids) == 1 else self._decode(*ids)

    def _decode(self, *ids: int) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _list_tools(
        self, conversation: list[dict[str, str]], tools: Sequence[ToolSpec]
    ) -> list[dict[str, str]]:
        if self.render == "names":
            listing = "Tools: " + " ".join(t.name for t in tools)
        else:
            lines = (f"{t.signature()}: {t.description}" for t in tools)
            listing = "\n".join(("Tools:", *lines, self.how_to_call))
        if conversation and conversation[0]["role"] == "system":
            content = f"{conversation[0]['content']}\n{listing}"
            return [{"role": "system", "content": content}, *conversation[1:]]
        return [{"role": "system", "content": listing}, *conversation]

    @property
    def how_to_call(self) -> str:
        """One line for a model that was not trained on the form: how a call is written."""
        example = self.form.render(ToolCall("<tool>", {"<argument>": "<value>"}))
        return f"To use a tool, write only: {self.hint or example}"

    def _template(
        self, conversation: list[dict[str, str]], prompt: bool, tools: list[Any] | None = None
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

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


_RESULT = "1024"
_PROBE_TEXT = "ok"
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
    marks = ("[TOOL_CALLS]",)


class Harmony(Dialect):
    """gpt-oss: calls in a channel of their own."""

    name = "harmony"
    form = get_parser("harmony")
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
    marks = ("<|tool_call_start|>", "<|tool_list_start|>", "[func_name1(")


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
