"""The chat templates that models ship: what they render is parsed back, by us and transformers.

TRL carries the templates and the response templates that transformers' own parser reads.
"""

import datetime
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
import trl.chat_template_utils as trl_templates
from transformers.utils.chat_parsing import parse_response
from transformers.utils.chat_template_utils import render_jinja_template

from journeyman.tools import CallStatus, ToolCall, get_parser

from .forms import Arguments, specs

Calls = list[tuple[str, Arguments]]

ONE: Calls = [
    ("get_weather", {"city": 'Zoë\'s "日本"', "days": 3, "units": ["C", "F"], "at": {"h": 1.5}})
]
LINES: Calls = [("write", {"text": "def f(x):\n    return '\\d' + x\n", "force": True})]
BARE: Calls = [("now", {})]
TWO = ONE + BARE
THREE = LINES + BARE + ONE
# A template that takes one call a turn says so itself.
SINGLE, MANY = (ONE, LINES, BARE), (ONE, LINES, BARE, TWO, THREE)

TEMPLATES: dict[str, tuple[tuple[Calls, ...], tuple[str, ...]]] = {
    "hermes": (
        MANY,
        ("qwen2_5", "qwen3", "qwen3_training", "qwen3_instruct_2507", "qwen3_vl"),
    ),
    "llama3_json": (SINGLE, ("llama3_1", "llama3_2")),
    "pythonic": (MANY, ("lfm2_v2",)),
    "qwen3_coder": (
        MANY,
        (
            *("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"),
            *("nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
        ),
    ),
    "harmony": (SINGLE, ("gptoss", "gptoss_training")),
    "glm45": (MANY, ("glm4moe", "glm4moe_training")),
}
"""By parser; Mistral's is no template, see test_forms.py for what its own library writes."""
CASES = [
    pytest.param(name, parser, calls, id=f"{name}: {', '.join(n for n, _ in calls)}")
    for parser, (turns, names) in TEMPLATES.items()
    for name in names
    for calls in turns
]


def rendered(template: str, calls: Calls) -> tuple[str, str]:
    """The prompt, and what the assistant says after it."""
    source = (files("trl") / "chat_templates" / f"{template}.jinja").read_text("utf-8")
    tools = [spec.as_function() for spec in specs(calls)]
    user = {"role": "user", "content": "Go on."}
    made = [{"type": "function", "function": {"name": n, "arguments": dict(a)}} for n, a in calls]
    turn = {"role": "assistant", "content": "", "tool_calls": made}
    given: dict[str, Any] = {
        "chat_template": source,
        "tools": tools,
        "bos_token": "",
        "eos_token": "",
        "strftime_now": lambda form: datetime.date(2026, 1, 1).strftime(form),
    }
    ((prompt,), _) = render_jinja_template([[user]], add_generation_prompt=True, **given)
    ((whole,), _) = render_jinja_template([[user, turn]], **given)
    shared = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt)
    )
    return prompt[:shared], whole[shared:]


@pytest.mark.parametrize(("template", "parser", "calls"), CASES)
def test_what_a_template_renders_is_parsed_back(template: str, parser: str, calls: Calls) -> None:
    _, turn = rendered(template, calls)
    found = get_parser(parser)(turn, specs(calls))
    assert [(c.name, dict(c.arguments), c.error) for c in found] == [(*c, None) for c in calls]


RESPONSES: dict[str, tuple[str, Callable[[], Any]]] = {
    "qwen3": ("hermes", lambda: trl_templates.qwen3_template),
    "qwen3_5_think": ("qwen3_coder", lambda: trl_templates.qwen3_5_template),
    "gptoss": ("harmony", lambda: trl_templates.gptoss_template),
    "glm4moe": ("glm45", lambda: trl_templates.glm4moe_template),
}


@pytest.mark.parametrize("template", RESPONSES)
@pytest.mark.parametrize("calls", [ONE, BARE], ids=["one", "bare"])
def test_transformers_reads_the_same(template: str, calls: Calls) -> None:
    parser, response = RESPONSES[template]
    prompt, turn = rendered(template, calls)
    tools = [spec.as_function() for spec in specs(calls)]
    message = parse_response(turn, response(), prefix=prompt, tools=tools)
    theirs = [c["function"] for c in message["tool_calls"]]
    ours = get_parser(parser)(turn, specs(calls))
    assert [(c.name, dict(c.arguments)) for c in ours] == [
        (c["name"], c["arguments"]) for c in theirs
    ]


def test_what_transformers_loses() -> None:
    """Why the forms are read by hand: the day that this fails they need not be."""
    good = get_parser("hermes").render(ToolCall("a", {}))
    spoilt = good.replace("{", "", 1)
    response, parse = trl_templates.qwen3_template, get_parser("hermes")
    with pytest.raises(ValueError, match="could not parse region as JSON"):
        parse_response(f"{good}\n{spoilt}", response, prefix="")
    assert [c.status for c in parse(f"{good}\n{spoilt}")] == [
        CallStatus.PARSED,
        CallStatus.INVALID_JSON,
    ]
    quoting = get_parser("hermes").render(ToolCall("a", {"x": "</tool_call>"}))
    with pytest.raises(ValueError, match="could not parse region as JSON"):
        parse_response(quoting, response, prefix="")
    assert [c.arguments for c in parse(quoting)] == [{"x": "</tool_call>"}]
    # And it strips text: a file loses its last line break.
    lost = {**LINES[0][1], "text": str(LINES[0][1]["text"]).strip()}
    prompt, turn = rendered("glm4moe", LINES)
    tools = [spec.as_function() for spec in specs(LINES)]
    message = parse_response(turn, trl_templates.glm4moe_template, prefix=prompt, tools=tools)
    assert message["tool_calls"][0]["function"]["arguments"] == lost
    assert [c.arguments for c in get_parser("glm45")(turn, specs(LINES))] == [LINES[0][1]]
