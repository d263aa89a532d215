"""What an execution costs, beside what else one could do, interleaved in one run.

    python benchmarks/sandbox.py [--json FILE] [--rounds N] [--peers PYTHON]

Each round times every way in turn, the quick ones ten times, so that a noisy neighbour hits all
alike; medians are printed with the 95th percentile. Docker's rows appear if an engine answers,
those of other projects if --peers names the Python of a virtual environment that has them (`pip
install smolagents inspect-ai llm-sandbox[docker]`); what does not run is named with the reason. The
program is `1 + 1` everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from journeyman.sandbox import IsolationUnavailable, Sandbox
from journeyman.sandbox.namespace.interpreter import find_interpreter
from journeyman.tools.python import Repl

CODE = "1 + 1"
# What takes less than a new process is timed so often in each round: a session is called in runs.
BURST = 10
QUICK = ("live session", "fork + exec", "back to a branch", "docker attach", "smolagents")
# Ways that take so long are timed in every fifth round only.
SLOW = ("cold start", "docker run", "docker start", "docker exec")
RATIOS = {  # "slower / faster": what the project promises
    "python -c / one-shot": 10,
    "python -c / live session": 50,
    "python -c / fork + exec + discard": 5,
    "docker exec / docker attach": 10,
}
# Each defines `once`, and `close` if it leaves something behind; IMAGE is the docker backend's.
PEERS = {
    "smolagents in-process (no boundary)": """
from smolagents.local_python_executor import LocalPythonExecutor
executor = LocalPythonExecutor([])
executor.send_tools({})
def once(): assert executor("1 + 1").output == 2
""",
    "llm-sandbox docker": """
from llm_sandbox import SandboxSession
# Its user is root by name and its command the image's own: a copied image has neither.
run = {"user": "0:0", "command": ["sleep", "3600"]}
session = SandboxSession(
    lang="python", image=IMAGE, skip_environment_setup=True, workdir="/tmp", runtime_configs=run)
session.open()
def once():
    got = session.run("print(1 + 1)")
    assert got.stdout.strip() == "2", got
def close(): session.container.remove(force=True)
""",
    "inspect-ai local": """
import asyncio
from inspect_ai.util._sandbox.local import LocalSandboxEnvironment
sandbox = LocalSandboxEnvironment()
loop = asyncio.new_event_loop()
def once():
    got = loop.run_until_complete(sandbox.exec(["python3", "-c", "print(1 + 1)"]))
    assert got.stdout == "2\\n", got
""",
    "inspect-ai docker": """
import asyncio, tempfile
from inspect_ai.util._sandbox.docker.docker import DockerSandboxEnvironment as Docker
file = tempfile.NamedTemporaryFile("w", suffix="compose.yaml")
file.write("services: {default: {image: '%s', command: sleep 3600, network_mode: none}}" % IMAGE)
file.flush()
loop = asyncio.new_event_loop()
loop.run_until_complete(Docker.task_init("benchmark", file.name))
sandboxes = loop.run_until_complete(Docker.sample_init("benchmark", file.name, {}))
def once():
    got = loop.run_until_complete(sandboxes["default"].exec(["python3", "-c", "print(1 + 1)"]))
    assert got.stdout == "2\\n", got
def close():
    loop.run_until_complete(Docker.sample_cleanup("benchmark", file.name, sandboxes, False))
""",
}
SERVER = """
import sys, time
close = None
try:
    exec({setup!r})
    once()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        once()
        print("seconds", time.perf_counter() - start, flush=True)
except Exception as error:
    print("failed", type(error).__name__ + ":", *str(error).split(), flush=True)
if close is not None:
    close()
"""

Way = Callable[[], None]


def subprocess_way(*command: str) -> Way:
    """A new process for every execution."""
    return lambda: subprocess.run(command, check=True, capture_output=True).check_returncode()


@contextlib.contextmanager
def ours(backend: str) -> Iterator[dict[str, Way]]:
    """The ways of one backend."""
    prefix = "" if backend == "namespace" else f"{backend} "
    sandbox = Sandbox(backend)
    repl = Repl(sandbox)
    with sandbox, sandbox.session() as session, contextlib.closing(repl):
        for number in range(5):
            repl.run(f"x{number} = {number}")
        branch_point = repl.cells

        def start() -> None:
            sandbox.session().close()

        def live() -> None:
            assert session.exec(CODE).value_repr == "2"

        def branch() -> None:
            with session.fork() as fork:
                assert fork.exec(CODE).value_repr == "2"

        def shot() -> None:
            assert sandbox.exec(CODE).value_repr == "2"

        def back() -> None:
            repl.cells = branch_point
            assert repl.run(CODE) == "2"

        live(), shot()
        first = "cold start" if backend == "namespace" else "docker start"
        last = "live session" if backend == "namespace" else "docker attach"
        yield {
            first: start,
            f"{prefix}one-shot": shot,
            last: live,
            f"{prefix}fork + exec + discard": branch,
            f"{prefix}back to a branch at depth 5 + exec": back,
        }


@contextlib.contextmanager
def engine() -> Iterator[dict[str, Way]]:
    """Docker as it is used by hand."""
    import docker

    from journeyman.sandbox import image

    client = docker.from_env()
    name = image.ensure(client)
    container = client.containers.run(name, ["sleep", "3600"], detach=True, auto_remove=True)
    try:
        python = ["python3", "-c", CODE]
        yield {
            "docker exec": lambda: container.exec_run(python),
            "docker run": lambda: client.containers.run(name, python, remove=True),
        }
    finally:
        container.remove(force=True)
        client.close()


@contextlib.contextmanager
def peer(python: str, name: str, image: str | None) -> Iterator[dict[str, Way]]:
    """Another project, in a process of its own that is told when to execute."""
    setup = PEERS[name].replace("IMAGE", repr(image))
    with subprocess.Popen(
        [python, "-c", SERVER.format(setup=setup)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def once() -> None:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            wait("seconds")

        def wait(word: str) -> None:
            for line in process.stdout:  # type: ignore[union-attr]
                if line.startswith(word):
                    return
                if line.startswith("failed"):
                    raise ChildProcessError(line.removeprefix("failed").strip())
            raise ChildProcessError(f"it ended with status {process.wait()}")

        try:
            wait("ready")
            yield {name: once}
        finally:
            process.stdin.close()  # it ends by itself, and takes its container with it
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def throughput(seconds: float = 3.0) -> float:
    """One-shot executions a second, by two threads a processor: one may wait, the other works."""
    workers = range(2 * (os.cpu_count() or 1))
    with Sandbox() as sandbox, ThreadPoolExecutor(len(workers)) as threads:
        list(threads.map(lambda _: sandbox.exec(CODE), workers))
        end = time.monotonic() + seconds

        def work(_: int) -> int:
            done = 0
            while time.monotonic() < end:
                assert sandbox.exec(CODE).value_repr == "2"
                done += 1
            return done

        start = time.monotonic()
        return sum(threads.map(work, workers)) / (time.monotonic() - start)


def kill_times(count: int = 10) -> list[float]:
    """Seconds from the end of the allowed time to an empty process tree."""
    code = "import os, time\nfor _ in range(4):\n    os.fork()\ntime.sleep(60)"
    taken = []
    for _ in range(count):
        with Sandbox().session() as session:
            start = time.perf_counter()
            assert session.exec(code, 0.3).killed_reason is not None
            taken.append(time.perf_counter() - start - 0.3)
    return taken


def branch_mb(count: int = 1000) -> float:
    """MiB that each of many live branches takes, pages that it shares counted in proportion.

    Raises:
        PermissionError: Only root can see it: the processes hide their memory.
    """
    with Sandbox().session() as session, contextlib.ExitStack() as stack:
        session.exec("x = 0")
        (supervisor,) = children(session.container.worker.process.pid)  # type: ignore[attr-defined]
        before = proportional_kb(supervisor)
        for number in range(count):
            branch = stack.enter_context(session.fork())
            assert branch.exec(f"x += {number}\nx").value_repr == str(number)
        return (proportional_kb(supervisor) - before) / count / 1024


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def proportional_kb(supervisor: int) -> int:
    """Memory of a supervisor and its interpreters, page tables included."""
    wanted = {"smaps_rollup": "Pss:", "status": "VmPTE:"}
    return sum(
        int(line.split()[1])
        for pid in (supervisor, *children(supervisor))
        for name, word in wanted.items()
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines()
        if line.startswith(word)
    )


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            if name in SLOW and number % 5:
                continue
            for _ in range(BURST if name.startswith(QUICK) else 1):
                start = time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - start)
    return taken


def collect(
    stack: contextlib.ExitStack, peers: str | None
) -> tuple[dict[str, Way], dict[str, str]]:
    """All ways that this machine has; and why others do not run."""
    inside = find_interpreter(61000 if os.geteuid() == 0 else None).executable
    ways = {
        "python -c": subprocess_way(sys.executable, "-c", CODE),
        "python -c (as in the sandbox, isolated)": subprocess_way(inside, "-I", "-c", CODE),
        **stack.enter_context(ours("namespace")),
    }
    image, missing = None, {}
    try:
        ways |= stack.enter_context(ours("docker"))
        ways |= stack.enter_context(engine())
        image = Sandbox("docker").backend.describe()["image"]
    except IsolationUnavailable as error:
        missing["docker"] = str(error)
    for name in PEERS if peers else ():
        try:
            ways |= stack.enter_context(peer(str(peers), name, image))
        except ChildProcessError as error:
            missing[name] = str(error)
    for name, reason in missing.items():
        print(f"without {name}: {reason}", file=sys.stderr)
    return ways, missing


def report(taken: dict[str, list[float]]) -> dict[str, Any]:
    """Prints and returns medians, tails and ratios."""
    rows = {}
    for name, seconds in taken.items():
        p50, p95 = statistics.median(seconds), sorted(seconds)[int(len(seconds) * 0.95)]
        rows[name] = {"p50_ms": p50 * 1e3, "p95_ms": p95 * 1e3, "count": len(seconds)}
        print(f"{name:42} {p50 * 1e3:9.2f} ms   p95 {p95 * 1e3:9.2f}   n {len(seconds)}")
    ratios = {}
    for pair, promised in RATIOS.items():
        slower, faster = pair.split(" / ")
        if slower in rows and faster in rows:
            ratios[pair] = rows[slower]["p50_ms"] / rows[faster]["p50_ms"]
            print(f"{pair:42} {ratios[pair]:9.1f} x    promised {promised}")
    return {"ways": rows, "ratios": ratios, "promised": RATIOS}


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--peers", help="Python of a virtual environment with other projects")
    options = parser.parse_args()
    load, _, _ = os.getloadavg()  # of others
    with contextlib.ExitStack() as stack:
        ways, missing = collect(stack, options.peers)
        measure(ways, 1)  # what is first is never typical
        figures = report(measure(ways, options.rounds))
    figures["missing"] = missing
    figures["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}"
    figures["load_before"] = load
    figures["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    figures["executions_per_s"] = throughput()
    figures["kill_to_empty_tree_ms"] = max(kill_times()) * 1e3
    with contextlib.suppress(PermissionError):
        figures["branch_mb"] = branch_mb()
    print(f"{figures['machine']}; {figures['date']}; load before {load:.1f}")
    print(f"one-shot executions a second: {figures['executions_per_s']:.0f}")
    print(f"from kill to an empty tree: at most {figures['kill_to_empty_tree_ms']:.0f} ms")
    if "branch_mb" in figures:
        print(f"memory of each of 1,000 live branches: {figures['branch_mb']:.2f} MiB")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
