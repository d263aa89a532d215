"""Where in a call its name and its arguments stand, in the families' own spellings."""

import json
from typing import Any

import pytest

from journeyman.tools import ToolCall
from journeyman.tools.parsing import CallPlaces, covering, get_parser
from journeyman.tools.parsing.form import CallFormat

from .forms import WRITERS, Arguments, dump, gemma4, text_of

ARGUMENTS: list[Arguments] = [
    {},
    {"city": "Oslo"},
    {"name": "weather", "arguments": {"name": "weather"}},  # words of the form itself
    {"city": "Oslo, the city: {1}", "days": 3, "exact": True},
    {"a": "b", "b": "a", "nested": {"a": [1, {"b": "}"}], "c": None}, "aa": -1.5},
    {"to": "functions.weather", "quoted": 'he said "a": 1, and left', "e": "é ✓"},
]


def written(form: str, key: str, value: Any) -> str:
    """An argument as the writers of `forms.py` spell it."""
    match form:
        case "pythonic":
            return f"{key}={value!r}"
        case "qwen3_coder":
            return f"<parameter={key}>\n{text_of(value)}\n</parameter>"
        case "glm45":
            return f"<arg_key>{key}</arg_key>\n<arg_value>{text_of(value)}</arg_value>"
        case "minimax_m2":
            return f'<parameter name="{key}">{text_of(value)}</parameter>'
        case "gemma4":
            return gemma4(("f", {key: value})).removeprefix("<|tool_call>call:f{")[
                : -len("}<tool_call|>")
            ]
    return f"{dump(key)}: {dump(value)}"


@pytest.mark.parametrize("dialect", WRITERS)
def test_names_and_arguments_stand_where_they_were_written(dialect: str) -> None:
    name, write = WRITERS[dialect]
    form = get_parser(name)
    for first in ARGUMENTS:
        for second in ARGUMENTS:
            text = f"{write(('weather', first), ('t', second))}"
            calls = form(text)
            assert [call.name for call in calls] == ["weather", "t"]
            for call, given in zip(calls, (first, second), strict=True):
                places = form.places(text, call)
                assert places.name is not None
                assert text[slice(*places.name)] == call.name
                found = {key: text[slice(*span)] for key, span in places.arguments.items()}
                assert found == {key: written(name, key, value) for key, value in given.items()}
                assert call.span is not None
                for start, end in (places.name, *places.arguments.values()):
                    assert call.span[0] <= start < end <= call.span[1]


SPELLINGS = {
    "arguments first": ("hermes", '<tool_call>{"arguments":{"a":1},"name":"f"}</tool_call>'),
    "no opening mark": ("hermes", '{"name": "f", "parameters": {"a":1}}</tool_call>'),
    "built-in": ("llama3_json", "<|python_tag|>f.call(a=1)"),
    "call id": ("mistral", '[TOOL_CALLS]f[CALL_ID]faa[ARGS]{"a":1}'),
    "no mark": ("mistral", 'f[ARGS]{"a":1}'),
    "no [ARGS]": ("mistral", '[TOOL_CALLS]f{"a":1}'),
    "no functions.": ("harmony", '<|channel|>analysis to=f<|message|>{"a":1}'),
    "bare function": ("qwen3_coder", "<function=f><parameter=a>1</parameter></function>"),
    "close": ("glm45", "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"),
    "one quote": (
        "minimax_m2",
        "<minimax:tool_call><invoke name='f'><parameter name=a>1</parameter></invoke>",
    ),
    "no section": (
        "kimi_k2",
        '<|tool_call_begin|>f<|tool_call_argument_begin|>{"a":1}<|tool_call_end|>',
    ),
    "no fence": ("deepseek_v3", '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a":1}<｜tool▁call▁end｜>'),
    "JSON's quotes": ("gemma4", '<|tool_call>call:f{"a": 1}<tool_call|>'),
    "spaced": ("pythonic", "<|tool_call_start|>[ f ( a=1 ) ]<|tool_call_end|>"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings(spelling: str) -> None:
    name, call_text = SPELLINGS[spelling]
    form, text = get_parser(name), call_text
    (call,) = form(text)
    assert (call.name, call.error) == ("f", None)
    places = form.places(text, call)
    assert places.name is not None
    assert text[slice(*places.name)] == "f"
    (argument,) = places.arguments.items()
    assert argument[0] == "a"
    assert "1" in text[slice(*argument[1])]
    assert "a" in text[slice(*argument[1])]


@pytest.mark.parametrize("dialect", WRITERS)
def test_a_call_that_was_cut_anywhere_has_no_places_outside_of_it(dialect: str) -> None:
    name, write = WRITERS[dialect]
    form = get_parser(name)
    whole = write(("weather", {"a": "x, y", "b": [1, {"c": 2}]}))
    for cut in range(len(whole)):
        text = "ok\n" + whole[:cut]
        for call in form(text):
            assert call.span is not None
            places = form.places(text, call)
            for start, end in (*([places.name] if places.name else []), *places.arguments.values()):
                assert call.span[0] <= start <= end <= call.span[1]


def test_a_form_that_does_not_tell_and_a_call_without_a_span() -> None:
    silent = CallFormat("mine", lambda text, start: [], lambda calls: "")
    assert silent.places("f()", ToolCall("f", span=(0, 3))) == CallPlaces()
    assert get_parser("hermes").places(json.dumps({"name": "f"}), ToolCall("f")) == CallPlaces()


def test_tokens_that_cover_characters() -> None:
    ends = [2, 2, 5, 9]  # the second token adds no character
    assert [covering(span, ends) for span in ((0, 2), (1, 3), (2, 5), (4, 9))] == [
        (0, 1),
        (0, 3),
        (2, 3),
        (2, 4),
    ]
