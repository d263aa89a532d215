"""Text to calls: nothing raises, nothing attempted is lost, spans point at the text."""

import json
import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from journeyman.tools import CallStatus, ToolCall, get_parser, parse_hermes, render_hermes
from journeyman.tools.parsing import MAX_DEPTH, locate, token_ends
from journeyman.tools.parsing.tags import CLOSE, OPEN

PARSED, INVALID_JSON, UNCLOSED, MISSING_NAME, INVALID_ARGUMENTS = (
    CallStatus.PARSED,
    CallStatus.INVALID_JSON,
    CallStatus.UNCLOSED,
    CallStatus.MISSING_NAME,
    CallStatus.INVALID_ARGUMENTS,
)
Expected = tuple[CallStatus, str, dict[str, object]]


def ok(name: str, **arguments: object) -> Expected:
    return PARSED, name, arguments


def bad(status: CallStatus, name: str = "") -> Expected:
    return status, name, {}


def hermes(body: str) -> str:
    return f"{OPEN}\n{body}\n{CLOSE}"


A = '{"name": "a", "arguments": {}}'
MARKED = f'{{"name": "a", "arguments": {{"x": "{OPEN}{CLOSE}"}}}}'

TABLE: list[tuple[str, str, list[Expected]]] = [
    # Nothing attempted
    ("empty", "", []),
    ("prose", "Answer: 42", []),
    ("json without markers", A, []),
    ("closing marker alone", CLOSE, []),
    ("half an opening marker", OPEN[:-1] + A, []),
    ("another marker", "<tool_response>\n{}\n</tool_response>", []),
    ("marker in capitals", hermes(A).upper(), []),
    # Well formed
    ("plain", hermes(A), [ok("a")]),
    ("no whitespace", OPEN + A + CLOSE, [ok("a")]),
    ("much whitespace", f"{OPEN} \r\n\t {A} \n\n {CLOSE}", [ok("a")]),
    ("no arguments", hermes('{"name": "a"}'), [ok("a")]),
    ("llama's key", hermes('{"name": "a", "parameters": {"x": 1}}'), [ok("a", x=1)]),
    ("no arguments, other keys", hermes('{"id": 7, "type": "function", "name": "a"}'), [ok("a")]),
    ("more keys", hermes('{"id": 7, "name": "a", "arguments": {"x": 1}}'), [ok("a", x=1)]),
    ("keys the other way", hermes('{"arguments": {"x": 1}, "name": "a"}'), [ok("a", x=1)]),
    ("key twice: the last holds", hermes('{"name": "b", "name": "a"}'), [ok("a")]),
    (
        "every type",
        hermes('{"name": "a", "arguments": {"s": "", "i": -1, "f": 1e3, "t": true, "n": null}}'),
        [ok("a", s="", i=-1, f=1000.0, t=True, n=None)],
    ),
    (
        "nested",
        hermes('{"name": "a", "arguments": {"x": {"y": [1, {"z": []}]}}}'),
        [ok("a", x={"y": [1, {"z": []}]})],
    ),
    (
        "unicode",
        hermes('{"name": "a", "arguments": {"x": "Zoë 日本 🦜"}}'),
        [ok("a", x="Zoë 日本 🦜")],
    ),
    (
        "escapes",
        hermes(r'{"name": "a", "arguments": {"x": "\u00eb\n\"\\"}}'),
        [ok("a", x='ë\n"\\')],
    ),
    ("a pair of surrogates", hermes(r'{"name": "\ud83e\udd9c"}'), [ok("🦜")]),
    ("unicode name", hermes('{"name": "größe"}'), [ok("größe")]),
    (
        "braces in a string",
        hermes('{"name": "a", "arguments": {"x": "}{]["}}'),
        [ok("a", x="}{][")],
    ),
    # Text around
    ("text before", f"I will look.\n{hermes(A)}", [ok("a")]),
    ("text after", f"{hermes(A)}\nNow I wait.", [ok("a")]),
    ("text around, no space", f"x{hermes(A)}y", [ok("a")]),
    ("reasoning", f"<think>call a</think>{hermes(A)}", [ok("a")]),
    ("stray closing marker before", f"{CLOSE}{hermes(A)}", [ok("a")]),
    ("stray closing marker after", f"{hermes(A)}{CLOSE}", [ok("a")]),
    ("other closing tags before", f"</think>\n</parameter></function>{CLOSE}", []),
    # Not opened
    ("not opened", f"{A}\n{CLOSE}", [ok("a")]),
    ("not opened, text before", f"So {{1}} it is. {A}{CLOSE} ok", [ok("a")]),
    ("not opened, after a good one", f"{hermes(A)}\n{A}\n{CLOSE}", [ok("a"), ok("a")]),
    ("not opened, then a good one", f"{A}{CLOSE}{hermes(A)}", [ok("a"), ok("a")]),
    ("not opened, closing marker in a string", f'{{"name": "{CLOSE}"}}{CLOSE}', [ok(CLOSE)]),
    ("not opened, an opening marker in a string", MARKED + CLOSE, [bad(INVALID_JSON)] * 2),
    ("not opened, missing brace", A[:-1] + CLOSE, [bad(INVALID_JSON)]),
    ("not opened, objects before", f'{{}} is {{"x": 1}}: {A}{CLOSE}', [ok("a")]),
    ("not opened, prose", f"look up Ada\n{CLOSE}", [bad(INVALID_JSON)]),
    ("not opened, no name", f"{{}}{CLOSE}", [bad(MISSING_NAME)]),
    # Parallel
    ("two", hermes(A) + hermes('{"name": "b"}'), [ok("a"), ok("b")]),
    ("two, text between", f"{hermes(A)} and {hermes(A)}", [ok("a"), ok("a")]),
    ("three", "\n".join([hermes(A)] * 3), [ok("a")] * 3),
    ("good, bad, good", hermes(A) + hermes("?") + hermes(A), [ok("a"), bad(INVALID_JSON), ok("a")]),
    # Markers inside strings
    (
        "closing marker in a string",
        hermes(f'{{"name": "a", "arguments": {{"x": "{CLOSE}"}}}}'),
        [ok("a", x=CLOSE)],
    ),
    (
        "opening marker in a string",
        hermes(f'{{"name": "a", "arguments": {{"x": "{OPEN}"}}}}'),
        [ok("a", x=OPEN)],
    ),
    ("both markers in a string", hermes(MARKED), [ok("a", x=OPEN + CLOSE)]),
    ("both, and another call", hermes(MARKED) + hermes(A), [ok("a", x=OPEN + CLOSE), ok("a")]),
    (
        "the markers in a string, swapped",
        hermes(f'{{"name": "a", "arguments": {{"x": "{CLOSE}{OPEN}"}}}}'),
        [ok("a", x=CLOSE + OPEN)],
    ),
    (
        "a whole call in a string",
        hermes(json.dumps({"name": "a", "arguments": {"x": hermes(A)}})),
        [ok("a", x=hermes(A))],
    ),
    (
        "many closing markers in a string",
        hermes(json.dumps({"name": "a", "arguments": {"x": CLOSE * 50}})),
        [ok("a", x=CLOSE * 50)],
    ),
    # Not JSON
    ("empty body", OPEN + CLOSE, [bad(INVALID_JSON)]),
    ("blank body", hermes(" "), [bad(INVALID_JSON)]),
    ("prose as body", hermes("look up Ada"), [bad(INVALID_JSON)]),
    ("python's quotes", hermes("{'name': 'a'}"), [bad(INVALID_JSON)]),
    ("trailing comma", hermes('{"name": "a",}'), [bad(INVALID_JSON)]),
    ("missing brace", hermes('{"name": "a", "arguments": {}'), [bad(INVALID_JSON)]),
    ("brace too many", hermes(A + "}"), [bad(INVALID_JSON)]),
    ("two objects in one call", hermes(A + A), [bad(INVALID_JSON)]),
    ("text after the object", hermes(A + " please"), [bad(INVALID_JSON)]),
    ("raw newline in a string", hermes('{"name": "a\nb"}'), [bad(INVALID_JSON)]),
    ("comment", hermes('{"name": "a"} // done'), [bad(INVALID_JSON)]),
    ("code fence", hermes(f"```json\n{A}\n```"), [bad(INVALID_JSON)]),
    ("NaN", hermes('{"name": "a", "arguments": {"x": NaN}}'), [bad(INVALID_JSON)]),
    ("too large a number", hermes('{"name": "a", "arguments": {"x": 1e999}}'), [bad(INVALID_JSON)]),
    ("infinity", hermes('{"name": "a", "arguments": {"x": -Infinity}}'), [bad(INVALID_JSON)]),
    ("half a surrogate pair", hermes(r'{"name": "a\ud83e"}'), [bad(INVALID_JSON)]),
    ("an endless number", hermes(f'{{"name": "a", "x": {"9" * 5000}}}'), [bad(INVALID_JSON)]),
    ("list", hermes(f"[{A}]"), [bad(INVALID_JSON)]),
    ("null", hermes("null"), [bad(INVALID_JSON)]),
    ("string", hermes('"a"'), [bad(INVALID_JSON)]),
    ("number", hermes("7"), [bad(INVALID_JSON)]),
    (
        "too deep",
        hermes(f'{{"name": "a", "x": {"[" * MAX_DEPTH + "]" * MAX_DEPTH}}}'),
        [bad(INVALID_JSON)],
    ),
    ("far too deep", hermes("[" * 100_000 + "]" * 100_000), [bad(INVALID_JSON)]),
    # Not a call
    ("no name", hermes('{"arguments": {}}'), [bad(MISSING_NAME)]),
    ("empty name", hermes('{"name": ""}'), [bad(MISSING_NAME)]),
    ("null name", hermes('{"name": null}'), [bad(MISSING_NAME)]),
    ("number as name", hermes('{"name": 7}'), [bad(MISSING_NAME)]),
    ("object as name", hermes('{"name": {"name": "a"}}'), [bad(MISSING_NAME)]),
    ("openai's form", hermes('{"function": {"name": "a"}}'), [bad(MISSING_NAME)]),
    ("empty object", hermes("{}"), [bad(MISSING_NAME)]),
    ("arguments as list", hermes('{"name": "a", "arguments": [1]}'), [bad(INVALID_ARGUMENTS, "a")]),
    (
        "arguments as text",
        hermes('{"name": "a", "arguments": "{}"}'),
        [bad(INVALID_ARGUMENTS, "a")],
    ),
    ("another key", hermes('{"name": "a", "args": {"x": 1}}'), [bad(INVALID_ARGUMENTS, "a")]),
    ("arguments beside the name", hermes('{"name": "a", "x": 1}'), [bad(INVALID_ARGUMENTS, "a")]),
    ("arguments null", hermes('{"name": "a", "arguments": null}'), [bad(INVALID_ARGUMENTS, "a")]),
    # Cut short
    ("opening marker alone", OPEN, [bad(UNCLOSED)]),
    ("cut in the body", f'{OPEN}\n{{"name": "a"', [bad(UNCLOSED)]),
    ("cut before the closing marker", f"{OPEN}\n{A}\n", [bad(UNCLOSED)]),
    ("cut in the closing marker", hermes(A)[:-1], [bad(UNCLOSED)]),
    ("cut after a good one", hermes(A) + OPEN + A, [ok("a"), bad(UNCLOSED)]),
    ("not closed before the next", OPEN + A + hermes(A), [bad(UNCLOSED), ok("a")]),
    ("opened twice", OPEN + OPEN + A + CLOSE, [bad(UNCLOSED), ok("a")]),
    ("opened three times", OPEN * 3, [bad(UNCLOSED)] * 3),
    ("cut after markers in a string", OPEN + MARKED[:-1], [bad(UNCLOSED), bad(INVALID_JSON)]),
]


@pytest.mark.parametrize(("text", "expected"), [pytest.param(t, e, id=i) for i, t, e in TABLE])
def test_table(text: str, expected: list[Expected]) -> None:
    calls = parse_hermes(text)
    assert [(c.status, c.name, dict(c.arguments)) for c in calls] == expected
    check_account(text, calls)


def check_account(text: str, calls: list[ToolCall]) -> None:
    """Every marker lies in one call's span; errors stand where something is wrong."""
    position = 0
    for call in calls:
        assert call.span is not None
        start, end = call.span
        assert position <= start < end <= len(text)
        assert text.startswith(OPEN, start) or text[start:end].endswith(CLOSE)
        assert text[start:end].endswith(CLOSE) or call.status is UNCLOSED
        assert (call.error is None) == (call.status is PARSED)
        check_prose(text[position:start])
        position = end
    check_prose(text[position:])


def check_prose(text: str) -> None:
    """Nothing was attempted: a closing marker has nothing before it but others of its kind."""
    assert OPEN not in text
    assert re.fullmatch(r"(\s|</\w+>)*", text.rpartition(CLOSE)[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (OPEN + A, "not closed with </tool_call>"),
        (hermes("{'name': 'a'}"), "property name enclosed in double quotes"),
        (hermes('{"name": "a", "arguments": {"x": NaN}}'), "NaN is not a JSON number"),
        (hermes("[]"), "must be a JSON object"),
        (hermes("[" * 100_000), "nested too deeply"),
        (hermes(r'"\ud83e"'), "must be a JSON object"),
        (hermes(r'{"name": "\ud83e"}'), "half a character"),
        (hermes("{}"), 'no "name"'),
        (hermes('{"name": "a", "arguments": 3}'), '"arguments" must be a JSON object'),
        (hermes('{"name": "a", "x": 3}'), """'x' is not read: arguments go under "arguments"."""),
        (hermes('{"name": "a", "arguments": {"x": -1e999}}'), "-1e999 is too large a number"),
        (A[1:] + CLOSE, "not opened with <tool_call>"),
    ],
)
def test_errors_say_what_to_mend(text: str, says: str) -> None:
    (call,) = parse_hermes(text)
    assert call.error is not None
    assert says in call.error


def test_every_cut_of_a_turn_keeps_its_attempts() -> None:
    first = render_hermes(ToolCall("a", {"x": 'Zoë "{}" \\'}))
    second = render_hermes(ToolCall("b", {"y": [1, 2]}))
    text = f"Let me see. {first} then {second}"
    starts = [m.start() for m in re.finditer(OPEN, text)]
    ends = [m.end() for m in re.finditer(CLOSE, text)]
    for cut in range(len(text) + 1):
        statuses = [c.status for c in parse_hermes(text[:cut])]
        opened = sum(start + len(OPEN) <= cut for start in starts)
        closed = sum(end <= cut for end in ends)
        assert statuses == [PARSED] * closed + [UNCLOSED] * (opened - closed), text[:cut]


@pytest.mark.parametrize("piece", [OPEN, CLOSE, OPEN + CLOSE, OPEN + '{"', OPEN + '"' + CLOSE])
def test_a_long_turn_of_markers(piece: str) -> None:
    # A scan to the end of the text for each marker would run into the suite's time limit.
    text = piece * (300_000 // len(piece))
    check_account(text, parse_hermes(text))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from((OPEN, CLOSE, OPEN + CLOSE, "\\", '"', "}")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)
calls_ = st.builds(
    ToolCall,
    st.text(st.characters(codec="utf-8"), min_size=1) | st.sampled_from(("a", OPEN, CLOSE)),
    st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=3),
)
prose = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=20)


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(st.lists(st.tuples(prose, calls_), max_size=4), prose)
def test_round_trip(turn: list[tuple[str, ToolCall]], rest: str) -> None:
    text = "".join(before + render_hermes(call) for before, call in turn) + rest
    parsed = parse_hermes(text)
    assert [(c.name, c.arguments, c.status) for c in parsed] == [
        (c.name, c.arguments, PARSED) for _, c in turn
    ]
    for (_, call), found in zip(turn, parsed, strict=True):
        assert found.span is not None
        assert text[slice(*found.span)] == render_hermes(call)
        assert found.canonical() == call.canonical()


fragments = st.lists(
    st.sampled_from(
        [OPEN, CLOSE, OPEN[:5], CLOSE[5:], A, '{"name": "a"', '"arguments"', "null", "1e9", "NaN"]
    )
    | st.sampled_from(["\\ud800", "🦜", "\ud800", "\x00", "\n", *' "\\{}[]:,'])
    | st.text(max_size=3),
    max_size=24,
).map("".join)


@settings(deadline=None, derandomize=True, database=None, max_examples=700)
@example(OPEN + MARKED)
@given(fragments)
def test_never_raises_never_loses_an_attempt(text: str) -> None:
    check_account(text, parse_hermes(text))


def test_get_parser() -> None:
    assert get_parser("hermes") is parse_hermes
    with pytest.raises(KeyError, match=r"no parser 'herms'; there are: .*hermes"):
        get_parser("herms")


# Token spans

Decode = Callable[[Sequence[int]], str]


def of_bytes(text: str) -> tuple[list[int], Decode]:
    """A byte tokenizer: a character may take four tokens."""
    return list(text.encode()), lambda ids: bytes(ids).decode("utf-8", "replace")


def of_pieces(text: str) -> tuple[list[int], Decode]:
    """A word tokenizer: a token is a piece of the text."""
    pieces = re.findall(r"\w+|\W", text)
    return list(range(len(pieces))), lambda ids: "".join(pieces[i] for i in ids)


def of_stripped_pieces(text: str) -> tuple[list[int], Decode]:
    """As sentencepiece does it, the first token of what is decoded loses its space."""
    pieces = re.findall(r" ?\w+|\W", text)
    return list(range(len(pieces))), lambda ids: "".join(pieces[i] for i in ids).lstrip(" ")


TEXTS = (
    "",
    "x",
    "Zoë",
    "🦜🦜",
    f"Sure. {hermes(A)} Zoë {hermes(A)}!",
    "日本 " + hermes('{"name": "é"}'),
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [of_bytes, of_pieces, of_stripped_pieces])
def test_token_ends(tokenizer: Callable[[str], tuple[list[int], Decode]], text: str) -> None:
    ids, decode = tokenizer(text)
    ends = token_ends(ids, decode)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    for i, end in enumerate(ends):
        assert decode(ids[: i + 1]).rstrip("\ufffd") == text[:end]


@pytest.mark.parametrize("tokenizer", [of_bytes, of_pieces, of_stripped_pieces])
def test_locate_covers_each_call_and_no_more(
    tokenizer: Callable[[str], tuple[list[int], Decode]],
) -> None:
    for text in TEXTS:
        ids, decode = tokenizer(text)
        for call in locate(parse_hermes(text), token_ends(ids, decode)):
            assert call.span is not None and call.token_span is not None
            first, last = call.token_span
            spelled = text[slice(*call.span)]
            assert spelled in decode(ids[first:last])
            assert spelled not in decode(ids[first + 1 : last])
            assert spelled not in decode(ids[first : last - 1])


def test_equal_lengths_do_not_make_pieces_equal() -> None:
    # One token alone loses its space, another alone shows two marks for one character: the lengths
    # of the pieces add up to that of the text, yet neither end would be right.
    whole, alone = {1: "a", 2: "ab", 3: "ab ", 4: "ab é"}, {0: "a", 1: "b", 2: "", 3: "é\ufffd"}

    def decode(ids: Sequence[int]) -> str:
        return alone[ids[0]] if len(ids) == 1 else whole[len(ids)]

    assert token_ends([0, 1, 2, 3], decode) == [1, 2, 3, 4]


def test_a_call_cut_in_a_character_reaches_the_last_token() -> None:
    ids = list(f"é{OPEN}é".encode())[:-1]

    def decode(ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")

    (call,) = locate(parse_hermes(decode(ids)), token_ends(ids, decode))
    assert call.token_span == (2, len(ids))


def test_locate_leaves_calls_without_a_span_alone() -> None:
    call = ToolCall("a")
    assert locate([call], [1, 2]) == [call]
