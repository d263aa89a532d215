"""MCP servers as they come: what they say, what they remember, and what is left of them."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer

from journeyman.envs import Split, Task, ToolEnv
from journeyman.envs.mcp import make_app
from journeyman.envs.wrappers import with_faults
from journeyman.tools import (
    CallStatus,
    NoBranchError,
    ToolCall,
    ToolDefinitionError,
    ToolResult,
    ToolServerError,
    execute,
    tool,
)
from journeyman.tools.faults import Fault, FaultPlan
from journeyman.tools.live import RESTARTED
from journeyman.tools.mcp import McpServer, ServerState

from .served import BANK, Counted, served, wait_until

RAW = str(Path(__file__).with_name("mcp_raw_server.py"))
COUNTER = str(Path(__file__).with_name("mcp_counter_server.py"))


def raw(case: str, *mark: str, timeout_s: float = 60) -> McpServer:
    return McpServer(sys.executable, "-S", RAW, case, *mark, timeout_s=timeout_s)


def call(server: McpServer, name: str = "good", **arguments: Any) -> ToolResult:
    _, result = execute(ToolCall(name, arguments), {t.name: t for t in server.tools}, None)
    return result


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter between opening and reading
        return False


# What a model reads


@pytest.fixture(scope="module")
def results() -> Iterator[McpServer]:
    """A server with a tool a result."""
    with raw("results") as server:
        yield server


@pytest.mark.parametrize(
    ("case", "reads"),
    [
        ("resource", "[resource file:///a.txt, text/plain]\nline 1\nline 2"),
        ("resource without a type", "[resource file:///a.txt]\nline 1\nline 2"),
        ("blob", "[resource file:///b, no text, 2 bytes]"),
        ("link", "[link to file:///a.txt, a]"),
        ("full link", "[link to file:///a.txt, Letter A, text/plain, 13 bytes] The first of them."),
        ("image", "[image, image/png, 3 bytes]"),
        ("audio", "[audio, audio/wav, 1 bytes]"),
        ("many", "hi\n[resource file:///a.txt]\nline 1\nline 2\nhi"),
        ("structured", '{"a": 1}'),
        ("structured alone", '{"a": 1}'),
        ("structured and more", 'hi\n{"a": 1}'),
        ("structured twice", '{"a":  1}'),
        ("structured result", "1\n2"),
        ("structured list", "[1]"),
        ("nothing", "null"),
        ("no content", "null"),
        ("text as content", "hi"),
        ("unknown part", '{"type": "what", "of": 1}\nhi'),
        ("part without its data", '{"type": "image"}\nhi'),
        ("half a character", "a?b"),
    ],
)
def test_a_result_reaches_the_model(results: McpServer, case: str, reads: str) -> None:
    result = call(results, case)
    assert (result.call.status, result.content) == (CallStatus.OK, reads)


@pytest.mark.parametrize(
    ("case", "reads"),
    [
        ("refused", '{"error": "no luck"}'),
        ("refused in silence", '{"error": "refused in silence failed"}'),
        ("refused by a file", '{"error": "[resource file:///a.txt]\\nline 1\\nline 2"}'),
    ],
)
def test_a_refusal_reaches_the_model(results: McpServer, case: str, reads: str) -> None:
    result = call(results, case)
    assert (result.call.status, result.content) == (CallStatus.TOOL_ERROR, reads)


def test_an_error_of_the_protocol_reaches_the_model() -> None:
    with raw("breaks") as server:
        result = call(server)
    assert (result.call.status, result.content) == (CallStatus.TOOL_ERROR, '{"error": "internal"}')


def test_what_is_no_result_is_no_fault_of_the_model(results: McpServer) -> None:
    with pytest.raises(ToolServerError, match="what is no result"):
        call(results, "no result")


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("talks", {"x": "a"}),
        ("changes its tools", {"x": "a"}),
        ("an output schema", {"x": "a"}),
        ("a schema without a type", {}),
    ],
)
def test_a_server_that_is_a_little_odd(case: str, arguments: dict[str, Any]) -> None:
    """In a process of its own: what else goes on in this one may have something to say."""
    code = (
        "import json, sys\n"
        "from journeyman.tools import ToolCall, execute\n"
        "from journeyman.tools.mcp import McpServer\n"
        "raw, case, given = sys.argv[1:]\n"
        "with McpServer(sys.executable, '-S', raw, case, timeout_s=60) as server:\n"
        "    tools = {t.name: t for t in server.tools}\n"
        "    _, result = execute(ToolCall('good', json.loads(given)), tools, None)\n"
        "assert result.content == given, result\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, RAW, case, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    # Neither a traceback nor what the server says.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Which tools there are


def test_an_odd_tool_costs_itself_only() -> None:
    with (
        pytest.warns(UserWarning, match=r"odd tools' that cannot be used: no schema: ") as warned,
        raw("odd tools") as server,
    ):
        assert [t.name for t in server.tools] == ["good"]
        assert call(server, x="a").content == '{"x": "a"}'
    expected = {
        "no schema": "its inputSchema is no JSON Schema: None",
        "schema is text": "its inputSchema is no JSON Schema: object",
        "schema of a list": "type 'object'",
        "schema is nonsense": "not a JSON Schema",
        "properties are": "not a JSON Schema",
        "number 7": "it has no name",
        "number 8": "it has no name: 3",
        "good (number 9)": "another tool has its name",
    }
    assert list(server.refused) == list(expected)
    for name, why in expected.items():
        assert why in server.refused[name] and server.refused[name] in str(warned[0].message)


def test_a_server_without_a_tool_that_can_be_used() -> None:
    with pytest.raises(
        ToolDefinitionError, match=r"nothing usable' that cannot be used: no schema: "
    ):
        raw("nothing usable")


def test_all_pages_are_read() -> None:
    with raw("pages") as server:
        assert [t.name for t in server.tools] == ["t0", "t1", "t2"]
        assert call(server, "t2", x="a").call.status is CallStatus.OK
    with pytest.raises(ToolServerError, match="lists its tools without end: 100 pages"):
        raw("endless")


# Servers that fail


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("dies at start", "did not start: .*; its last words: cannot open the shop"),
        ("refuses to begin", "did not start: not today"),
        ("does not list", "does not list its tools: no list today"),
    ],
)
def test_a_server_that_does_not_begin_says_why(case: str, says: str) -> None:
    with pytest.raises(ToolServerError, match=says):
        raw(case)


def test_the_last_words_of_a_server_are_told() -> None:
    with raw("dies") as server, pytest.raises(ToolServerError, match=r"died; .* a last word"):
        call(server)


def test_nothing_is_left_of_a_server_that_ends(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    raw("leaves a child", str(mark)).close()
    wait_until(lambda: not is_running(int(mark.read_text())))


def test_nothing_is_left_of_a_server_that_hangs_at_its_start(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    program = f"sleep 600 & echo $! >{mark}; trap '' TERM; sleep 600"
    with pytest.raises(ToolServerError, match=r"did not start within 1 s"):
        McpServer("sh", "-c", program, timeout_s=1)
    wait_until(lambda: not is_running(int(mark.read_text())))


def test_a_call_that_hangs_leaves_the_server_as_it_is() -> None:
    with raw("hangs") as server:
        server.timeout_s = 0.1
        assert call(server).call.status is CallStatus.TIMEOUT


def test_a_killed_process_leaves_no_server(tmp_path: Path) -> None:
    program = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from journeyman.tools.mcp import McpServer
McpServer({sys.executable!r}, "-S", {RAW!r}, "leaves a child", {str(tmp_path / "child")!r})
print("ready", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.kill()
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_running(child))


# What servers remember


@tool
def note(state: tuple[str, ...], text: str) -> tuple[tuple[str, ...], str]:
    """Note a text, in a state that is a value.

    Args:
        text: What to note.
    """
    return (*state, text), text


def count_env(server: McpServer) -> type[ToolEnv]:
    class CountEnv(ToolEnv):
        """Count with a server."""

        toolset = (*server.tools, note)

        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
            """Count to two, and note it."""
            gold = (ToolCall("add"), ToolCall("add"), ToolCall("note", {"text": "2"}))
            return Task("", "count", f"Count to two ({rng.random()}).", (), gold, "2")

    return CountEnv


def counter(**options: Any) -> McpServer:
    return McpServer(sys.executable, "-S", COUNTER, timeout_s=60, **options)


@pytest.fixture
def isolated() -> Iterator[type[ToolEnv]]:
    with counter() as server:
        yield count_env(server)


def say(env: ToolEnv, name: str, **arguments: Any) -> str:
    (message,), *_ = env.step([ToolCall(name, arguments)])
    return message.content


def begun(cls: type[ToolEnv], task_id: str = "test/0") -> ToolEnv:
    env = cls()
    env.reset(options={"task_id": task_id})
    return env


def test_episodes_share_no_state(isolated: type[ToolEnv]) -> None:
    one, other = begun(isolated), begun(isolated)
    assert [say(one, "add"), say(one, "add"), say(other, "add")] == ["1", "2", "1"]
    assert one.state_hash() != other.state_hash()
    say(other, "add")
    assert one.state_hash() == other.state_hash()
    one.reset(options={"task_id": "test/0"})
    assert say(one, "add") == "1"
    one.close()
    assert say(begun(isolated), "add") == "1"
    assert say(other, "add") == "3"


@pytest.mark.parametrize(("note", "reward"), [("2", 1.0), ("3", 0.0)])
def test_rewards_look_at_the_value_and_the_answer(
    isolated: type[ToolEnv], note: str, reward: float
) -> None:
    env = begun(isolated)
    assert [say(env, "add"), say(env, "add"), say(env, "note", text=note)] == ["1", "2", note]
    assert env.step("Answer: 2")[1] == reward


def test_a_process_that_died_before_its_episode_is_passed_over(isolated: type[ToolEnv]) -> None:
    """The one that is kept ready may be killed meanwhile."""
    (server,) = {t.live for t in isolated.toolset if t.live is not None}
    assert isinstance(server, McpServer)
    spare = server._spare
    assert spare is not None
    pid = int(spare.call("odd", {}).split()[1])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not spare.alive)
    assert say(begun(isolated), "add") == "1"


def test_steps_that_ask_a_server_run_in_threads(isolated: type[ToolEnv]) -> None:
    assert isolated.waits
    assert not ToolEnv.waits


def test_threads_side_by_side_share_no_state(isolated: type[ToolEnv]) -> None:
    seen: list[list[str]] = []

    def play(number: int) -> None:
        env = begun(isolated, f"test/{number}")
        seen.append([say(env, "add") for _ in range(3)])
        env.close()

    threads = [threading.Thread(target=play, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["1", "2", "3"]] * 8


def test_a_state_that_cannot_be_copied_says_so(isolated: type[ToolEnv]) -> None:
    with pytest.raises(NoBranchError, match="say state='replay'; if it keeps none, state="):
        begun(isolated).snapshot()


def test_branches_are_rebuilt_where_calls_can_be_replayed() -> None:
    with counter(state="replay") as server:
        env, other = begun(count_env(server)), begun(count_env(server))
        say(env, "add")
        say(env, "refuse")
        say(env, "note", text="a")
        branch = env.snapshot()
        hashed = env.state_hash()
        assert [say(env, "add"), say(env, "add")] == ["2", "3"]
        env.restore(branch)
        assert env.state_hash() == hashed
        assert say(env, "add") == "2"
        with pytest.raises(ValueError, match="cannot be restored"):
            other.restore(branch)
        other = type(env)()
        other.restore(branch)
        assert other.state_hash() == hashed
        assert [say(other, "add"), say(env, "add")] == ["2", "3"]


def test_a_server_that_cannot_be_replayed_is_found_out() -> None:
    with counter(state="replay") as server:
        env = begun(count_env(server))
        say(env, "odd")
        branch = env.snapshot()
        assert say(env, "add") == "1"
        env.restore(branch)
        with pytest.raises(ToolServerError, match=r"although it was declared state='replay': odd"):
            say(env, "add")


def test_a_server_without_a_state_is_shared_and_branches() -> None:
    with counter(state="none") as server:
        env = begun(count_env(server))
        before = env.state_hash(), env.snapshot()
        assert [say(env, "add"), say(begun(count_env(server)), "add")] == ["1", "2"]
        env.restore(before[1])
        assert env.state_hash() == before[0]
        with pytest.raises(ToolServerError, match="died"):
            say(env, "die")
        env.reset(options={"task_id": "test/0"})
        assert say(env, "add") == "1"  # there is another


def test_a_call_that_ends_the_server_is_told_to_the_model(isolated: type[ToolEnv]) -> None:
    env = begun(isolated)
    assert [say(env, "add"), say(env, "add")] == ["1", "2"]
    results = env.step([ToolCall("die")])[-1]["calls"]
    assert results[0].call.status is CallStatus.TOOL_ERROR
    assert RESTARTED in results[0].content
    assert say(env, "add") == "1"
    assert RESTARTED in say(env, "die")


def test_branches_of_a_server_that_was_started_anew() -> None:
    with counter(state="replay") as server:
        env = begun(count_env(server))
        say(env, "add")
        say(env, "die")
        say(env, "add")
        branch = env.snapshot()
        assert say(env, "add") == "2"
        env.restore(branch)
        assert say(env, "add") == "2"


def test_a_server_that_does_not_start_again_is_no_fault_of_the_model(
    isolated: type[ToolEnv],
) -> None:
    (server,) = {t.live for t in isolated.toolset if t.live is not None}
    assert isinstance(server, McpServer)
    env = begun(isolated)
    server.close()
    with pytest.raises(ToolServerError, match="is closed"):
        say(env, "add")


def test_stale_reads_need_a_state_that_is_a_value(isolated: type[ToolEnv]) -> None:
    with pytest.raises(TypeError, match="give a plan whose rates leave it out"):
        with_faults(isolated, FaultPlan({Fault.STALE_READ: 1.0}))
    flaky = with_faults(isolated, FaultPlan({Fault.TIMEOUT: 0.0}))
    assert say(begun(flaky), "add") == "1"


def test_settings_that_do_not_go_together() -> None:
    for problem, options in (
        ("cannot be started anew for each episode: say state='none'", {}),
        ("expected one of none, episode, replay", {"state": "shared"}),
        ("is an address: arguments, env and cwd are a program's", {"cwd": "/", "state": "none"}),
    ):
        with pytest.raises(ValueError, match=problem):
            McpServer("http://127.0.0.1:1/mcp", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is a program: headers and sse are an address's"):
        McpServer("python", headers={"Authorization": "x"})


# Servers at an address


def tally_app(stateless: bool) -> Any:
    """A server that counts the calls of all its clients."""
    count = 0

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        add = types.Tool(name="add", input_schema={"type": "object"})
        return types.ListToolsResult(tools=[add])

    async def call_tool(context: Any, params: Any) -> types.CallToolResult:
        nonlocal count
        count += 1
        told = context.request.headers.get("authorization", "nobody")
        text = types.TextContent(type="text", text=f"{count} {told}")
        return types.CallToolResult(content=[text])

    server = Server("tally", on_list_tools=list_tools, on_call_tool=call_tool)
    return server.streamable_http_app(stateless_http=stateless, json_response=stateless)


def test_a_server_at_an_address() -> None:
    with served(tally_app(stateless=False)) as port:
        address = f"http://127.0.0.1:{port}/mcp"
        with McpServer(address, state="none", headers={"Authorization": "me"}) as server:
            assert server.state is ServerState.NONE
            env = begun(count_env(server))
            env.snapshot()
            assert [say(env, "add"), call(server, "add").content] == ["1 me", "2 me"]


def test_our_own_server_keeps_episodes_apart() -> None:
    with served(make_app(Counted(), BANK)) as port:
        server = McpServer(f"http://127.0.0.1:{port}/mcp", state="episode")
        with server:

            class RemoteEnv(ToolEnv):
                """The bank, elsewhere."""

                toolset = server.tools

                @classmethod
                def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
                    """Ask for a task."""
                    return Task("", "remote", f"{rng.random()}", (), (), "x")

            one, other = begun(RemoteEnv), begun(RemoteEnv)
            assert '"test/0"' in say(one, "episode_reset", task_id="test/0")
            assert "No episode is running" in say(other, "find_account", owner="x")
            one.close()
            other.close()


def test_a_server_at_an_address_without_sessions_shares_what_it_remembers() -> None:
    with served(tally_app(stateless=True)) as port:
        address = f"http://127.0.0.1:{port}/mcp"
        for state in ("episode", "replay"):
            with pytest.raises(ToolServerError, match="it opens no sessions, so all episodes"):
                McpServer(address, state=state)
        with McpServer(address, state="none") as server:
            assert call(server, "add").content == "1 nobody"


@pytest.mark.parametrize("state", list(ServerState))
def test_a_server_that_speaks_the_older_transport(state: ServerState) -> None:
    server = MCPServer("older", log_level="CRITICAL")

    @server.tool()
    def double(x: int) -> int:
        """Double a number."""
        return 2 * x

    with served(server.sse_app()) as port:
        address = f"http://127.0.0.1:{port}/sse"
        with McpServer(address, sse=True, state=state, timeout_s=20) as older:
            assert say(begun(count_env(older)), "double", x=2) == "4"


def test_a_server_at_an_address_that_is_not_there() -> None:
    with served(tally_app(stateless=False)) as port:
        pass
    with pytest.raises(ToolServerError, match="did not start"):
        McpServer(f"http://127.0.0.1:{port}/mcp", state="none", timeout_s=5)


def test_no_process_and_no_warning_is_left() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        server = counter()
        cls = count_env(server)
        envs = [begun(cls, f"test/{i}") for i in range(3)]
        pids = [int(say(env, "odd").split()[1]) for env in envs]
        assert len(set(pids)) == 3 and all(map(is_running, pids))
        envs[0].close()
        envs[1].reset(options={"task_id": "test/0"})
        wait_until(lambda: not (is_running(pids[0]) or is_running(pids[1])))
        assert is_running(pids[2])
        server.close()
        assert not is_running(pids[2])
    assert os.getpid() not in pids
