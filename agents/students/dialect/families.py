"""The model families: how each writes calls, reasons and answers, and what tells it from others.

A family is data for `Dialect`; what it has in common with the others is found out by rendering.
Another package adds one under the entry-point group `journeyman.dialects`.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import DialectError
from journeyman.agents.students.dialect.conversing import Dialect, ToolRender
from journeyman.tools.doors import load_group
from journeyman.tools.parsing import ANALYSIS, THINK, Marks, get_parser

ENTRY_POINTS = "journeyman.dialects"


class Hermes(Dialect):
    """Hermes, Qwen 2.5 and Qwen 3, SmolLM3, Granite 4: JSON between `<tool_call>` markers.

    Models that were trained on no calls at all (Gemma 3, Phi 3.5, SmolLM2) are told this form.
    """

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
    calls_before_results = True


class Harmony(Dialect):
    """gpt-oss: calls, reasoning and answers each in a channel of their own."""

    name = "harmony"
    form = get_parser("harmony")
    reasoning = (ANALYSIS, THINK)
    marks = ("<|channel|>",)
    answers = (("<|channel|>final<|message|>", ""),)
    unsaid = ("<|start|>assistant",)
    call_ends = ("<|call|>",)
    calls_before_results = True

    def joined(self, content: str, calls: str) -> str:
        """What is said before a call has a channel of its own."""
        return f"<|channel|>commentary<|message|>{content}<|end|><|start|>assistant{calls}"

    def reasoned(self, reasoning: str, text: str, prompt: Sequence[int] | None) -> str:
        """Reasoning is a message of its own, after which the turn begins again."""
        return f"{ANALYSIS.open}{reasoning}{ANALYSIS.close}<|start|>assistant{text}"


class Gemma4(Dialect):
    """Gemma 4: `call:name{…}` with quotes of its own, and results within the model's own turn."""

    name = "gemma4"
    form = get_parser("gemma4")
    marks = ("<|tool_call>",)
    calls_before_results = True


class Cohere(Dialect):
    """Command R7B and later: actions, thinking and responses between markers."""

    name = "cohere"
    form = get_parser("cohere")
    marks = ("<|START_ACTION|>", "<|START_RESPONSE|>")
    reasoning = (Marks("<|START_THINKING|>", "<|END_THINKING|>"), THINK)
    answers = (("<|START_RESPONSE|>", "<|END_RESPONSE|>"), ("<|START_TEXT|>", "<|END_TEXT|>"))
    calls_before_results = True


class DeepSeekV3(Dialect):
    """DeepSeek V3 and R1: fenced JSON after a name."""

    name = "deepseek_v3"
    form = get_parser("deepseek_v3")
    marks = ("<｜tool▁sep｜>",)
    with_marks = ("```json",)


class DeepSeekV31(Dialect):
    """DeepSeek V3.1: JSON after a name."""

    name = "deepseek_v31"
    form = get_parser("deepseek_v31")
    marks = ("<｜tool▁sep｜>",)


class KimiK2(Dialect):
    """Kimi K2: JSON after a numbered name."""

    name = "kimi_k2"
    form = get_parser("kimi_k2")
    marks = ("<|tool_calls_section_begin|>",)
    call_id = "functions.{name}:{number}"
    calls_before_results = True


class MiniMaxM2(Dialect):
    """MiniMax M2: `<invoke name=…>` with `<parameter name=…>`."""

    name = "minimax_m2"
    form = get_parser("minimax_m2")
    marks = ("<minimax:tool_call>", "minimax:tool_call")


class Phi4Mini(Dialect):
    """Phi-4-mini: a JSON list between `<|tool_call|>` and `<|/tool_call|>`."""

    name = "phi4_mini"
    form = get_parser("phi4_mini")
    marks = ("<|/tool_call|>",)
    marks_in_vocabulary = True


class Granite(Dialect):
    """Granite 3: a JSON list after `<|tool_call|>`."""

    name = "granite"
    form = get_parser("granite")
    marks = ("<|tool_call|>",)


class Llama3(Dialect):
    """Llama 3.1 and later: bare JSON with `parameters`."""

    name = "llama3_json"
    form = get_parser("llama3_json")
    marks = ("<|python_tag|>", '"parameters": ')

    @classmethod
    def mark_in(cls, template: str) -> str | None:
        """Hermes 2 and 3 have "parameters" in their template too, of the tools' schemas."""
        return None if "<tool_call>" in template else super().mark_in(template)


class Pythonic(Dialect):
    """LFM2, Llama 4: a list of Python calls."""

    name = "pythonic"
    form = get_parser("pythonic")
    marks = (
        *("<|tool_call_start|>", "<|tool_call_end|>", "<|tool_list_start|>"),
        *("<|python_start|>", "<|python_end|>", "[func_name1("),
    )
    marks_in_vocabulary = True  # LFM2.5's template has none of them


FAMILIES: tuple[type[Dialect], ...] = (
    *(Hermes, Qwen3Coder, GLM45, Mistral, Harmony, Gemma4, Cohere, DeepSeekV3, DeepSeekV31),
    *(KimiK2, MiniMaxM2, Phi4Mini, Granite, Llama3, Pythonic),
)
"""In the order in which a template is asked for their marks."""


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
        DialectError: No dialect of that name, or the template does not carry an episode; or nobody
            named the dialect and the template writes a call that is not read as itself.
    """
    family = family_of(tokenizer, name)
    # Whoever names another family wants its form, even where it reads what the template shows too.
    foreign = name is not None and family.form is not family_of(tokenizer).form
    dialect = family(tokenizer, render, template_kwargs, ends, foreign)
    if name is None:
        dialect.calling.check()
    return dialect


def family_of(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> type[Dialect]:
    """The family of a tokenizer; see `dialect_of`.

    Raises:
        DialectError: No dialect of that name.
    """
    return how_told(tokenizer, name)[0]


def how_told(
    tokenizer: PreTrainedTokenizerBase, name: str | None = None
) -> tuple[type[Dialect], str]:
    """The family of a tokenizer, and what it was told by, in words; see `family_of`."""
    known = dialects()
    if name is not None:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise DialectError(f"no dialect {name!r}; {hint}")
        return known[name], "named"
    template = str(tokenizer.chat_template or "")
    for family in known.values():
        if mark := family.mark_in(template):
            return family, f"{mark} in the template"
    if "<tool_call>" in template:
        return Hermes, "<tool_call> in the template"
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    for family in known.values():
        mark = next((mark for mark in family.marks if mark in added), None)
        if family.marks_in_vocabulary and mark:
            return family, f"{mark} in the vocabulary"
    return Hermes, "nothing tells"
