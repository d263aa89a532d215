"""Calls as each family's models write them, spelled out here and not by the code under test."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from journeyman.tools import ToolSpec

Arguments = Mapping[str, Any]
Writer = Callable[..., str]
"""(name, arguments), … -> the text of a turn with these calls."""


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def hermes(*calls: tuple[str, Arguments]) -> str:
    return "\n".join(
        f"<tool_call>\n{dump({'name': n, 'arguments': a})}\n</tool_call>" for n, a in calls
    )


def llama3(*calls: tuple[str, Arguments]) -> str:
    return "; ".join(dump({"name": n, "parameters": a}) for n, a in calls)


def llama3_tagged(*calls: tuple[str, Arguments]) -> str:
    return f"<|python_tag|>{llama3(*calls)}"


def pythonic(*calls: tuple[str, Arguments]) -> str:
    written = (f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in calls)
    return f"[{', '.join(written)}]"


def llama4(*calls: tuple[str, Arguments]) -> str:
    return f"<|python_start|>{pythonic(*calls)}<|python_end|>"


def qwen3_coder(*calls: tuple[str, Arguments]) -> str:
    def one(name: str, arguments: Arguments) -> str:
        lines = (f"<parameter={k}>\n{text_of(v)}\n</parameter>\n" for k, v in arguments.items())
        return f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"

    return "\n".join(one(*call) for call in calls)


def mistral(*calls: tuple[str, Arguments]) -> str:
    return "".join(f"[TOOL_CALLS]{n}[ARGS]{dump(a)}" for n, a in calls)


def mistral_list(*calls: tuple[str, Arguments]) -> str:
    listed = [{"name": n, "arguments": a, "id": "abcdefghi"} for n, a in calls]
    return f"[TOOL_CALLS]{dump(listed)}"


def harmony(*calls: tuple[str, Arguments]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{dump(a)}<|call|>"
        for n, a in calls
    )


def harmony_role(*calls: tuple[str, Arguments]) -> str:
    """With the recipient beside the role, as gpt-oss's chat template writes it."""
    return "".join(
        f"<|start|>assistant to=functions.{n}<|channel|>commentary json<|message|>{dump(a)}<|call|>"
        for n, a in calls
    )


def glm45(*calls: tuple[str, Arguments]) -> str:
    def one(name: str, arguments: Arguments) -> str:
        lines = (
            f"<arg_key>{k}</arg_key>\n<arg_value>{text_of(v)}</arg_value>\n"
            for k, v in arguments.items()
        )
        return f"<tool_call>{name}\n{''.join(lines)}</tool_call>"

    return "\n".join(one(*call) for call in calls)


def deepseek_v3(*calls: tuple[str, Arguments]) -> str:
    written = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{dump(a)}\n```<｜tool▁call▁end｜>"
        for n, a in calls
    )
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def deepseek_v31(*calls: tuple[str, Arguments]) -> str:
    written = "".join(
        f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{dump(a)}<｜tool▁call▁end｜>" for n, a in calls
    )
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def kimi_k2(*calls: tuple[str, Arguments]) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{n}:{i}<|tool_call_argument_begin|>{dump(a)}<|tool_call_end|>"
        for i, (n, a) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def cohere(*calls: tuple[str, Arguments]) -> str:
    """With the line breaks that Command's own template puts between the calls."""
    listed = ",\n".join(
        "    " + dump({"tool_call_id": str(i), "tool_name": n, "parameters": a})
        for i, (n, a) in enumerate(calls)
    )
    return f"<|START_ACTION|>[\n{listed}\n]<|END_ACTION|>"


def granite(*calls: tuple[str, Arguments]) -> str:
    return f"<|tool_call|>{dump([{'name': n, 'arguments': a} for n, a in calls])}"


def phi4(*calls: tuple[str, Arguments]) -> str:
    return f"{granite(*calls)}<|/tool_call|>"


def minimax(*calls: tuple[str, Arguments]) -> str:
    def one(name: str, arguments: Arguments) -> str:
        lines = (f'<parameter name="{k}">{text_of(v)}</parameter>\n' for k, v in arguments.items())
        return f'<invoke name="{name}">\n{"".join(lines)}</invoke>\n'

    return f"<minimax:tool_call>\n{''.join(one(*call) for call in calls)}</minimax:tool_call>"


def gemma4(*calls: tuple[str, Arguments]) -> str:
    def key(it: str) -> str:
        return it if it.isidentifier() else value(it)

    def value(it: Any) -> str:
        if isinstance(it, str):
            return f'<|"|>{it}<|"|>'
        if isinstance(it, Mapping):
            return f"{{{','.join(f'{key(k)}:{value(v)}' for k, v in it.items())}}}"
        if isinstance(it, list):
            return f"[{','.join(map(value, it))}]"
        return dump(it)

    return "".join(f"<|tool_call>call:{n}{value(a)}<tool_call|>" for n, a in calls)


WRITERS: dict[str, tuple[str, Writer]] = {
    "hermes": ("hermes", hermes),
    "llama3": ("llama3_json", llama3),
    "llama3 tagged": ("llama3_json", llama3_tagged),
    "pythonic": ("pythonic", pythonic),
    "llama4": ("pythonic", llama4),
    "qwen3_coder": ("qwen3_coder", qwen3_coder),
    "mistral": ("mistral", mistral),
    "mistral list": ("mistral", mistral_list),
    "harmony": ("harmony", harmony),
    "harmony role": ("harmony", harmony_role),
    "glm45": ("glm45", glm45),
    "gemma4": ("gemma4", gemma4),
    "cohere": ("cohere", cohere),
    "deepseek_v3": ("deepseek_v3", deepseek_v3),
    "deepseek_v31": ("deepseek_v31", deepseek_v31),
    "kimi_k2": ("kimi_k2", kimi_k2),
    "minimax_m2": ("minimax_m2", minimax),
    "granite": ("granite", granite),
    "phi4_mini": ("phi4_mini", phi4),
}
"""Parser and writer by dialect."""

_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def specs(calls: Sequence[tuple[str, Arguments]]) -> list[ToolSpec]:
    """Tools whose schemas give each argument the type that it has in the calls."""
    properties: dict[str, dict[str, Any]] = {}
    for name, arguments in calls:
        mine = properties.setdefault(name, {})
        for key, value in arguments.items():
            mine[key] = {"type": _TYPES[type(value)]}
    return [
        ToolSpec(name, "", {"type": "object", "properties": mine})
        for name, mine in properties.items()
    ]
