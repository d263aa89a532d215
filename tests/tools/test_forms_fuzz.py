"""Properties of every call form: nothing raises, nothing is lost."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journeyman.tools import CallStatus, ToolCall, get_parser
from journeyman.tools.parsing import PARSERS

from .forms import WRITERS, specs

FORMS = sorted(PARSERS)
quick = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)

# The markers that open an attempt wherever they stand in prose.
OPENERS = {
    "hermes": "<tool_call>",
    "llama3_json": "<|python_tag|>",
    "pythonic": "<|python_start|>",
    "qwen3_coder": "<tool_call>",
    "mistral": "[TOOL_CALLS]",
    "harmony": "<|channel|>commentary to=functions.a",
    "glm45": "<tool_call>",
    "gemma4": "<|tool_call>",
    "cohere": "<|START_ACTION|>",
    "deepseek_v3": "<｜tool▁calls▁begin｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜>",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "minimax_m2": "<minimax:tool_call>",
    "granite": "<|tool_call|>",
    "phi4_mini": "<|tool_call|>",
}
MARKERS = (
    *OPENERS.values(),
    *("</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>", "<arg_key>"),
    *(
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "[ARGS]",
        "[CALL_ID]",
        "<|message|>",
        "<|call|>",
    ),
    *(
        "<|start|>assistant",
        "<|end|>",
        "to=",
        "<|python_end|>",
        "<|eot_id|>",
        "</s>",
        "[a(",
        ".call(",
    ),
    *(
        '{"name": "a"',
        '"arguments": {',
        '"parameters"',
        '"x": "y"',
        "x=1",
        "x='",
        '"""',
        "{}",
        "; ",
    ),
    *("<tool_call|>", '<|"|>', "call:a{", "x:", "<|END_ACTION|>", "<|/tool_call|>", "```json"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    *("</minimax:tool_call>", '<invoke name="a">', "</invoke>", '<parameter name="x">'),
)
fragments = st.lists(
    st.sampled_from(MARKERS)
    | st.sampled_from(["\\ud800", "\ud800", "🦜", "\x00", "\n", "NaN", *" '\"\\{}[]()<>:,;=-1"])
    | st.text(max_size=3),
    max_size=16,
).map("".join)


@pytest.mark.parametrize("form", FORMS)
@quick
@given(text=fragments)
def test_any_text(form: str, text: str) -> None:
    """Never raises; openers are accounted for."""
    parse = get_parser(form)
    calls = parse(text)
    position = 0
    between = []
    for call in calls:
        assert call.span is not None
        start, end = call.span
        assert position <= start < end <= len(text)
        assert (call.error is None) == (call.status is CallStatus.PARSED)
        json.dumps(dict(call.arguments), ensure_ascii=False)
        between.append(text[position:start])
        position = end
    assert all(OPENERS[form] not in prose for prose in (*between, text[position:]))


plain = st.text(st.characters(codec="utf-8", exclude_characters="<>[]{}()\"'\\\r\n;"), max_size=8)
leaves = st.none() | st.booleans() | st.integers(-(10**18), 10**18) | plain
values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(plain, leaves, max_size=2)
names = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)
arguments_ = st.dictionaries(names, values, max_size=3)
turns = st.lists(st.tuples(names, arguments_), min_size=1, max_size=4, unique_by=lambda c: c[0])


@pytest.mark.parametrize("dialect", WRITERS)
@quick
@given(turn=turns)
def test_well_formed_turns_round_trip(
    dialect: str, turn: list[tuple[str, dict[str, object]]]
) -> None:
    parser, write = WRITERS[dialect]
    parse, tools = get_parser(parser), specs(turn)
    text = write(*turn)
    assert [(c.name, dict(c.arguments)) for c in parse(text, tools)] == turn
    rendered = parse.render(*(ToolCall(name, arguments) for name, arguments in turn))
    calls = parse(rendered, tools)
    assert [(c.name, dict(c.arguments)) for c in calls] == turn


quoted = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(MARKERS)


@pytest.mark.parametrize("form", sorted(set(PARSERS) - {"qwen3_coder", "glm45", "minimax_m2"}))
@quick
@given(turn=st.lists(st.tuples(names, st.dictionaries(names, quoted, max_size=3)), max_size=3))
def test_quoted_text_may_be_anything(form: str, turn: list[tuple[str, dict[str, str]]]) -> None:
    parse = get_parser(form)
    text = parse.render(*(ToolCall(name, arguments) for name, arguments in turn))
    assert [(c.name, dict(c.arguments)) for c in parse(text)] == (turn if turn else [])


# How an attempt may go wrong within its ends, so that it still is one attempt: what stands for the
# arguments of `a(x="y")` in the family's form.
SPOILT = {
    "hermes": ["<tool_call>{}</tool_call>".replace("{}", s) for s in ("", "?", '{"name"}', "[]")],
    "llama3_json": ["<|python_tag|>" + s for s in ('{"name" 1}', "{'a'}", '{"name": "a",}', "{}")],
    "pythonic": [f"<|python_start|>{s}<|python_end|>" for s in ("[a(1)]", "[?]", "[a(x=y)]", "[]")],
    "qwen3_coder": [
        f"<tool_call>{s}</tool_call>"
        for s in ("", "?", "<function=a>", "<function=a><parameter=x>1</function>")
    ],
    "mistral": ["[TOOL_CALLS]" + s for s in ("[?]", "a[ARGS]{?}", "[ARGS]{}", "a[ARGS]", "a")],
    "harmony": [
        f"<|channel|>commentary to=functions.a{s}<|call|>"
        for s in ("", "<|message|>", "<|message|>{", "<|constrain|>json<|message|>[1]")
    ],
    "glm45": [
        f"<tool_call>{s}</tool_call>"
        for s in ("", "{}", "a<arg_key>x", "a<arg_key>x</arg_key><arg_value>1")
    ],
    "gemma4": [
        f"<|tool_call>{s}<tool_call|>"
        for s in ("", "a{}", "call:a{x}", "call:a{x:y}", "call:a{x:1", "call:a")
    ],
    "cohere": [
        f"<|START_ACTION|>{s}<|END_ACTION|>"
        for s in ("", "[?]", "{}", '[{"tool_name": "a",}]', '[{"name": "a", "parameters": {}}]')
    ],
    "deepseek_v3": [
        f"<｜tool▁calls▁begin｜>{s}<｜tool▁calls▁end｜>"
        for s in (
            "",
            "<｜tool▁call▁begin｜><｜tool▁call▁end｜>",
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{?}\n```<｜tool▁call▁end｜>",
            '<｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{"x": 1}',
        )
    ],
    "deepseek_v31": [
        f"<｜tool▁calls▁begin｜>{s}<｜tool▁calls▁end｜>"
        for s in ("", "<｜tool▁call▁begin｜>a<｜tool▁sep｜>[1]<｜tool▁call▁end｜>")
    ],
    "kimi_k2": [
        f"<|tool_calls_section_begin|>{s}<|tool_calls_section_end|>"
        for s in (
            "",
            "<|tool_call_begin|>functions.a:0<|tool_call_end|>",
            "<|tool_call_begin|>functions.a:0<|tool_call_argument_begin|>{?}<|tool_call_end|>",
        )
    ],
    "minimax_m2": [
        f"<minimax:tool_call>{s}</minimax:tool_call>"
        for s in (
            "",
            "{}",
            '<invoke name="a">',
            "<invoke>",
            '<invoke name="a"><parameter name="x">1</invoke>',
        )
    ],
    "granite": ["<|tool_call|>" + s for s in ("[?]", '[{"name": 1}]', "[]", '[{"name": "a",}]')],
    "phi4_mini": [f"<|tool_call|>{s}<|/tool_call|>" for s in ("", "?", "[{}]", "[")],
}


# What is left of a good attempt whose opening marker was left out. (GLM's and Qwen3-Coder's have no
# quotes: there a closing marker in a value ends what was never opened.)
UNOPENED = {
    "hermes": '\n{"name": "a", "arguments": {"x": "</tool_call>"}}\n</tool_call>',
    "qwen3_coder": "\n<parameter=x>\ny\n</parameter>\n</function>\n</tool_call>",
    "glm45": "a\n<arg_key>x</arg_key>\n<arg_value>y</arg_value>\n</tool_call>",
    "mistral": ' a[ARGS]{"x": "[TOOL_CALLS]"}',
}


@pytest.mark.parametrize("form", UNOPENED)
@quick
@given(data=st.data())
def test_attempts_that_nothing_opens_count(form: str, data: st.DataObject) -> None:
    parse = get_parser(form)
    good = parse.render(ToolCall("a", {"x": "y"}))
    attempts = data.draw(st.lists(st.sampled_from([good, UNOPENED[form]]), min_size=1, max_size=4))
    prose = data.draw(st.lists(plain, min_size=len(attempts) + 1, max_size=len(attempts) + 1))
    text = prose[0] + "".join(a + p for a, p in zip(attempts, prose[1:], strict=True))
    calls = parse(text)
    assert len(calls) == len(attempts)
    read = form in ("hermes", "mistral")
    assert [c.status is CallStatus.PARSED for c in calls] == [read or a == good for a in attempts]
    assert not parse("".join(prose))


@pytest.mark.parametrize("form", UNOPENED)
@pytest.mark.parametrize(
    "text",
    [
        "Answer: 42",
        'It is {"name": "a", "arguments": {}} or {}.',
        '[{"name": "a", "arguments": {}}]',
        "See [1] and [args]: a(x=1), b[0] < c > d.",
        "<b>bold</b> </think> tool_call /tool_call",
        "</think>\n\nThe tool_call was made; ARGS were [1, 2].",
    ],
)
def test_prose_is_no_attempt(form: str, text: str) -> None:
    assert get_parser(form)(text) == []


@pytest.mark.parametrize("form", FORMS)
@quick
@given(data=st.data())
def test_every_attempt_is_counted(form: str, data: st.DataObject) -> None:
    """Good and spoilt attempts in any order, the last one cut anywhere: as many calls come out."""
    parse = get_parser(form)
    good = parse.render(ToolCall("a", {"x": "y"}))
    if form == "llama3_json":  # an object right after prose needs its tag to be an attempt at once
        good = "<|python_tag|>" + good
    if form == "pythonic":
        good = f"<|python_start|>{good}<|python_end|>"
    attempts = data.draw(st.lists(st.just(good) | st.sampled_from(SPOILT[form]), max_size=5))
    prose = data.draw(st.lists(plain, min_size=len(attempts) + 1, max_size=len(attempts) + 1))
    if form == "mistral":  # what follows an unfinished name would be part of it
        prose = [""] * len(prose)
    text = prose[0] + "".join(a + p for a, p in zip(attempts, prose[1:], strict=True))
    calls = parse(text)
    assert len(calls) == len(attempts)
    for attempt, call in zip(attempts, calls, strict=True):
        assert (call.status is CallStatus.PARSED) == (attempt == good)
    opener = len(OPENERS[form])
    cut = data.draw(st.integers(opener, len(good) - 1))
    last = parse(text + good[:cut])
    assert len(last) == len(attempts) + 1
    assert last[:-1] == calls


SECTIONS = ("cohere", "deepseek_v3", "deepseek_v31", "kimi_k2", "minimax_m2", "phi4_mini")


@pytest.mark.parametrize("form", FORMS)
def test_every_cut_keeps_its_attempts(form: str) -> None:
    parse = get_parser(form)
    text = "So: " + parse.render(ToolCall("a", {"x": 'Zoë "{}" \\'}), ToolCall("b", {"y": "z"}))
    whole = parse(text)
    spans = [c.span or (0, 0) for c in whole]
    # Where it is certain that an attempt was begun and that it has ended.
    for cut in range(len(text) + 1):
        calls = parse(text[:cut])
        finished = [c for c, (_, end) in zip(whole, spans, strict=True) if end <= cut]
        assert calls[: len(finished)] == finished
        assert len(calls) <= len(whole)
        assert all(
            c.status is not CallStatus.PARSED
            or c in whole
            or form == "harmony"
            # Whole itself, but for the marker that ends the section it is the last of.
            or (form in SECTIONS and (c.name, c.arguments) == (whole[-1].name, whole[-1].arguments))
            for c in calls
        )
        if calls and cut >= spans[-1][0] + len(OPENERS[form]):
            assert len(calls) == len(whole)


@pytest.mark.parametrize("form", FORMS)
def test_long_turns_of_markers(form: str) -> None:
    # A scan to the end of the text for each marker would run into the suite's time limit.
    pieces = [OPENERS[form], *(m for m in MARKERS if m[0] in OPENERS[form][0] + "{[")]
    for piece in {*pieces, *(OPENERS[form] + m for m in ("{", '{"', "[", "[a(", "<function=a>"))}:
        text = piece * (20_000 // len(piece))
        opened = len(re.findall(re.escape(OPENERS[form]), text))
        calls = get_parser(form)(text)
        assert bool(calls) or not opened
