"""A tool that hangs times out and one that says too much is cut; the other rows go on."""

from __future__ import annotations

import contextlib
import math
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import gymnasium
import pytest
from transformers import AutoTokenizer

from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.scripted import Script, ScriptedPlayer
from journeyman.envs import Episode, StopReason, Task, ToolEnv, register, registry
from journeyman.tools import (
    CallLimits,
    CallStatus,
    Tool,
    ToolCall,
    ToolDefinitionError,
    ToolError,
    ToolServerError,
    execute,
    render_hermes,
    tool,
)
from journeyman.tools import limits as limits_module
from journeyman.tools.limits import shorten

PATIENCE_S = 30.0
"""Until a hanging tool of these tests gives up by itself, and the test has failed."""
SHORT = CallLimits(timeout_s=0.3)


class Door:
    """What hanging tools wait for; opened when a test ends."""

    opened = threading.Event()
    passed: list[int] = []  # noqa: RUF012 - emptied for each test


@pytest.fixture(autouse=True)
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    registry.load_plugins()
    gym = gymnasium.envs.registration
    monkeypatch.setattr(registry, "_ids", set(registry._ids))
    monkeypatch.setattr(gym, "registry", dict(gym.registry))
    for env in (Hanging, Spinning, Dump):
        register(f"test/{env.__name__}-v0", env)
    Door.opened.clear()
    Door.passed.clear()
    yield
    Door.opened.set()
    for thread in threading.enumerate():
        if thread.name.endswith("-tool"):
            thread.join(PATIENCE_S)


@tool
def hang(state: int, n: int) -> tuple[int, int]:
    """Wait for a door that stays shut, if n is 0.

    Args:
        n: Which.
    """
    if n == 0:
        Door.opened.wait(PATIENCE_S)
        Door.passed.append(state)
    return state + 1, n


@tool
def spin(state: int, n: int) -> tuple[int, int]:
    """Go round in circles, if n is 0.

    Args:
        n: Which.
    """
    end = time.monotonic() + PATIENCE_S
    while n == 0 and time.monotonic() < end:
        pass
    return state + 1, n


@tool
def dump(state: int, n: int) -> tuple[int, str]:
    """Say much.

    Args:
        n: How often.
    """
    return state + 1, f"begin {f'abc {state} ' * n}end"


class Counting(ToolEnv):
    """A number that calls count up."""

    @classmethod
    def generate(cls, rng: random.Random, split: Any, level: Any) -> Task:
        return Task("", "d", f"go {rng.random()}", rng.randint(0, 10**9), (), "done")


class Hanging(Counting):
    """Its tools may wait."""

    toolset = (hang,)
    waits = True
    limits = SHORT


class Spinning(Counting):
    """Its tools never wait, and one never ends."""

    toolset = (spin,)
    limits = SHORT


class Dump(Counting):
    """Its tool says much."""

    toolset = (dump,)


def play(env_id: str, script: Script, count: int, max_context: int = 640) -> list[Episode]:
    dialect = Dialect(AutoTokenizer.from_pretrained(resolve("embedded-student")), "names")
    tasks = [TaskRef(env_id, f"test/{i}") for i in range(count)]
    return rollout(ScriptedPlayer(dialect, script, max_context=max_context), tasks)


def first_hangs(name: str) -> Script:
    """The first of the rows calls a tool with 0, the others with other numbers."""
    rows = iter(range(100))

    def script(env: ToolEnv) -> Iterator[str]:
        yield render_hermes(ToolCall(name, {"n": next(rows)}))
        yield "Answer: done"

    return script


def test_a_traced_thread_goes_on_after_an_interrupted_call() -> None:
    """With the flag for an exception left up, 3.11 enters no function that a debugger traces."""
    program = """
import sys, threading
from journeyman.tools import ToolTimeout
from journeyman.tools.limits import run_within
def spin(state, given):
    while True: pass
def wait(state, given): threading.Event().wait(60)
def trace(*event): return trace
sys.settrace(trace)
for waits, call in ((False, spin), (True, wait)):
    try: run_within(0.2, waits, call, None, None)
    except ToolTimeout: print("late")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["late", "late"], done.stderr


@pytest.mark.parametrize(("env_id", "name"), [("Hanging", "hang"), ("Spinning", "spin")])
def test_a_tool_that_hangs_stops_its_own_call_alone(env_id: str, name: str) -> None:
    began = time.monotonic()
    episodes = play(f"test/{env_id}-v0", first_hangs(name), 5)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert [e.stop for e in episodes] == [StopReason.ANSWERED] * 5
    (late,) = episodes[0].steps[0].results
    assert late.call.status is CallStatus.TIMEOUT
    assert late.content == '{"error": "no result within 0.3 s; the call was stopped"}'
    assert all(e.steps[0].results[0].ok for e in episodes[1:])


@pytest.mark.parametrize(("made", "waits"), [(hang, True), (spin, False)], ids=["wait", "spin"])
def test_the_state_is_what_it_was(made: Tool, waits: bool) -> None:
    call = ToolCall(made.name, {"n": 0})
    state, result = execute(call, {made.name: made}, 7, SHORT, waits)
    assert (state, result.call.status) == (7, CallStatus.TIMEOUT)
    state, result = execute(ToolCall(made.name, {"n": 1}), {made.name: made}, state, SHORT, waits)
    assert (state, result.content) == (8, "1")


def test_what_comes_too_late_changes_nothing() -> None:
    env = Hanging()
    env.reset(options={"task_id": "test/0"})
    task = env.task
    _, *_, info = env.step([ToolCall("hang", {"n": 0})])
    assert info["calls"][0].call.status is CallStatus.TIMEOUT
    before = env.state_hash()
    Door.opened.set()
    for thread in threading.enumerate():
        if thread.name.endswith("-tool"):
            thread.join(PATIENCE_S)
    assert Door.passed in ([], [task.state])  # it may go on once the door opens
    assert env.state_hash() == before
    assert env.snapshot().state == task.state


def test_a_tool_has_a_limit_of_its_own() -> None:
    waiting = tool(timeout_s=0.2)(hang.function)  # watched wherever it is called
    _, result = execute(ToolCall("hang", {"n": 0}), {"hang": waiting}, 0, CallLimits())
    assert result.call.status is CallStatus.TIMEOUT
    assert "within 0.2 s" in result.content
    # One that sees to its own limits runs where it is called, as long as it takes.
    own = Tool.from_schema({"name": "own"}, lambda: threading.current_thread().name,
                           timeout_s=math.inf)  # fmt: skip
    _, result = execute(ToolCall("own"), {"own": own}, 0, CallLimits(timeout_s=1e-9), True)
    assert result.content == threading.current_thread().name


def test_a_tool_that_catches_all_is_late_all_the_same() -> None:
    @tool
    def stubborn(state: int) -> tuple[int, int]:
        """Never give up."""
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with contextlib.suppress(BaseException):
                time.sleep(0.01)
        return state + 1, 0

    state, result = execute(ToolCall("stubborn"), {"stubborn": stubborn}, 0, SHORT)
    assert (state, result.call.status) == (0, CallStatus.TIMEOUT)
    for _ in range(10_000):  # nothing is left that strikes later
        assert execute(ToolCall("spin", {"n": 1}), {"spin": spin}, 0)[1].ok


def test_an_interruption_that_is_lost_comes_again() -> None:
    """As it is where a finalizer or a callback of the garbage collector happens to run."""
    lost = []

    @tool
    def lose(state: int) -> tuple[int, int]:
        """Lose three interruptions, then go on for ever."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                while time.monotonic() < end:
                    pass
            except BaseException:
                lost.append(state)
                if len(lost) > 3:
                    raise
        return state + 1, 0

    state, result = execute(ToolCall("lose"), {"lose": lose}, 0, SHORT)
    assert (state, result.call.status, len(lost)) == (0, CallStatus.TIMEOUT, 4)
    for _ in range(100_000):
        assert execute(ToolCall("spin", {"n": 1}), {"spin": spin}, 0)[1].ok
    assert not limits_module._watch.overdue


def test_a_call_that_ends_too_late_in_c_is_interrupted_no_more() -> None:
    for _ in range(3):
        late = Tool.from_schema({"name": "late"}, lambda: time.sleep(0.75))
        _, result = execute(ToolCall("late"), {"late": late}, 0, CallLimits(timeout_s=0.2))
        assert result.call.status is CallStatus.TIMEOUT
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass


def test_a_call_within_a_call() -> None:
    @tool
    def outer(state: int, n: int) -> tuple[int, str]:
        """Call another.

        Args:
            n: Passed on.
        """
        _, inner = execute(ToolCall("spin", {"n": n}), {"spin": spin}, state, inner_limits)
        return state + 1, inner.content

    inner_limits = CallLimits(timeout_s=PATIENCE_S)
    state, result = execute(ToolCall("outer", {"n": 0}), {"outer": outer}, 0, SHORT)
    assert (state, result.call.status) == (0, CallStatus.TIMEOUT)
    inner_limits = SHORT
    state, result = execute(ToolCall("outer", {"n": 0}), {"outer": outer}, 0, CallLimits())
    assert (state, result.ok) == (1, True)
    assert "no result within 0.3 s" in result.content


def test_errors_come_through_a_thread() -> None:
    @tool
    def refuse(kind: str) -> str:
        """Refuse.

        Args:
            kind: How.
        """
        raise {"no": ToolError("no luck"), "gone": ConnectionError("gone")}[kind]

    tools = {"refuse": refuse}
    _, result = execute(ToolCall("refuse", {"kind": "no"}), tools, 0, SHORT, waits=True)
    assert result.call.error == "no luck"
    with pytest.raises(ConnectionError, match="gone"):
        execute(ToolCall("refuse", {"kind": "gone"}), tools, 0, SHORT, waits=True)


def test_calls_do_not_hang_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "MAX_HANGING", 3)
    call, quick = ToolCall("hang", {"n": 0}), CallLimits(timeout_s=0.05)
    for _ in range(3):
        assert execute(call, {"hang": hang}, 0, quick, True)[1].call.status is CallStatus.TIMEOUT
    with pytest.raises(ToolServerError, match="3 calls of tools hang"):
        execute(call, {"hang": hang}, 0, quick, True)


def test_the_watch_ends_with_the_calls() -> None:
    def watching() -> bool:
        return any(thread.name == "journeyman-limits" for thread in threading.enumerate())

    assert execute(ToolCall("spin", {"n": 1}), {"spin": spin}, 0)[1].ok
    assert watching()
    end = time.monotonic() + PATIENCE_S
    while watching() and time.monotonic() < end:
        time.sleep(0.05)
    assert not watching()
    assert not execute(ToolCall("spin", {"n": 0}), {"spin": spin}, 0, SHORT)[1].ok


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"timeout_s": 0}, "timeout_s=0: expected seconds, above 0"),
        ({"timeout_s": math.nan}, "timeout_s=nan"),
        ({"timeout_s": "5"}, "timeout_s='5': expected seconds"),
        ({"timeout_s": True}, "timeout_s=True"),
        ({"result_chars": 10}, "result_chars=10: expected 100 or more"),
        ({"result_chars": 1e6}, "result_chars=1000000.0"),
    ],
)
def test_a_limit_that_is_none(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CallLimits(**given)
    with pytest.raises(ToolDefinitionError, match=f"tool 'hang': {says}"):
        tool(**given)(hang.function)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("timeout_s", [1e9, 1e300, 10**400, math.inf])
def test_a_limit_beyond_all_clocks_is_none(timeout_s: float, waits: bool) -> None:
    limits = CallLimits(timeout_s)
    assert execute(ToolCall("hang", {"n": 1}), {"hang": hang}, 0, limits, waits)[1].ok
    assert not execute(ToolCall("spin", {"n": 0}), {"spin": spin}, 0, SHORT)[1].ok


@pytest.mark.parametrize("timeout_s", [None, math.inf, 30.0])
def test_a_tool_that_ends_the_process_breaks_its_own_call(timeout_s: float | None) -> None:
    @tool(timeout_s=timeout_s)
    def leave(code: int) -> str:
        """Leave, as a command line does of arguments that it does not know.

        Args:
            code: The status.
        """
        sys.exit(code)

    with pytest.raises(RuntimeError, match=r"tool 'leave' tried to end the process \(status 2\)"):
        execute(ToolCall("leave", {"code": 2}), {"leave": leave}, None)


# Long results


def test_both_ends_of_a_long_result_are_shown() -> None:
    result = execute(ToolCall("dump", {"n": 10_000}), {"dump": dump}, 5)[1]
    assert result.ok
    assert len(result.content) == CallLimits().result_chars
    assert result.content.startswith("begin abc 5 abc")
    assert result.content.endswith("abc 5 end")
    (note,) = [line for line in result.content.splitlines() if "left out" in line]
    left_out = 60_009 - (len(result.content) - len(note) - 2)
    assert note == f"… [{left_out:,} characters left out] …"


@pytest.mark.parametrize("limit", [100, 101, 150, 1000])
@pytest.mark.parametrize("length", [99, 100, 101, 1000, 1001, 12_345, 10**6])
def test_a_text_is_cut_to_its_limit(limit: int, length: int) -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    cut = shorten(text, limit)
    if length <= limit:
        assert cut is text
        return
    head, _, rest = cut.partition("\n… [")
    number, _, tail = rest.partition(" characters left out] …\n")
    assert limit - 5 < len(cut) <= limit  # the note is longer or shorter by some digits
    assert text.startswith(head) and text.endswith(tail)
    assert len(head) + int(number.replace(",", "")) + len(tail) == length


def test_a_tool_says_how_much_it_may_say() -> None:
    brief = tool(result_chars=200)(dump.function)
    call, few = ToolCall("dump", {"n": 1000}), CallLimits(result_chars=300)
    assert 195 < len(execute(call, {"dump": brief}, 5, few)[1].content) <= 200
    assert 295 < len(execute(call, {"dump": dump}, 5, few)[1].content) <= 300
    table = Tool.from_schema({"name": "t"}, lambda: [{"a": 1}] * 10_000, result_chars=400)
    assert 395 < len(execute(ToolCall("t"), {"t": table}, 5, few)[1].content) <= 400


def test_a_long_refusal_is_cut_too() -> None:
    @tool
    def refuse() -> str:
        """Refuse at length."""
        raise ToolError("no " * 100_000)

    result = execute(ToolCall("refuse"), {"refuse": refuse}, 0)[1]
    assert result.call.error is not None
    assert len(result.call.error) == CallLimits().result_chars
    assert len(result.content) < CallLimits().result_chars + 100


def says_much(n: int) -> Script:
    def script(env: ToolEnv) -> Iterator[str]:
        yield render_hermes(ToolCall("dump", {"n": n}))
        yield "Answer: done"

    return script


def test_a_result_is_cut_to_what_is_left_of_the_context() -> None:
    episodes = play("test/Dump-v0", says_much(1750), 8)
    for episode in episodes:
        assert (episode.stop, len(episode.steps)) == (StopReason.ANSWERED, 2)
        assert len(episode.tokens) <= 640
        (message,) = episode.steps[0].reply
        assert message.content.startswith("begin abc")
        assert message.content.endswith("end")
        assert "characters left out] …" in message.content
        # The result itself is whole; what the student saw of it is the message.
        assert len(message.content) < len(episode.steps[0].results[0].content)


def test_a_result_that_fits_is_shown_whole() -> None:
    (episode,) = play("test/Dump-v0", says_much(3), 1)
    (message,) = episode.steps[0].reply
    assert message.content == episode.steps[0].results[0].content
    assert episode.stop is StopReason.ANSWERED


def test_where_nothing_is_left_the_context_is_full() -> None:
    opening = len(play("test/Dump-v0", says_much(3), 1)[0].tokens)
    (episode,) = play("test/Dump-v0", says_much(500), 1, max_context=opening + 20)
    assert episode.stop is StopReason.CONTEXT_FULL


def test_long_results_take_little_memory() -> None:
    play("test/Dump-v0", says_much(3), 1)  # what is loaded once
    tracemalloc.start()
    episodes = play("test/Dump-v0", says_much(100_000), 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {e.stop for e in episodes} == {StopReason.ANSWERED}
    assert peak < 60 * 2**20
