"""The shell as a tool, in a real sandbox."""

from collections.abc import Iterator

import pytest

from journeyman.sandbox import Limits, Sandbox
from journeyman.tools import CallStatus, ToolCall, ToolError, ToolTimeout, execute
from journeyman.tools.shell import TOOLS, Shell, shell


@pytest.fixture(scope="module")
def sandboxed(bwrap: str) -> Iterator[Shell]:
    shell = Shell(Sandbox(limits=Limits(wall_s=20.0)))
    yield shell
    shell.close()


@pytest.fixture
def sh(sandboxed: Shell) -> Shell:
    sandboxed.cells = ()
    return sandboxed


def test_commands_and_pipes(sh: Shell) -> None:
    assert sh.run("seq 12 | sort -r | head -2") == "9\n8"
    assert sh.run("true") == "Nothing was printed."
    assert sh.run("for i in 1 2; do\n  echo $i >&2\n  echo out\ndone") == "1\nout\n2\nout"
    assert sh.run("cat; echo end") == "end"


def test_directory_variables_and_files_stay(sh: Shell) -> None:
    sh.run("mkdir -p 'a b' && cd 'a b' && echo hello > file")
    sh.run("""x=1; y="it's" ; z='two
lines'""")
    assert sh.run('pwd; cat file; echo "$x $y $z"') == "/tmp/a b\nhello\n1 it's two\nlines"
    sh.run("unset x; cd ..")
    assert sh.run('echo "[$x]"; ls') == "[]\na b"


def test_only_what_is_exported_is_in_the_environment(sh: Shell) -> None:
    sh.run("x=1; export y=2; unset HOME")
    assert sh.run("sh -c 'echo [$x] [$y] [$HOME]'; echo $x") == "[] [2] []\n1"


def test_long_variables_and_commands(sh: Shell) -> None:
    """No string of more than 128 KiB can be given to a process that is started."""
    assert sh.run("long=$(seq 100000); echo ${#long}") == "588894"
    assert sh.run('echo "$long" | tail -1; cd /usr') == "100000"
    assert sh.run("pwd; echo ${#long}") == "/usr\n588894"
    assert sh.run(f"printf %s {'é' * 99_000} | wc -c") == "198000"
    assert "Argument list too long" in sh.run("export long; ls; true")
    assert sh.run("unset long; ls -d /usr") == "/usr"


def test_a_full_disk_stops_nothing(sh: Shell) -> None:
    sh.run("long=$(seq 20000)")
    with pytest.raises(ToolError, match="No space left"):
        sh.run("cat /dev/zero > file; cat /dev/zero > more")
    assert "variables are as before this command" in sh.run("x=1")
    sh.run("rm file more")
    assert sh.run("echo $x ${#long}") == "108893"


@pytest.mark.parametrize("command", ["exec echo hi", "trap 'echo hi' EXIT", "echo hi; kill $$"])
def test_a_shell_that_tells_no_state_says_so(sh: Shell, command: str) -> None:
    sh.run("x=1")
    note = "sh: directory and variables are as before this command: it ended before its end"
    try:
        shown = sh.run(f"x=2; {command}")
    except ToolError as error:
        shown = str(error)
    assert shown.startswith(f"hi\n{note}")
    assert sh.run("echo $x") == "1"


def test_a_closed_directory_can_be_opened_again(sh: Shell) -> None:
    sh.run("x=1; chmod 0 /tmp")
    assert sh.run("stat -c %a /tmp; echo $x").endswith("\n0\n1")
    with pytest.raises(ToolError, match="Permission denied"):
        sh.run("touch /tmp/file")
    sh.run("chmod 700 /tmp; touch /tmp/file")
    assert sh.run("cd /tmp; ls; echo $x") == "file\n1"


def test_a_trace_shows_the_command_alone(sh: Shell) -> None:
    assert sh.run("set -vx; x=1; echo $x") == "+ x=1\n+ echo 1\n1"
    with pytest.raises(ToolError, match=r"\A\+ false\nThe code exited with status 1\.\Z"):
        sh.run("set -ex; false")


def test_a_status_is_an_error_and_what_was_done_stays(sh: Shell) -> None:
    with pytest.raises(ToolError, match=r"^before\nThe code exited with status 3\.$"):
        sh.run("x=5; cd /usr; echo before; exit 3")
    assert sh.run("echo $x; pwd") == "5\n/usr"
    with pytest.raises(ToolError, match=r"not found\nThe code exited with status 127\.$"):
        sh.run("no_such_program")
    with pytest.raises(ToolError, match=r"status 137\.$"):
        sh.run("kill -9 $$")
    with pytest.raises(ToolError, match=r"[Ss]yntax error"):
        sh.run("if then")
    assert sh.run("echo $x; pwd") == "5\n/usr"


def test_a_directory_that_is_gone(sh: Shell) -> None:
    sh.run("mkdir d && cd d && rmdir ../d")
    assert sh.run("cd /tmp && pwd").splitlines()[-1] == "/tmp"
    assert sh.run("pwd") == "/tmp"


def test_branches(sh: Shell) -> None:
    sh.run("echo 1 > file; x=a")
    branch = sh.cells
    for turn in range(3):
        sh.cells = branch
        assert sh.run(f"echo {turn} >> file; x=${{x}}{turn}; cat file") == f"1\n{turn}"
        assert sh.run("echo $x") == f"a{turn}"
    assert [cell.code for cell in branch] == ["echo 1 > file; x=a"]


def test_what_cannot_be_run_again_is_still_there(sh: Shell) -> None:
    before = sh.run("now=$(date +%s%N); file=$(mktemp); echo $$ > $file; echo $now $file")
    with pytest.raises(ToolError, match="variables are as before it"):
        sh.run("kill -9 $PPID")
    assert sh.run("echo $now $file; test -s $file") == before
    branch = sh.cells
    sh.run("now=1; rm $file")
    sh.cells = branch
    assert sh.run("echo $now $file; test -s $file") == before


def test_a_limit_costs_the_call_and_nothing_else(bwrap: str) -> None:
    sh = Shell(Sandbox(limits=Limits(wall_s=1.0)))
    try:
        sh.run("x=1")
        with pytest.raises(ToolTimeout, match="it ran too long"):
            sh.run("x=2; sleep 60")
        assert sh.run("echo $x") == "1"
    finally:
        sh.close()


@pytest.mark.docker
def test_in_docker() -> None:
    sh = Shell("docker")
    try:
        sh.run("cd /tmp; seq 12 | sed s/1/x/ > numbers")
        assert sh.run("grep x numbers | sort -r | awk '{print $1 $1}' | head -2") == "x2x2\nx1x1"
    finally:
        sh.close()


def test_as_a_tool(sh: Shell) -> None:
    tools = {each.name: each for each in TOOLS}
    assert shell.spec.signature() == "shell(command)"
    state, result = execute(ToolCall("shell", {"command": "echo hi"}), tools, sh)
    assert state is sh
    assert (result.call.status, result.content) == (CallStatus.OK, "hi")
    _, result = execute(ToolCall("shell", {"command": "a\0b"}), tools, sh)
    assert result.call.status is CallStatus.TOOL_ERROR
    assert "NUL" in result.content
    assert len(sh.cells) == 1
