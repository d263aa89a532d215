"""A table of turns over every family of call forms; the Hermes form has more in test_parsing.py."""

import pytest

from journeyman.tools import CallStatus, ToolCall, ToolSpec, execute, get_parser, tool
from journeyman.tools.parsing import PARSERS

from .forms import WRITERS, Arguments, specs

PARSED, INVALID_JSON, UNCLOSED, MISSING_NAME, INVALID_ARGUMENTS = (
    CallStatus.PARSED,
    CallStatus.INVALID_JSON,
    CallStatus.UNCLOSED,
    CallStatus.MISSING_NAME,
    CallStatus.INVALID_ARGUMENTS,
)

# What every dialect must be able to say.
ARGUMENTS: dict[str, Arguments] = {
    "none": {},
    "text": {"city": "Oslo"},
    "empty text": {"x": ""},
    "blank text": {"x": "  "},
    "integer": {"x": -17},
    "float": {"x": 2.5},
    "booleans": {"x": True, "y": False},
    "null": {"x": None},
    "list": {"x": [1, "two", None, [3]]},
    "nested": {"x": {"y": [1, {"z": {"deep": ["er"]}}]}},
    "several": {"a": 1, "b": "2", "c": [3], "d": {"e": 4}},
    "number in text": {"x": "007"},
    "unicode": {"x": "Zoë 日本 🦜", "größe": "ß"},
    "quotes": {"x": """it's "quoted" 'twice'"""},
    "backslashes": {"x": "C:\\new\\table \\d+"},
    "lines": {"x": "one\ntwo\n\n  three"},
    "brackets": {"x": "}{][)( ,;"},
    "code": {"x": "def f(x):\n    return [g(a=1), {'b': x}]  # \"ok\""},
    "json in text": {"x": '{"name": "b", "arguments": {}}'},
    "markup": {"x": "<b>bold</b> & <i>"},
}


def shown(calls: list[ToolCall]) -> list[tuple[str, str, dict[str, object]]]:
    return [(c.status.value, c.name, dict(c.arguments)) for c in calls]


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(dialect: str, arguments: Arguments) -> None:
    parser, write = WRITERS[dialect]
    text = write(("get_weather", arguments))
    (call,) = get_parser(parser)(text, specs([("get_weather", arguments)]))
    assert (call.name, call.arguments, call.error) == ("get_weather", arguments, None)
    assert call.span == (0, len(text))


A, B, C = ("a", {"x": "1"}), ("b", {}), ("a.b-c", {"x": "2", "y": "3"})
ARRANGED = {
    "text before": ("I will look.\n{}", [A]),
    "text after": ("{}\nNow I wait.", [A]),
    "text around": ("Zoë (1, 2): {} so.", [A]),
    "reasoning": ("<think>a(x) or b?</think>\n\n{}", [A]),
    "dotted name": ("{}", [C]),
    "two": ("{}", [A, B]),
    "two, text around": ("First\n{}\nlast", [B, A]),
    "three": ("{}", [A, C, B]),
    "one twice": ("{}", [A, A]),
}


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize(("around", "given"), ARRANGED.values(), ids=ARRANGED)
def test_arranged(dialect: str, around: str, given: list[tuple[str, Arguments]]) -> None:
    parser, write = WRITERS[dialect]
    written = write(*given)
    text = around.replace("{}", written)
    calls = get_parser(parser)(text)
    assert [(c.name, c.arguments, c.error) for c in calls] == [(*call, None) for call in given]
    spans = [c.span for c in calls]
    assert spans == sorted(spans)
    first, last = text.index(written), text.index(written) + len(written)
    assert spans[0] is not None and spans[0][0] == first
    assert spans[-1] is not None and spans[-1][1] == last


Expected = tuple[CallStatus, str]
P, J, U, M, I = (  # noqa: E741
    lambda name: (PARSED, name),
    lambda name="": (INVALID_JSON, name),
    lambda name="": (UNCLOSED, name),
    (MISSING_NAME, ""),
    lambda name: (INVALID_ARGUMENTS, name),
)

HEAD = "<|channel|>commentary to=functions.a <|constrain|>json<|message|>"
TABLE: dict[str, dict[str, tuple[str, list[Expected]]]] = {
    "llama3_json": {
        "prose": ("Answer: {42}", []),
        "an object in prose": ('It is {"city": "Oslo"}.', []),
        "empty": ("", []),
        "another key": ('{"name": "a", "x": 1}', [I("a")]),
        "too large a number": ('{"name": "a", "parameters": {"x": 1e999}}', [J()]),
        "no parameters": ('{"name": "a"}', [P("a")]),
        "arguments as key": ('{"name": "a", "arguments": {"x": 1}}', [P("a")]),
        "with a type": ('So {"type": "function", "name": "a", "parameters": {}}', [P("a")]),
        "end of turn": ('{"name": "a", "parameters": {}}<|eot_id|>', [P("a")]),
        "one a line": ('{"name": "a"}\n{"name": "b"}', [P("a"), P("b")]),
        "tag each": ('<|python_tag|>{"name": "a"}<|python_tag|>{"name": "b"}', [P("a"), P("b")]),
        "tag in a string": ('{"name": "a", "parameters": {"x": "<|python_tag|>"}}', [P("a")]),
        "semicolon in a string": ('{"name": "a", "parameters": {"x": "; {"}}', [P("a")]),
        "built-in": ('<|python_tag|>search.call(query="x, y")<|eom_id|>', [P("search")]),
        "built-in, cut": ('<|python_tag|>search.call(query="x', [U()]),
        "built-in, bad value": ("<|python_tag|>search.call(query=x)", [J("search")]),
        "code after the tag": ("<|python_tag|>print(1)", [I("print")]),
        "prose after the tag": ("<|python_tag|>look it up<|eom_id|>", [J()]),
        "list after the tag": ('<|python_tag|>[{"name": "a"}]', [J()]),
        "tag alone": ("<|python_tag|>", [U()]),
        "tags alone": ("<|python_tag|> <|python_tag|>", [U(), U()]),
        "an object at the start": ('{"city": "Oslo"}', [M]),
        "no name": ('<|python_tag|>{"parameters": {}}', [M]),
        "parameters as text": ('{"name": "a", "parameters": "{}"}', [I("a")]),
        "python's quotes": ("{'name': 'a'}", [J()]),
        "trailing comma": ('{"name": "a",}', [J()]),
        "bad, then good": ('{"name": "a",}; {"name": "b"}', [J(), P("b")]),
        "missing brace, then good": ('{"name": "a"; {"name": "b"}', [U(), P("b")]),
        "cut": ('{"name": "a", "parameters": {"x": "y', [U()]),
        "cut after the tag": ('<|python_tag|>{"name": "a"', [U()]),
        "cut by the end of turn": ('{"name": "a"<|eot_id|>', [U()]),
        "good, then cut": ('{"name": "a"}; {"name"', [P("a"), U()]),
        "nan": ('{"name": "a", "parameters": {"x": NaN}}', [J()]),
        "too deep": ('{"name": "a", "x": ' + "[" * 200 + "]" * 200 + "}", [J()]),
    },
    "pythonic": {
        "prose": ("Answer: f(x) is [1, 2]", []),
        "a link": ("see [the page](http://x)", []),
        "lfm2's markers": ("<|tool_call_start|>[a(x='1')]<|tool_call_end|>", [P("a")]),
        "space everywhere": ("[ a ( x = 1 , y = 2 ) , b ( ) ]", [P("a"), P("b")]),
        "over lines": ('[\n  a(\n    x="1",\n  ),\n  b(),\n]', [P("a"), P("b")]),
        "a keyword as argument": ('[a(from="Oslo", class=1)]', [P("a")]),
        "json's names": ("[a(x=true, y={'z': null}, w=[false])]", [P("a")]),
        "triple quotes": ('[a(x="""it\'s\n"so" """)]', [P("a")]),
        "unknown escape": (r'[a(x="\d+\.")]', [P("a")]),
        "raw string": (r'[a(x=r"\d")]', [P("a")]),
        "joined strings": ('[a(x="1" "2")]', [P("a")]),
        "tuple": ("[a(x=(1, 2))]", [P("a")]),
        "two lists": ("[a()] then [b()]", [P("a"), P("b")]),
        "a list in a string": ('[a(x="[b()]")]', [P("a")]),
        "marker in a string": ('<|python_start|>[a(x="<|python_end|>")]<|python_end|>', [P("a")]),
        "variable": ("[a(x=y)]", [J("a")]),
        "expression": ("[a(x=1 + 2)]", [J("a")]),
        "call as value": ("[a(x=b())]", [J("a")]),
        "f-string": ('[a(x=f"{y}")]', [J("a")]),
        "bytes": ('[a(x=b"y")]', [J("a")]),
        "too large a number": ("[a(x=1e999), a(x=[-1e999])]", [J("a"), J("a")]),
        "a set": ("[a(x={1, 2})]", [J("a")]),
        "unpacked": ("[a(x={**y})]", [J("a")]),
        "number as key": ("[a(x={1: 2})]", [J("a")]),
        "nothing as value": ("[a(x=)]", [J("a")]),
        "comparison": ("[a(x==1)]", [I("a")]),
        "positional": ("[a(1)]", [I("a")]),
        "stars": ("[a(**x)]", [I("a")]),
        "twice": ("[a(x=1, x=2)]", [I("a")]),
        "half a pair": (r'[a(x="\ud83e")]', [J()]),
        "too deep": ("[a(x=" + "[" * 150 + "]" * 150 + ")]", [J()]),
        "far too deep": ("[a(x=" + "[" * 9000 + "]" * 9000 + ")]", [J("a")]),
        "text after the call": ("[a() please]", [J("a")]),
        "something else between": ("[a(), 3, b()]", [P("a"), M, P("b")]),
        "good, bad, good": ("[a(), b(x=?), a()]", [P("a"), J("b"), P("a")]),
        "missing parenthesis": ("[a(x=1]", [J("a")]),
        "empty list": ("<|python_start|>[]<|python_end|>", [M]),
        "no list": ("<|python_start|>a()<|python_end|>", [J()]),
        "marker alone": ("<|python_start|>", [U()]),
        "markers alone": ("<|python_start|><|python_start|>", [U(), U()]),
        "cut": ('[a(x="1', [U()]),
        "cut before the bracket": ("[a(x=1)", [U()]),
        "cut in the second": ("[a(x=1), b", [P("a"), U()]),
        "cut between": ("[a(x=1), ", [P("a")]),
        "closed without a bracket": ("<|python_start|>[a()<|python_end|>", [U()]),
    },
    "qwen3_coder": {
        "prose": ("Answer: 42", []),
        "closing markers alone": ("</parameter></function></tool_call>", []),
        "no space": (
            "<tool_call><function=a><parameter=x>1</parameter></function></tool_call>",
            [P("a")],
        ),
        "no opening marker": ("<function=a>\n</function>\n</tool_call>", [P("a")]),
        "not opened": ("<parameter=x>1</parameter></function></tool_call>", [J()]),
        "bare": ("So <function=a>\n<parameter=x>\n1\n</parameter>\n</function>.", [P("a")]),
        "two bare": ("<function=a></function><function=b></function>", [P("a"), P("b")]),
        "closing tag in a value": (
            "<tool_call><function=a><parameter=x></parameter> and </function>-like"
            "</parameter></function></tool_call>",
            [P("a")],
        ),
        "closing marker in a value": (
            "<tool_call><function=a><parameter=x></tool_call></parameter></function></tool_call>",
            [P("a")],
        ),
        "no name": ("<tool_call><function=></function></tool_call>", [M]),
        "no function": ("<tool_call>\n</tool_call>", [J()]),
        "json": ('<tool_call>\n{"name": "a"}\n</tool_call>', [J()]),
        "text in the function": ("<tool_call><function=a>x</function></tool_call>", [J()]),
        "unclosed name": ("<tool_call><function=a\n</function></tool_call>", [J()]),
        "unclosed parameter name": (
            "<tool_call><function=a><parameter=x\n1</parameter></function></tool_call>",
            [J()],
        ),
        "unclosed parameter": (
            "<tool_call><function=a><parameter=x>1</function></tool_call>",
            [J()],
        ),
        "unclosed function": ("<tool_call><function=a></tool_call>", [J()]),
        "text after the function": ("<tool_call><function=a></function>x</tool_call>", [J()]),
        "bare, text in it": ("<function=a>x</function>", [J()]),
        "good, bad, good": (
            "<tool_call><function=a></function></tool_call><tool_call>?</tool_call>"
            "<tool_call><function=b></function></tool_call>",
            [P("a"), J(), P("b")],
        ),
        "marker alone": ("<tool_call>", [U()]),
        "opened twice": (
            "<tool_call><function=a><tool_call><function=b></function></tool_call>",
            [U(), P("b")],
        ),
        "cut in the name": ("<tool_call>\n<function=a", [U()]),
        "cut in a value": ("<tool_call>\n<function=a>\n<parameter=x>\n1", [U()]),
        "cut after a value": ("<tool_call><function=a><parameter=x>1</parameter>", [U()]),
        "cut before the last marker": ("<tool_call><function=a></function>", [U()]),
        "bare, cut": ("<function=a><parameter=x>", [U()]),
        "bare, cut by the next": ("<function=a>x<function=b></function>", [U(), P("b")]),
        "half a pair": (
            "<tool_call><function=a><parameter=x>\ud83e</parameter></function></tool_call>",
            [J()],
        ),
    },
    "mistral": {
        "prose": ("Answer: [42]", []),
        "json without the marker": ('[{"name": "a", "arguments": {}}]', []),
        "args without the marker": ("I try a[ARGS]{} then.", [P("a")]),
        "id without the marker": ("a[CALL_ID]123[ARGS]{}", [P("a")]),
        "no marker for the second": ("[TOOL_CALLS]f[ARGS]{} g[ARGS]{}", [P("f"), P("g")]),
        "no marker, no object": ("f[ARGS]a=1 g[ARGS]{}", [J("f"), P("g")]),
        "no marker, nothing": ("f[ARGS] g[ARGS]{}", [U("f"), P("g")]),
        "no marker after a missing brace": (
            '[TOOL_CALLS]f[ARGS]{"a": 1 g[ARGS]{}',
            [U("f"), P("g")],
        ),
        "no marker, no name": ('{"a": 1} [ARGS]{}', [M]),
        "no marker, cut": ("f[ARGS]", [U("f")]),
        "no marker, after an end": ("</s>f[ARGS]{}", [P("f")]),
        "no marker, no name, after an end": ("x</s> [ARGS]{}", [M]),
        "no marker, cut after an end": ("a x</s>f[CALL_ID]1", [U("f")]),
        "two lists": (
            '[TOOL_CALLS][{"name": "f"}] [{"name": "g"}]\n[{"name": ',
            [P("f"), P("g"), U()],
        ),
        "a list in prose after a list": ('[TOOL_CALLS][{"name": "f"}] [1] is it', [P("f")]),
        "a name after a list that is cut": ('[TOOL_CALLS][{"name" g[ARGS]{}', [U(), P("g")]),
        "list: parameters": ('[TOOL_CALLS][{"name": "f", "parameters": {"a": 1}}]', [P("f")]),
        "list: another key": ('[TOOL_CALLS][{"name": "f", "a": 1}]', [I("f")]),
        # As mistral-common 1.13 writes two calls with its tokenizers v3, v11 and v13.
        "v3": (
            '[TOOL_CALLS][{"name": "f", "arguments": {"a": "x é", "n": 1}, "id": "abcdefghi"}, '
            '{"name": "g", "arguments": {}, "id": "bbbbbbbbb"}]</s>',
            [P("f"), P("g")],
        ),
        "v11": (
            '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": "x é", "n": 1}'
            "[TOOL_CALLS]g[CALL_ID]bbbbbbbbb[ARGS]{}</s>",
            [P("f"), P("g")],
        ),
        "v13": (
            '[TOOL_CALLS]f[ARGS]{"a": "x é", "n": 1}[TOOL_CALLS]g[ARGS]{}</s>',
            [P("f"), P("g")],
        ),
        "no args marker": ('[TOOL_CALLS]f{"a": 1}', [P("f")]),
        "space": ('[TOOL_CALLS] f [ARGS] {"a": 1}', [P("f")]),
        "marker in a string": ('[TOOL_CALLS]f[ARGS]{"a": "[TOOL_CALLS]g[ARGS]{}"}', [P("f")]),
        "marker in a listed string": (
            '[TOOL_CALLS][{"name": "f", "arguments": {"a": "], [TOOL_CALLS]"}}]',
            [P("f")],
        ),
        "no name": ("[TOOL_CALLS][ARGS]{}", [M]),
        "a sentence as name": ("[TOOL_CALLS]call f now[ARGS]{}", [J()]),
        "no object": ("[TOOL_CALLS]f[ARGS]a=1</s>", [J("f")]),
        "a list as arguments": ("[TOOL_CALLS]f[ARGS][1]", [J("f")]),
        "python's quotes": ("[TOOL_CALLS]f[ARGS]{'a': 1}", [J("f")]),
        "bad, then good": ('[TOOL_CALLS]f[ARGS]{"a" 1}[TOOL_CALLS]g[ARGS]{}', [J("f"), P("g")]),
        "missing brace, then good": (
            '[TOOL_CALLS]f[ARGS]{"a": 1[TOOL_CALLS]g[ARGS]{}',
            [U("f"), P("g")],
        ),
        "list: bad, then good": (
            '[TOOL_CALLS][{"name": "f",}, {"name": "g"}]',
            [J(), P("g")],
        ),
        "list: no name": ('[TOOL_CALLS][{"arguments": {}}]', [M]),
        "list: text as arguments": ('[TOOL_CALLS][{"name": "f", "arguments": "{}"}]', [I("f")]),
        "list: something else": ('[TOOL_CALLS][1, {"name": "g"}]', [J(), P("g")]),
        "list: empty": ("[TOOL_CALLS][]", [J()]),
        "list: comma too many": ('[TOOL_CALLS][{"name": "f"},]', [P("f")]),
        "marker alone": ("[TOOL_CALLS]", [U()]),
        "markers alone": ("[TOOL_CALLS][TOOL_CALLS]", [U(), U()]),
        "cut in the name": ("[TOOL_CALLS]fun", [U("fun")]),
        "cut in the id": ("[TOOL_CALLS]f[CALL_ID]abc", [U("f")]),
        "cut after args": ("[TOOL_CALLS]f[ARGS]", [U("f")]),
        "cut in the object": ('[TOOL_CALLS]f[ARGS]{"a": "', [U("f")]),
        "list: cut": ('[TOOL_CALLS][{"name": "f"}, {"name": "g', [P("f"), U()]),
        "list: cut between": ('[TOOL_CALLS][{"name": "f"},', [P("f")]),
        "list: cut before the bracket": ('[TOOL_CALLS][{"name": "f"}', [U()]),
        "list: never begun": ("[TOOL_CALLS][", [U()]),
    },
    "harmony": {
        "prose": ("<|channel|>final<|message|>Answer: to=42<|return|>", []),
        "analysis": ("<|channel|>analysis<|message|>call a<|end|>", []),
        "preamble": ("<|channel|>commentary<|message|>I look.<|end|>", []),
        "a tool's answer": (
            "<|start|>functions.a to=assistant<|channel|>commentary<|message|>{}<|end|>",
            [],
        ),
        "to a person": ("<|channel|>commentary to=user<|message|>{}<|end|>", []),
        "thought before": (
            "<|channel|>analysis<|message|>so<|end|>" + HEAD + "{}<|call|>",
            [P("a")],
        ),
        "recipient first": (
            " to=functions.a<|channel|>commentary json<|message|>{}<|call|>",
            [P("a")],
        ),
        "role first": (
            "assistant to=functions.a<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
            [P("a")],
        ),
        "in analysis": ("<|channel|>analysis to=functions.a code<|message|>{}<|call|>", [P("a")]),
        "built-in": (
            "<|channel|>analysis to=browser.search<|message|>{}<|call|>",
            [P("browser.search")],
        ),
        "stop token cut off": (HEAD + '{"x": 1}', [P("a")]),
        "marker in a string": (HEAD + '{"x": "<|call|>"}<|call|>', [P("a")]),
        "header in a string": (HEAD + f'{{"x": "{HEAD}"}}<|call|>', [P("a")]),
        "no name": ("<|channel|>commentary to=functions.<|message|>{}<|call|>", [M]),
        "no object": (HEAD + "x=1<|call|>", [J("a")]),
        "empty": (HEAD + "<|call|>", [J("a")]),
        "a list": (HEAD + "[1]<|call|>", [J("a")]),
        "trailing comma": (HEAD + '{"x": 1,}<|call|>', [J("a")]),
        "text after the object": (HEAD + "{} please<|call|>", [J("a")]),
        "no message": ("<|channel|>commentary to=functions.a<|call|>", [J("a")]),
        "bad, then good": (
            HEAD + "{]<|call|><|start|>assistant" + HEAD + "{}<|call|>",
            [J("a"), P("a")],
        ),
        "cut in the header": ("<|channel|>commentary to=functions.a <|con", [U("a")]),
        "cut in the object": (HEAD + '{"x": ', [U("a")]),
        "ended, not called": (HEAD + "{}<|end|>", [U("a")]),
        "not closed before the next": (HEAD + '{"x"' + HEAD + "{}<|call|>", [U("a"), P("a")]),
        "two headers": (
            "<|channel|>commentary to=functions.b" + HEAD + "{}<|call|>",
            [U("b"), P("a")],
        ),
    },
    "glm45": {
        "prose": ("Answer: 42", []),
        "closing markers alone": ("</arg_value></tool_call>", []),
        "no space": (
            "<tool_call>a<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>",
            [P("a")],
        ),
        "no arguments": ("<tool_call>a</tool_call>", [P("a")]),
        "not opened": ("a\n<arg_key>x</arg_key><arg_value>1</arg_value>\n</tool_call>", [J()]),
        "not opened, then good": ("a</tool_call><tool_call>b</tool_call>", [J(), P("b")]),
        "closing marker in a value": (
            "<tool_call>a\n<arg_key>x</arg_key>\n<arg_value>f</tool_call>g</arg_value>\n</tool_call>",
            [P("a")],
        ),
        "closing tag in a value": (
            "<tool_call>a<arg_key>x</arg_key><arg_value>1</arg_value>2</arg_value></tool_call>",
            [P("a")],
        ),
        "no name": ("<tool_call><arg_key>x</arg_key><arg_value>1</arg_value></tool_call>", [M]),
        "nothing": ("<tool_call></tool_call>", [M]),
        "json": ('<tool_call>{"name": "a"}</tool_call>', [J()]),
        "a sentence as name": ("<tool_call>call a</tool_call>", [J()]),
        "no value": ("<tool_call>a\n<arg_key>x</arg_key>\n</tool_call>", [J()]),
        "no key": ("<tool_call>a\n<arg_value>1</arg_value>\n</tool_call>", [J()]),
        "unclosed key": ("<tool_call>a<arg_key>x<arg_value>1</arg_value></tool_call>", [J()]),
        "unclosed value": ("<tool_call>a<arg_key>x</arg_key><arg_value>1</tool_call>", [J()]),
        "text between": (
            "<tool_call>a<arg_key>x</arg_key> is <arg_value>1</arg_value></tool_call>",
            [J()],
        ),
        "good, bad, good": (
            "<tool_call>a</tool_call><tool_call>?!<arg_key></tool_call><tool_call>b</tool_call>",
            [P("a"), J(), P("b")],
        ),
        "marker alone": ("<tool_call>", [U()]),
        "cut in the name": ("<tool_call>a", [U()]),
        "cut in a key": ("<tool_call>a<arg_key>x", [U()]),
        "cut in a value": ("<tool_call>a<arg_key>x</arg_key><arg_value>1", [U()]),
        "cut after a value": ("<tool_call>a<arg_key>x</arg_key><arg_value>1</arg_value>\n", [U()]),
        "not closed before the next": ("<tool_call>a<tool_call>b</tool_call>", [U(), P("b")]),
        "half a pair": (
            "<tool_call>a<arg_key>x</arg_key><arg_value>\ud83e</arg_value></tool_call>",
            [J()],
        ),
    },
    "gemma4": {
        "prose": ("call:a{}", []),
        "one": ("<|tool_call>call:a{}<tool_call|>", [P("a")]),
        "markers in text": ('<|tool_call>call:a{x:<|"|><tool_call|><|"|>}<tool_call|>', [P("a")]),
        "spaces": ("<|tool_call> call:a{ x : [ 1 , 2 ] , }\n<tool_call|>", [P("a")]),
        "no name": ("<|tool_call>call:{}<tool_call|>", [M]),
        "no colon": ("<|tool_call>a{}<tool_call|>", [J()]),
        "bare text": ("<|tool_call>call:a{x:y}<tool_call|>", [J("a")]),
        "two values": ("<|tool_call>call:a{x:1 2}<tool_call|>", [J("a")]),
        "no key": ("<|tool_call>call:a{:1}<tool_call|>", [J("a")]),
        "too large a number": ("<|tool_call>call:a{x:1e999}<tool_call|>", [J("a")]),
        "too deep": (f"<|tool_call>call:a{{x:{'[' * 120}{']' * 120}}}<tool_call|>", [J("a")]),
        "text not closed": ('<|tool_call>call:a{x:<|"|>y}<tool_call|>', [J("a")]),
        "more after it": ("<|tool_call>call:a{}}<tool_call|>", [J("a")]),
        "cut": ('<|tool_call>call:a{x:<|"|>y', [U("a")]),
        "not closed before the next": (
            "<|tool_call>call:a{<|tool_call>call:b{}<tool_call|>",
            [U("a"), P("b")],
        ),
        "half a pair": ('<|tool_call>call:a{x:<|"|>\ud83e<|"|>}<tool_call|>', [J()]),
    },
    "cohere": {
        "one": (
            '<|START_ACTION|>[{"tool_name": "a", "parameters": {}}]<|END_ACTION|>',
            [P("a")],
        ),
        "no name": ('<|START_ACTION|>[{"name": "a", "parameters": {}}]<|END_ACTION|>', [M]),
        "no list": ('<|START_ACTION|>{"tool_name": "a"}<|END_ACTION|>', [J()]),
        "empty list": ("<|START_ACTION|>[]<|END_ACTION|>", [J()]),
        "the good one beside the bad": (
            '<|START_ACTION|>[{"tool_name": "a"}, {"tool_name" "b"}]<|END_ACTION|>',
            [P("a"), J()],
        ),
        "marker in text": (
            '<|START_ACTION|>[{"tool_name": "a", "parameters": {"x": "]<|END_ACTION|>"}}]',
            [P("a")],
        ),
        "cut": ('<|START_ACTION|>[{"tool_name": "a"}, {"tool', [P("a"), U()]),
        "marker alone": ("<|START_ACTION|>", [U()]),
    },
    "deepseek_v3": {
        "no section": (
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{}\n```<｜tool▁call▁end｜>",
            [P("a")],
        ),
        "no fence": (
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n{}<｜tool▁call▁end｜>",
            [P("a")],
        ),
        "the later way": ("<｜tool▁call▁begin｜>a<｜tool▁sep｜>{}<｜tool▁call▁end｜>", [P("a")]),
        "no separator": ("<｜tool▁call▁begin｜>a<｜tool▁call▁end｜>", [J()]),
        "bad JSON": (
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{?}\n```<｜tool▁call▁end｜>",
            [J("a")],
        ),
        "section alone": ("<｜tool▁calls▁begin｜>", [U()]),
        "section of nothing": ("<｜tool▁calls▁begin｜>so<｜tool▁calls▁end｜>", [J()]),
        "cut": ('<｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{"x', [U("a")]),
    },
    "deepseek_v31": {
        "marker in text": (
            '<｜tool▁call▁begin｜>a<｜tool▁sep｜>{"x": "<｜tool▁call▁end｜>"}<｜tool▁call▁end｜>',
            [P("a")],
        ),
        "no name": ("<｜tool▁call▁begin｜><｜tool▁sep｜>{}<｜tool▁call▁end｜>", [M]),
        "a list": ("<｜tool▁call▁begin｜>a<｜tool▁sep｜>[]<｜tool▁call▁end｜>", [J("a")]),
    },
    "kimi_k2": {
        "without a number": (
            "<|tool_call_begin|>functions.a<|tool_call_argument_begin|>{}<|tool_call_end|>",
            [P("a")],
        ),
        "a dot in the name": (
            "<|tool_call_begin|>functions.a.b:12<|tool_call_argument_begin|>{}<|tool_call_end|>",
            [P("a.b")],
        ),
        "cut in the name": ("<|tool_calls_section_begin|><|tool_call_begin|>func", [U()]),
        "not closed before the next": (
            "<|tool_call_begin|>a:0<|tool_call_argument_begin|>{<|tool_call_begin|>b:1"
            "<|tool_call_argument_begin|>{}<|tool_call_end|>",
            [U("a"), P("b")],
        ),
    },
    "minimax_m2": {
        "prose": ('<invoke name="a"></invoke>', []),
        "two": (
            '<minimax:tool_call><invoke name="a"></invoke><invoke name="b"></invoke>'
            "</minimax:tool_call>",
            [P("a"), P("b")],
        ),
        "no name": ('<minimax:tool_call><invoke name=""></invoke></minimax:tool_call>', [M]),
        "marker in a value": (
            '<minimax:tool_call><invoke name="a"><parameter name="x"></parameter> it</parameter>'
            "</invoke></minimax:tool_call>",
            [P("a")],
        ),
        "value not closed": (
            '<minimax:tool_call><invoke name="a"><parameter name="x">1</invoke>'
            "</minimax:tool_call>",
            [J()],
        ),
        "the good one beside the bad": (
            '<minimax:tool_call><invoke name="a"></invoke><invoke b></minimax:tool_call>',
            [P("a"), J()],
        ),
        "cut": ('<minimax:tool_call><invoke name="a"><parameter name="x">1', [U()]),
        "block not closed": ('<minimax:tool_call><invoke name="a"></invoke>', [P("a")]),
    },
    "granite": {
        "one": ('<|tool_call|>[{"name": "a", "arguments": {}}]', [P("a")]),
        "text after": ('<|tool_call|>[{"name": "a"}] so [1]', [P("a")]),
        "one alone": ('<|tool_call|>{"name": "a"}', [U()]),
    },
    "phi4_mini": {
        "one": ('<|tool_call|>[{"name": "a", "arguments": {}}]<|/tool_call|>', [P("a")]),
        "no list": ('<|tool_call|>{"name": "a"}<|/tool_call|>', [J()]),
    },
}
CASES = [
    pytest.param(form, text, expected, id=f"{form}: {name}")
    for form, cases in TABLE.items()
    for name, (text, expected) in cases.items()
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_table(form: str, text: str, expected: list[Expected]) -> None:
    calls = get_parser(form)(text)
    assert [(c.status, c.name) for c in calls] == expected
    position = 0
    for call in calls:
        assert (call.error is None) == (call.status is PARSED)
        assert call.span is not None
        start, end = call.span
        assert position <= start < end <= len(text)
        position = end


def test_there_are_hundreds_of_cases() -> None:
    """What the documentation says of the table."""
    shared = len(WRITERS) * (len(ARGUMENTS) + len(ARRANGED))
    assert set(TABLE) | {"hermes"} == set(PARSERS)
    assert shared + len(CASES) >= 500


VALUES: list[tuple[str, dict[str, object], object]] = [
    ("7", {"type": "integer"}, 7),
    (" -7\n", {"type": "integer"}, -7),
    ("7.0", {"type": "integer"}, "7.0"),
    ("seven", {"type": "integer"}, "seven"),
    ("9" * 5000, {"type": "integer"}, "9" * 5000),
    ("7", {"type": "number"}, 7),
    ("7.5e1", {"type": "number"}, 75.0),
    ("nan", {"type": "number"}, "nan"),
    ("1e999", {"type": "number"}, "1e999"),
    ("7", {"type": "string"}, "7"),
    (" 7 ", {"type": "string"}, " 7 "),
    ("True", {"type": "boolean"}, True),
    ("false", {"type": "boolean"}, False),
    ("yes", {"type": "boolean"}, "yes"),
    ("None", {"type": ["string", "null"]}, None),
    ("null", {"type": "string", "nullable": True}, None),
    ("null", {"type": "string"}, "null"),
    ("[1]", {"type": "array"}, [1]),
    ("{}", {"type": "array"}, "{}"),
    ('{"a": NaN}', {"type": "object"}, '{"a": NaN}'),
    ("[" * 5000, {"type": "array"}, "[" * 5000),
    ("[" * 120 + "]" * 120, {"type": "array"}, "[" * 120 + "]" * 120),
    ('["\\ud800"]', {"type": "array"}, '["\\ud800"]'),
    ("7", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, 7),
    ("x", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "x"),
    ("7", {"oneOf": [{"type": "boolean"}, {"type": "number"}]}, 7),
    ("2", {"enum": [1, 2]}, 2),
    ("b", {"enum": ["a", "b"]}, "b"),
    ("true", {"const": True}, True),
    ("7", {}, "7"),
    ("7", {"type": "unheard-of"}, "7"),
]


@pytest.mark.parametrize(("text", "schema", "value"), VALUES)
@pytest.mark.parametrize("form", ["qwen3_coder", "glm45", "minimax_m2"])
def test_values_take_the_types_of_the_schema(
    form: str, text: str, schema: dict[str, object], value: object
) -> None:
    written = {
        "qwen3_coder": f"<tool_call><function=a><parameter=x>\n{text}\n</parameter></function>"
        "</tool_call>",
        "glm45": f"<tool_call>a<arg_key>x</arg_key><arg_value>{text}</arg_value></tool_call>",
        "minimax_m2": f'<minimax:tool_call><invoke name="a"><parameter name="x">{text}</parameter>'
        "</invoke></minimax:tool_call>",
    }[form]
    spec = ToolSpec("a", "", {"type": "object", "properties": {"x": schema}})
    expected = text if value == text else value
    (call,) = get_parser(form)(written, [spec])
    assert call.arguments == {"x": expected}
    assert type(call.arguments["x"]) is type(expected)
    (call,) = get_parser(form)(written, [])
    assert call.arguments == {"x": text}  # no schema, no guess


def test_a_tool_runs_on_what_a_form_of_plain_text_says() -> None:
    @tool
    def add(a: int, b: float, words: list[str]) -> str:
        """Add.

        Args:
            a: One.
            b: Another.
            words: More.
        """
        return f"{a + b} {words}"

    text = get_parser("glm45").render(ToolCall("add", {"a": 1, "b": 2.5, "words": ["é"]}))
    (call,) = get_parser("glm45")(text, [add.spec])
    _, result = execute(call, {"add": add}, None)
    assert (result.call.status, result.content) == (CallStatus.OK, "3.5 ['é']")


def test_get_parser() -> None:
    with pytest.raises(KeyError, match=r"no parser 'herms'; there are: cohere, .*hermes"):
        get_parser("herms")


@pytest.mark.parametrize("form", PARSERS)
def test_token_spans(form: str) -> None:
    text = "Zoë: " + get_parser(form).render(ToolCall("a", {"x": "🦜"}), ToolCall("b", {}))
    ids = list(text.encode())

    def decode(ids: object) -> str:
        return bytes(ids).decode("utf-8", "replace")  # type: ignore[call-overload]

    calls = get_parser(form).parse_ids(ids, decode)
    assert [c.name for c in calls] == ["a", "b"]
    for call in calls:
        assert call.span is not None and call.token_span is not None
        assert decode(ids[slice(*call.token_span)]) == text[slice(*call.span)]
