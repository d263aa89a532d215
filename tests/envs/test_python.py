"""`journeyman/Python-v0` in a real sandbox."""

import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from journeyman.envs import make
from journeyman.envs.checker import check
from journeyman.envs.errors import EpisodeOverError
from journeyman.envs.nearmiss import program
from journeyman.envs.task import ANSWER
from journeyman.envs.tasks.python import PythonEnv, _same
from journeyman.envs.types import SPLITS
from journeyman.sandbox import Limits, Sandbox, SandboxDied
from journeyman.tools import CallStatus, ToolCall, ToolResult
from journeyman.tools.cells import Cell

from ..processes import sandboxes

pytestmark = pytest.mark.usefixtures("bwrap")


@pytest.fixture
def env() -> Iterator[PythonEnv]:
    with PythonEnv(max_turns=40) as env:
        env.reset(options={"task_id": "train/0"})
        yield env


def run(env: PythonEnv, code: str) -> ToolResult:
    *_, info = env.step([ToolCall("python", {"code": code})])
    (result,) = info["calls"]
    assert isinstance(result, ToolResult)
    return result


def shows(env: PythonEnv, code: str) -> str:
    result = run(env, code)
    assert result.ok, result.content
    return result.content


def error(env: PythonEnv, code: str) -> str:
    result = run(env, code)
    assert result.call.status is CallStatus.TOOL_ERROR
    assert result.call.error is not None
    return result.call.error


def test_gold_of_every_kind_in_every_split() -> None:
    with PythonEnv() as env:
        for split in SPLITS:
            tasks = map(env.load_task, itertools.islice(env.tasks(split), 50))
            by_kind = {task.kind: task for task in tasks}
            assert len(by_kind) == 5
            for kind, task in by_kind.items():
                env.begin(task)
                statuses = [run(env, str(c.arguments["code"])).call.status for c in task.gold]
                assert statuses[-1] is CallStatus.OK
                recovers = kind in ("dirty_sum", "distance")
                assert (statuses[0] is CallStatus.TOOL_ERROR) == recovers, task
                assert env.step(f"{ANSWER} {task.answer}")[1] == 1.0, task


def test_the_answer_comes_from_the_interpreter() -> None:
    """The gold answer is what the last gold call shows, and the prompt does not have it."""
    with PythonEnv() as env:
        for task_id in itertools.islice(env.tasks("test"), 5):
            env.reset(options={"task_id": task_id})
            *_, last = (run(env, str(c.arguments["code"])).content for c in env.oracle())
            assert last.strip("'") == env.task.answer
            assert env.task.answer not in env.task.prompt


def defines(env: PythonEnv, task_id: str, *codes: str) -> float:
    """The reward for a function task that is answered with these cells."""
    env.reset(options={"task_id": task_id})
    for code in codes:
        run(env, code)
    reward = 0.0
    for _ in env.task.turns:
        reward = env.step("Done.")[1]
    return reward


def test_gold_above_easy() -> None:
    with PythonEnv() as env:
        for level, kinds in (("medium", 4), ("hard", 2)):
            tasks = map(env.load_task, itertools.islice(env.tasks(f"train/{level}"), 40))
            by_kind = {task.kind: task for task in tasks}
            assert len(by_kind) == kinds
            for task in by_kind.values():
                env.begin(task)
                steps = [env.step(action) for _, action in program(task.turns)]
                assert steps[-1][1] == 1.0, task
                assert all(r.ok for step in steps for r in step[4]["calls"])


def test_hidden_tests_decide() -> None:
    task_id = next(
        i for i in PythonEnv.tasks("test/medium") if PythonEnv.load_task(i).kind == "fee"
    )
    (gold,) = PythonEnv.load_task(task_id).gold
    code = str(gold.arguments["code"])
    with PythonEnv() as env:
        assert defines(env, task_id, code) == 1.0
        assert (
            defines(env, task_id, code.replace("    return", "    print(amount)\n    return"))
            == 1.0
        )
        assert defines(env, task_id) == 0.0
        assert defines(env, task_id, code, "def fee(amount):\n    return 1") == 0.0
        assert defines(env, task_id, "def fee(amount):\n    raise ValueError") == 0.0
        branch = env.snapshot()
        assert defines(env, task_id, "import os\ndef fee(amount):\n    os._exit(0)") == 0.0
        env.restore(branch)  # a test leaves nothing behind
        assert env.snapshot() == branch


def test_what_is_right_passes_however_it_is_written() -> None:
    """Warnings, notes for the developer, and whether 7 is written 7.0, do not matter."""
    task_id = next(
        i for i in PythonEnv.tasks("test/medium") if PythonEnv.load_task(i).kind == "fee"
    )
    (gold,) = PythonEnv.load_task(task_id).gold
    code = str(gold.arguments["code"])
    body = "    return"
    with PythonEnv() as env:
        for right in (
            code.replace(body, f"    print(amount, file=__import__('sys').stderr)\n{body}"),
            code.replace(body, f"    __import__('warnings').warn('hm')\n{body}"),
            code.replace("return", "return 1.0 *"),
        ):
            assert defines(env, task_id, right) == 1.0, right
        for wrong in (
            code.replace("return", "return 1.5 *"),
            code.replace("return", "return str(") + ")",
            "def fee(amount):\n    return fee",  # no plain value
            "def fee(amount):\n    return {}",
            "def fee(amount):\n    import os; os.system('echo x'); return 1",
        ):
            assert defines(env, task_id, wrong) == 0.0, wrong


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ([707.0, "a"], [707, "a"], True),
        ([True], [1], False),
        ([0], [False], False),
        ([True], [True], True),
        ([["a"]], [["a"]], True),
        ([("a",)], [["a"]], False),
        ([1], [1, 2], False),
        (None, [1], False),
    ],
)
def test_values_are_compared_not_how_they_are_shown(
    found: object, expected: object, same: bool
) -> None:
    assert _same(found, expected) is same


def test_an_empty_attempt_fails(env: PythonEnv) -> None:
    assert env.step(f"{ANSWER} done")[1] == 0.0


def test_the_checker_passes() -> None:
    assert [r for r in check("journeyman/Python-v0", 1, prefixes=4) if not r.passed] == []


def test_state_is_kept_in_an_episode_and_no_longer(env: PythonEnv) -> None:
    assert shows(env, "x = 20").startswith("Nothing was printed.")
    assert shows(env, "x + 1") == "21"
    assert shows(env, "print('x is', x)\nx * 2") == "x is 20\n40"
    env.reset(options={"task_id": "train/0"})
    assert "NameError: name 'x' is not defined" in error(env, "x")
    assert shows(env, "len(orders) > 0") == "True"  # what the task loads


def test_an_exception_keeps_what_was_done(env: PythonEnv) -> None:
    message = error(env, "x = 5\ny = 1 / 0")
    assert message.startswith("Traceback (most recent call last):")
    assert "y = 1 / 0" in message
    assert message.endswith("ZeroDivisionError: division by zero")
    assert shows(env, "x") == "5"
    assert "SyntaxError" in error(env, "x =")


def test_a_limit_costs_the_call_and_nothing_else() -> None:
    with PythonEnv(sandbox=Sandbox(limits=Limits(wall_s=2.0))) as env:
        env.reset(options={"task_id": "train/0"})
        shows(env, "x = 5")
        state = env.snapshot().state
        result = run(env, "x = 6\nimport time; time.sleep(60)")
        assert result.call.status is CallStatus.TIMEOUT
        assert "The code was stopped: it ran too long." in result.content
        assert env.snapshot().state == state
        assert shows(env, "x") == "5"


def test_code_that_ends_its_interpreter(env: PythonEnv) -> None:
    shows(env, "x = 5")
    assert "ended the interpreter (status 3)" in error(env, "x = 6; import os; os._exit(3)")
    assert "crashed the interpreter (signal 6)" in error(env, "import os; os.abort()")
    assert shows(env, "x") == "5"
    assert error(env, "exit(4)") == "The code exited with status 4."
    assert shows(env, "x") == "5"


def test_branches(env: PythonEnv) -> None:
    shows(env, "x = [1]")
    branch, before = env.snapshot(), env.state_hash()
    assert shows(env, "x.append(2); x") == "[1, 2]"
    after = env.state_hash()
    env.restore(branch)
    assert env.state_hash() == before
    assert shows(env, "x.append(3); x") == "[1, 3]"
    env.restore(branch)
    assert shows(env, "x.append(2); x") == "[1, 2]"
    assert env.state_hash() == after
    with PythonEnv(max_turns=40) as other:
        other.restore(branch)
        assert shows(other, "x") == "[1]"


def test_one_snapshot_many_threads(env: PythonEnv) -> None:
    assert env.waits
    shows(env, "x = 5")
    branch = env.snapshot()

    def play(number: int) -> str:
        with PythonEnv() as other:
            other.restore(branch)
            return shows(other, f"x + {number}")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(play, range(4))) == ["5", "6", "7", "8"]


def test_chance_is_seeded() -> None:
    shown = []
    for _ in range(2):
        with PythonEnv() as env:
            env.reset(options={"task_id": "train/0"})
            shown.append((shows(env, "import random; random.random()"), env.state_hash()))
    assert shown[0] == shown[1]


def test_addresses_do_not_show(env: PythonEnv) -> None:
    assert shows(env, "def f(): pass\nf") == "<function f at 0x…>"


def test_what_cannot_be_replayed_is_still_there(env: PythonEnv) -> None:
    now = shows(env, "import time; t = time.time_ns(); t")
    branch = env.snapshot()
    shows(env, "t = 1")
    error(env, "import os; os._exit(1)")
    assert shows(env, "t") == "1"
    env.restore(branch)
    assert shows(env, "t") == now
    env.close()  # a snapshot is good for longer than the env that took it
    with PythonEnv() as other:
        other.restore(branch)
        assert shows(other, "t") == now


def test_what_is_lost_is_told(env: PythonEnv) -> None:
    """An open file keeps the session from being copied, and the clock from being run again."""
    now = shows(env, "import time; file = open('log', 'w'); t = time.time_ns(); t")
    message = error(env, "import os; os._exit(1)")
    assert "what depends on the time or on chance is different now." in message
    assert shows(env, "t") != now


def test_a_killed_sandbox_is_an_infrastructure_failure(env: PythonEnv) -> None:
    shows(env, "x = 1")
    (pid,) = sandboxes()
    os.kill(int(pid), signal.SIGKILL)
    # Its end, which takes the interpreter along, is not to race with the next call.
    os.waitid(os.P_PID, int(pid), os.WEXITED | os.WNOWAIT)
    with pytest.raises(SandboxDied):
        run(env, "x")
    with pytest.raises(EpisodeOverError):
        run(env, "x")
    env.reset(options={"task_id": "train/0"})
    assert shows(env, "2") == "2"


def test_sessions_end_with_the_env() -> None:
    before = sandboxes()
    env = PythonEnv()
    env.reset(seed=0)
    assert sandboxes() == before  # nothing runs until a tool is called
    run(env, "1")
    first = sandboxes() - before
    assert len(first) == 1
    env.reset(seed=1)
    run(env, "1")
    assert sandboxes() - before == first  # another branch of the same sandbox
    env.close()
    env.close()
    assert sandboxes() == before
    env.reset(seed=0)  # a closed env can be used again
    assert shows(env, "1") == "1"
    env.close()


def test_a_backend_by_name() -> None:
    with (
        pytest.raises(ValueError, match="no sandbox backend 'moon'"),
        PythonEnv(sandbox="moon") as env,
    ):
        env.reset(seed=0)
        run(env, "1")


def test_other_arguments_reach_the_base() -> None:
    env: Any = make("journeyman/Python-v0", split="test", max_turns=2, render_mode="ansi")
    env.reset(seed=0)
    assert env.task.id.startswith("test/")
    assert env.render().startswith("[system] ")


def test_registering_needs_no_bubblewrap(tmp_path: Path) -> None:
    program = """
import sys
from journeyman.envs import env_class, env_ids
assert "journeyman/Python-v0" in env_ids()
assert not [m for m in sys.modules if "sandbox" in m]
env = env_class("journeyman/Python-v0")()
env.reset(seed=0)
env.restore(env.snapshot())
env.close()
assert not [m for m in sys.modules if "sandbox.namespace" in m]
env.reset(seed=0)
try:
    env.step('<tool_call>{"name": "python", "arguments": {"code": "1"}}</tool_call>')
except RuntimeError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "cannot isolate untrusted code" in run.stdout


def test_state_is_plain_data(env: PythonEnv) -> None:
    shows(env, "1")
    loading, cell = env.snapshot().state
    assert loading.output is None
    assert cell == Cell("1", "1")


def test_calls_share_a_session(env: PythonEnv) -> None:
    shows(env, "0")
    opened = sandboxes()
    for i in range(5):
        env.restore(env.snapshot())  # to where it already is
        assert shows(env, str(i)) == str(i)
    assert sandboxes() == opened


SNIPPETS = (
    "x = {n}",
    "seen.append({n})",
    "seen.append(random.randrange(1000))",
    "def f(y):\n    return y * {n} + x",
    "x = f(x) if 'f' in globals() else x",
    "x = [][{n}]",
    "for name in set(globals()) & {{'x', 'f'}}:\n    del globals()[name]",
    "with open('log', 'a') as file:\n    file.write('{n} ')",
    "held = open('held{n}', 'w')",
    "go = threading.Thread(target=seen.append, args=({n},))\ngo.start()\ngo.join()",
    "x = (value * {n} for value in itertools.count())",
    "print(next(x, None) if hasattr(x, 'send') else x)",
    "exit({n})",
    "os._exit({n})",
)
LOOK = """
sorted(name for name in globals() if name[0] != '_'), repr(globals().get('x'))[:40], seen, \\
    random.random(), sorted(os.listdir()), os.path.exists('log') and open('log').read()
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_coming_back_is_as_going_on() -> None:
    """By the chain of hashes, at 1,000 nodes of 40 episodes."""
    rng = random.Random(5)
    episodes = []
    with PythonEnv(max_turns=40) as env:
        for number in range(40):
            env.reset(options={"task_id": f"train/{number}"})
            codes = ["import itertools, os, random, threading\nseen, x = [], 0"]
            codes += [
                f"{rng.choice(SNIPPETS).format(n=rng.randint(1, 9))}\n{LOOK}" for _ in range(8)
            ]
            nodes, chain = [], []
            for code in codes:
                nodes.append(env.snapshot())
                run(env, code)
                chain.append(env.state_hash())
            episodes.append((codes, nodes, chain))
        checked = 0
        for codes, nodes, chain in rng.sample(episodes, 40):
            for _ in range(25):
                at = rng.randrange(len(nodes))
                env.restore(nodes[at])
                for code, after in zip(codes[at:], chain[at:], strict=True):
                    run(env, code)
                    assert env.state_hash() == after, code
                checked += 1
    assert checked == 1000
