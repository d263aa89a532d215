import io
import json
from typing import Any

import pytest

from journeyman.agents.cli.person import CallSyntaxError, play, read_action
from journeyman.envs import ToolEnv, make
from journeyman.envs.errors import UnknownEnvError, UnknownTaskError
from journeyman.tools import ToolCall, ToolSpec

BANK = "journeyman/Bank-v0"
TOOLS = [
    ToolSpec(
        "pay",
        "Pay.",
        {"properties": {"to": {"type": "string"}, "amount": {"type": "integer"}, "tags": {}}},
    ),
    ToolSpec("now", "The time.", {"type": "object"}),
]


@pytest.mark.parametrize(
    ("line", "name", "arguments"),
    [
        ('pay {"to": "A 1", "amount": 3}', "pay", {"to": "A 1", "amount": 3}),
        ('pay {"to": "a=b"}', "pay", {"to": "a=b"}),
        ("  pay to=17 amount=3  ", "pay", {"to": "17", "amount": 3}),
        ('pay to="Ann Lee" amount=x', "pay", {"to": "Ann Lee", "amount": "x"}),
        ("pay tags=[1,2] to=", "pay", {"tags": [1, 2], "to": ""}),
        ("pay to=a=b", "pay", {"to": "a=b"}),
        ("now", "now", {}),
        ("now {}", "now", {}),
        # A mistyped name still is a call: the environment says what is wrong with it.
        ("pya to=1", "pya", {"to": 1}),
        ('pya {"to": "1"}', "pya", {"to": "1"}),
    ],
)
def test_a_line_can_be_a_call(line: str, name: str, arguments: dict[str, Any]) -> None:
    assert read_action(line, TOOLS) == ToolCall(name, arguments)


@pytest.mark.parametrize(
    "line",
    [
        "Answer: 42",
        "42",
        "Payment done.",
        "It is 5 = five",
        "nobody (at least not here)",
        "Answer: pay to=1",
        '<tool_call>{"name": "pay"}</tool_call>',
    ],
)
def test_any_other_line_is_an_answer(line: str) -> None:
    assert read_action(f" {line}\n", TOOLS) == line


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("pay {to: 1}", "not JSON"),
        ("pay(to=1, amount=3)", "write: pay to=… amount=… tags=…"),
        ("  pay (1)", "write: pay to=… amount=… tags=…"),
        ("now()", "write: now"),
        ('pay {"to": 1} please', "not JSON"),
        ("pay Ann 3", "expected key=value or {json}, not 'Ann'"),
        ('pay to="Ann', "No closing quotation"),
    ],
)
def test_a_call_that_cannot_be_read_is_explained(line: str, problem: str) -> None:
    with pytest.raises(CallSyntaxError) as caught:
        read_action(line, TOOLS)
    assert problem in str(caught.value)


def played(*lines: str, env_id: str = BANK, **kwargs: Any) -> tuple[bool, str]:
    out = io.StringIO()
    ended = play(env_id, io.StringIO("".join(f"{line}\n" for line in lines)), out, **kwargs)
    return ended, out.getvalue()


def solution(task_id: str) -> tuple[list[str], str, str]:
    """The lines that solve a task, its prompt and its answer."""
    env = make(BANK)
    env.reset(options={"task_id": task_id})
    calls = [f"{call.name} {json.dumps(dict(call.arguments))}" for call in env.oracle()]
    return calls, env.task.prompt, env.task.answer


def test_a_person_can_solve_a_task() -> None:
    calls, prompt, answer = solution("test/0")
    ended, text = played(*calls, f"Answer: {answer}", task_id="test/0")
    assert ended
    assert f"[user] {prompt}" in text
    assert "find_account(owner): Find the account of a person." in text
    assert text.count("[tool ") == len(calls)
    assert text.endswith("Reward 1 (solved).\n")


def test_a_wrong_answer_is_told_the_right_one() -> None:
    calls, _, answer = solution("test/0")
    ended, text = played("dunno", task_id="test/0")
    assert ended
    assert "Reward 0 (not solved)." in text
    assert all(f"  {call}\n" in text for call in calls)
    assert text.endswith(f"Answer: {answer}\n")


def test_mistakes_cost_what_they_cost_a_model_or_nothing() -> None:
    lines = [
        "",
        "?",
        "help",
        "find_account Ann",
        "find_acount owner=Ann",
        "find_account owner=Ann",
        "bye",
    ]
    _, text = played(*lines, task_id="test/0")
    assert text.count("Tools\n") == 3  # at the start, for "?" and "help"
    assert "expected key=value" in text
    assert "Did you mean find_account?" in text
    assert "(status: unknown_tool)" in text
    assert "(status: tool_error)" in text


def test_the_environment_ends_a_long_game() -> None:
    ended, text = played(*["get_account account=A1"] * 50, task_id="test/0")
    assert ended
    assert "Reward 0 (out of turns)." in text


def test_a_person_may_leave() -> None:
    ended, text = played("find_account owner=Ann", split="validation")
    assert not ended
    assert f"{BANK}, task validation/" in text
    assert text.endswith("Left before the end.\n")


def test_a_task_comes_from_where_the_environment_draws_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ToolEnv.__init__, "__defaults__", ("test", 12, None))
    assert f"{BANK}, task test/" in played("bye")[1]


def test_unknown_ids_are_errors() -> None:
    with pytest.raises(UnknownEnvError):
        played(env_id="journeyman/Bnak-v0")
    with pytest.raises(UnknownTaskError):
        played(task_id="test/x")
