import errno
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gymnasium.envs import registration

from journeyman.agents.cli import main
from journeyman.agents.errors import AgentError
from journeyman.agents.students import hf
from journeyman.agents.teachers import local as teachers
from journeyman.envs import Task, UserTurn, env_class, env_ids, register, registry
from journeyman.envs.benchmark import BenchmarkEnv, BenchmarkTool
from journeyman.envs.checker import CheckResult
from journeyman.sandbox import IsolationUnavailable
from journeyman.tools import ToolCall, ToolSpec

BANK = "journeyman/Bank-v0"
BENCHMARKS = [i for i in env_ids() if issubclass(env_class(i), BenchmarkEnv)]
"""They need packages of their own."""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line; returns status, stdout and stderr."""
    monkeypatch.delenv("JOURNEYMAN_DEBUG", raising=False)

    def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOURNEYMAN_CACHE", str(tmp_path))
    return tmp_path


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def hydra_app(monkeypatch: pytest.MonkeyPatch, name: str, app: Callable[[list[str]], None]) -> None:
    """Put another function in the place of one of the Hydra applications."""

    def run_app(called: str, argv: list[str]) -> None:
        assert called == name
        app(argv)

    place = "journeyman.agents.runs.application"
    monkeypatch.setitem(sys.modules, place, SimpleNamespace(run_app=run_app))


# --- the command as a whole -----------------------------------------------------------------------


def test_help_lists_every_command(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for command in (
        "train",
        "eval",
        "show",
        "compare",
        "play",
        "envs",
        "tools",
        "sandbox",
        "models",
    ):
        assert f"    {command} " in out


def test_version(run: Run) -> None:
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("journeyman 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evla"], "no command 'evla'; did you mean 'eval'? (try: journeyman --help)"),
        (["xyzzy"], "no command 'xyzzy'; there are: train, eval, collect, serve, play"),
        (["envs", "lst"], "no command 'lst'; did you mean 'list'? (try: journeyman envs --help)"),
        ([], "required: command"),
        (["models"], "required: command"),
        (["models", "pull"], "required: name"),
        (["envs", "check"], "id --all is required"),
        (["envs", "check", BANK, "--prefixes", "0"], "'0' is not a whole number above zero"),
        (["envs", "list", "--jsno"], "unrecognized arguments: --jsno"),
        (["envs", "show", "journeyman/Bnak-v0"], f"did you mean {BANK!r}"),
        (["envs", "check", "journeyman/Bnak-v0"], f"did you mean {BANK!r}"),
        (["envs", "serve", "journeyman/Bnak-v0", "--mcp"], f"did you mean {BANK!r}"),
        (["envs", "serve", BANK, "--mcp", "--split", "dev"], "no split 'dev'"),
        (["envs", "serve", BANK, "--mcp", "--http", "99999"], "'99999' is not a port"),
        (["envs", "serve", BANK], "one of the arguments --mcp --openenv is required"),
        (["envs", "new", "Garden"], "write <namespace>/<Name>, such as acme/Garden"),
        (["tools", "list", "journeyman/Bnak-v0"], f"did you mean {BANK!r}"),
        (["play", BANK, "--task", "x"], "no task 'x'"),
        (["play", BANK, "--split", "dev"], "no split 'dev'"),
        (["models", "path", "smollm2"], "did you mean 'smollm2-135m'"),
        (["models", "path", "smollm2-135m"], "journeyman models pull smollm2-135m"),
        (["models", "pull", "x"], "there are: smollm2-135m"),
        (["sandbox", "check", "--backend", "x"], "no sandbox backend 'x'; there are docker, "),
        (["sandbox", "run", "not_there.py"], "not_there.py: No such file or directory"),
        (["sandbox", "run", "-", "--timeout", "0"], "--timeout: wall_s=0.0: expected a positive"),
        (["sandbox", "run", "-", "--timeout", "x"], "invalid float value: 'x'"),
    ],
)
def test_mistakes_get_one_line(run: Run, cache: Path, arguments: list[str], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("journeyman: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_debug_shows_where_an_error_came_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--debug", "envs", "show", "x"], ["envs", "show", "x", "--debug"]):
        status, _, err = run(*arguments)
        assert status == 2
        assert "Traceback" in err
        assert "journeyman: error: no environment 'x'" in err
    monkeypatch.setenv("JOURNEYMAN_DEBUG", "1")
    assert "Traceback" in run("envs", "show", "x")[2]
    monkeypatch.setenv("JOURNEYMAN_DEBUG", "0")
    assert "Traceback" not in run("envs", "show", "x")[2]


def test_a_bug_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra_app(monkeypatch, "train", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        run("train")


def test_a_full_disk_gets_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/demo/model")
    hydra_app(monkeypatch, "train", raising(full))
    status, _, err = run("train")
    assert (status, err) == (2, "journeyman: error: runs/demo/model: No space left on device\n")


def test_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra_app(monkeypatch, "train", raising(KeyboardInterrupt()))
    status, _, err = run("train")
    assert (status, err) == (130, "journeyman: interrupted; run the same command to go on\n")
    hydra_app(monkeypatch, "eval", raising(KeyboardInterrupt()))
    assert run("eval")[2] == "journeyman: interrupted\n"


def test_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "journeyman.agents.cli", "envs", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from journeyman.agents.cli import main; main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'gymnasium', 'numpy', 'matplotlib', 'hydra'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


# --- train, eval ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "eval", "collect"])
def test_hydra_apps_get_their_arguments_as_they_are(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    given: list[list[str]] = []
    hydra_app(monkeypatch, command, given.append)
    overrides = ["--multirun", "env=bank,orders", "--help", "+x=[1, 2]", "-c", "job"]
    assert run(command, *overrides)[0] == 0
    assert run("--debug", command)[0] == 0
    assert given == [overrides, []]


@pytest.mark.parametrize(
    ("code", "status", "message"), [(None, 0, ""), (0, 0, ""), (3, 3, ""), ("why", 1, "why\n")]
)
def test_an_apps_exit_status_is_ours(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: Any, status: int, message: str
) -> None:
    hydra_app(monkeypatch, "train", raising(SystemExit(code)))
    assert run("train") == (status, "", message)


def test_a_wrong_override_gets_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.errors import ConfigCompositionException

    hydra_app(monkeypatch, "train", raising(ConfigCompositionException("Could not\n\toverride x")))
    assert run("train", "x=1") == (2, "", "journeyman: error: Could not override x\n")


# --- play -----------------------------------------------------------------------------------------


def test_play(run: Run) -> None:
    status, out, _ = run("play", BANK, "--task", "test/0", stdin="Answer: nothing\n")
    assert status == 0
    assert "Reward 0 (not solved)." in out
    assert run("play", BANK)[0] == 1  # no input: left before the end


# --- envs, tools ----------------------------------------------------------------------------------


def test_envs_list(run: Run) -> None:
    status, out, _ = run("envs", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == env_ids()
    read = json.loads(run("envs", "list", "--json")[1])
    assert [entry["id"] for entry in read] == env_ids()
    bank = read[env_ids().index(BANK)]
    assert bank["class"] == "journeyman.envs.tasks.bank:BankEnv"
    assert "transfer" in bank["tools"]
    assert bank["levels"] == list(env_class(BANK).levels)
    assert bank["description"]


@pytest.mark.parametrize("env_id", sorted(set(env_ids()) - set(BENCHMARKS)))
def test_envs_show(run: Run, env_id: str) -> None:
    status, out, _ = run("envs", "show", env_id)
    assert status == 0
    assert out.startswith(f"{env_id}: ")
    assert "\nTask train/0 (" in out
    assert "\n    Answer: " in out
    for level in env_class(env_id).levels[1:]:
        assert f"\nTask train/{level}/0 ({level}, " in out


class PickyEnv(BenchmarkEnv):
    """A benchmark in small: every task has its own tools."""

    @classmethod
    def size(cls) -> int:
        return 2

    @classmethod
    def load(cls, number: int) -> Task:
        return Task("", "picky", "Water it.", number, (), None)

    def begin(self, task: Task) -> Any:
        spec = ToolSpec(f"water_{task.state}", "Water.\nMuch.", {"type": "object"})
        self._tools = {spec.name: BenchmarkTool(lambda *_: "ok", spec.name, True, spec)}
        return super().begin(task)


def test_tools_that_come_with_tasks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ids", {*registry._ids})
    monkeypatch.setattr(registration, "registry", {**registration.registry})
    register("acme/Picky-v0", PickyEnv)
    (line,) = (x for x in run("envs", "list")[1].splitlines() if x.startswith("acme/Picky-v0"))
    assert line.split()[1:5] == ["see", "show", "easy", "A"]
    (entry,) = (e for e in json.loads(run("envs", "list", "--json")[1]) if e["id"][:4] == "acme")
    assert entry["tools"] is None
    shown = run("envs", "show", "acme/Picky-v0")[1].splitlines()
    assert shown[2:4] == ["Tools of test/0; every task has its own", "  water_0(): Water."]
    one = run("tools", "list", "acme/Picky-v0")[1].splitlines()
    assert one == ["acme/Picky-v0: Tools of test/0; every task has its own", "  water_0(): Water."]
    assert "acme/Picky-v0: name it alone to see its tools" in run("tools", "list")[1].splitlines()
    assert json.loads(run("tools", "list", "--json")[1])["acme/Picky-v0"] is None
    (tools,) = json.loads(run("tools", "list", "acme/Picky-v0", "--json")[1]).values()
    assert [t["function"]["name"] for t in tools] == ["water_0"]


def test_envs_show_the_whole_talk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = (ToolCall("find_account", {"owner": "Ada"}),)
    task = Task(
        "train/0", "odd", "Hello.", (), (), "no", (UserTurn("Find Ada.", calls, None),), "Be kind."
    )
    monkeypatch.setattr(env_class(BANK), "load_task", lambda *_: task)
    out = run("envs", "show", BANK)[1]
    assert out.partition("Task ")[2].splitlines()[:7] == [
        "train/0 (easy, odd)",
        "  Rule: Be kind.",
        "  User: Hello.",
        "    Answer: no",
        "  User: Find Ada.",
        '    {"arguments": {"owner": "Ada"}, "name": "find_account"}',
        "    Answer: done",
    ]


def test_envs_check(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from journeyman.envs import checker

    asked = []

    def check(env_id: str, prefixes: int, progress: bool) -> list[CheckResult]:
        asked.append(prefixes)
        return [CheckResult("seeds", True, "20 played"), CheckResult("gold", env_id != BANK, "x")]

    monkeypatch.setattr(checker, "check", check)
    status, out, _ = run("envs", "check", BANK)
    assert status == 1
    assert out.splitlines() == [BANK, "  pass  seeds: 20 played", "  FAIL  gold: x"]
    assert run("envs", "check", "journeyman/Orders-v0")[0] == 0
    status, out, _ = run("envs", "check", "--all")
    assert status == 1
    assert out.count("seeds") + out.count("  skip  ") == len(env_ids())
    assert out.count("seeds") >= len(env_ids()) - len(BENCHMARKS)
    run("envs", "check", BANK, "--prefixes", "7")
    assert (asked[0], asked[-1]) == (1000, 7)


@pytest.mark.slow
def test_environments_are_checked_side_by_side(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from journeyman.envs import registry

    monkeypatch.setattr(registry, "_ids", {BANK, "journeyman/Orders-v0"})
    told = [run("envs", "check", "--all", "--prefixes", "1", "--jobs", n) for n in "12"]
    assert told[0] == told[1]
    assert told[0][0] == 0
    assert [line for line in told[0][1].splitlines() if not line.startswith(" ")] == [
        BANK,
        "journeyman/Orders-v0",
    ]


@pytest.mark.parametrize("flag", ["--all", None])
def test_a_missing_package_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, flag: str | None
) -> None:
    from journeyman.envs import registry
    from journeyman.envs.errors import MissingBenchmarkError

    missing = raising(MissingBenchmarkError("this environment needs the package 'bfcl_eval'"))
    monkeypatch.setattr(env_class(BANK), "task_count", missing)
    monkeypatch.setattr(registry, "_ids", {BANK})
    status, out, err = run("envs", "check", flag or BANK)
    assert status == (0 if flag else 2)
    assert "needs the package 'bfcl_eval'" in (out if flag else err)


@pytest.mark.parametrize("library", ["mcp", "openenv"])
def test_serving_without_its_library_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"journeyman.envs.{library}", raising=False)
    status, _, err = run("envs", "serve", BANK, f"--{library}")
    assert status == 2
    assert f"pip install 'journeyman[{library}]'" in err


def test_tools_list(run: Run) -> None:
    status, out, _ = run("tools", "list", BANK)
    assert status == 0
    assert out.splitlines()[0] == BANK
    assert "  transfer(source, target, amount): " in out
    assert run("tools", "list")[1].count("journeyman/") == len(env_ids())
    assert "transfer(" in run("tools", "list", "--plugins")[1]
    assert run("tools", "list", "bnak", "--plugins")[0] == 2
    (tools,) = json.loads(run("tools", "list", BANK, "--json")[1]).values()
    assert {tool["type"] for tool in tools} == {"function"}


# --- sandbox --------------------------------------------------------------------------------------


def test_sandbox_check(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from journeyman.sandbox import conformance

    results = [
        conformance.ConformanceResult("input is empty", "behaviour", True, "", 0.1),
        conformance.ConformanceResult("no user", "isolation", True, "", 0.0, "has none"),
        conformance.ConformanceResult("no network", "isolation", False, "saw it", 0.1),
    ]
    monkeypatch.setattr(conformance, "check", lambda backend: results)
    status, out, _ = run("sandbox", "check", "--backend", "unsafe_local")
    assert status == 1
    assert out.splitlines() == [
        "isolation: none at all",
        "  pass  behaviour: input is empty",
        "  skip  isolation: no user: has none",
        "  FAIL  isolation: no network: saw it",
        "1 of 2 checks passed",
    ]
    results.pop()
    assert run("sandbox", "check", "--backend", "unsafe_local")[0] == 0


def test_sandbox_that_cannot_isolate_gets_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from journeyman.sandbox import conformance

    monkeypatch.setattr(conformance, "check", raising(IsolationUnavailable("no bwrap", "get it")))
    status, _, err = run("sandbox", "check")
    assert status == 2
    assert "no bwrap" in err


@pytest.mark.filterwarnings("ignore::journeyman.sandbox.UnsafeSandboxWarning")
@pytest.mark.parametrize(
    ("code", "status", "out", "err"),
    [
        ("print('a')\n1 + 1", 0, "a\n2\n", ""),
        ("import sys; print('b', file=sys.stderr)", 0, "", "b\n"),
        ("1 / 0", 1, "", "ZeroDivisionError"),
        ("raise SystemExit(3)", 3, "", ""),
        ("import os; os.abort()", 1, "", "journeyman: ended by signal 6"),
        ("while True: pass", 1, "", "journeyman: killed: "),
    ],
)
def test_sandbox_run(run: Run, tmp_path: Path, code: str, status: int, out: str, err: str) -> None:
    # What runs is ours, so this need not wait for walls, nor for a machine that has them.
    flags = ["--backend", "unsafe_local", "--timeout", "0.5" if "while" in code else "60"]
    got = run("sandbox", "run", "-", *flags, stdin=code)
    assert got[:2] == (status, out)
    assert err in got[2]
    if status == 0:
        (tmp_path / "program.py").write_text(code)
        assert run("sandbox", "run", str(tmp_path / "program.py"), *flags) == got


def test_sandbox_run_reads_text_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_bytes(b"\xff")
    status, _, err = run("sandbox", "run", str(tmp_path / "program.py"))
    assert status == 2
    assert "is not UTF-8 text" in err


# --- models ---------------------------------------------------------------------------------------


def test_models_list_says_how_to_get_each(
    run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no run has left a model: those are listed too
    status, out, _ = run("models", "list")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == {"embedded-teacher", "embedded-student", "smollm2-135m"}
    assert lines["smollm2-135m"].endswith("not here; run: journeyman models pull smollm2-135m")
    folder = cache / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    assert f"smollm2-135m      {folder}\n" in run("models", "list")[1]
    assert run("models", "path", "smollm2-135m") == (0, f"{folder}\n", "")


def test_models_pull_prints_the_folder_alone(
    run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from journeyman.agents.networks import catalogue as models

    def pull(name: str, progress: Callable[[str], object]) -> Path:
        progress("downloading")
        return cache / name

    monkeypatch.setattr(models, "pull", pull)
    assert run("models", "pull", "x") == (0, f"{cache / 'x'}\n", "downloading\n")


def test_search_draws_a_tree(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "tree.svg"
    asked = ["search", BANK, "--task", "1", "--rows", "3", "--trajectories", "2"]
    status, out, _ = run(*asked, "--svg", str(picture))
    assert status == 0
    assert out.startswith(f"{BANK} test/1: ")
    assert "find_account(" in out
    assert picture.read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rows", "1"), "trajectories=4: expected 1 to rows=1"),
        (("--seed", "-1"), "--seed -1: expected 0 or above"),
        (("--svg", "/no/such/folder/tree.svg"), "tree.svg: No such file or directory; name a"),
    ],
)
def test_search_says_what_is_wrong_before_it_begins(
    options: tuple[str, str], message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "load_student", raising(AssertionError("it began")))
    status, _, err = run("search", BANK, *options)
    assert status == 2
    assert message in err


def test_search_takes_other_students(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = {}

    def load_student(model: str, **kwargs: Any) -> Any:
        asked.update(kwargs, model=model)
        return SimpleNamespace(dialect=SimpleNamespace(tokenizer=["student's"]))

    def check(student: Any, teacher: Any) -> None:
        raise AgentError(f"{student} is not {teacher}")

    monkeypatch.setattr(hf, "load_student", load_student)
    monkeypatch.setattr(teachers, "check_vocabulary", check)
    options = ("--student", "x", "--render", "signature", "--max-turn-tokens", "96")
    status, _, err = run("search", BANK, *options, "--max-context", "1024")
    expected = {"render": "signature", "max_turn_tokens": 96, "max_context": 1024}
    assert asked == {"model": "x"} | expected
    assert status == 2
    assert '["student\'s"] is not' in err
