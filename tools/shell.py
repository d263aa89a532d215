"""A shell as a tool: a `Repl` whose snippets are commands, with its state, branches and replay.

Each command is a new `/bin/sh` in the sandbox, for no process outlives its call there. What a user
expects of one long session is carried over: the directory, and the variables with what is exported
of them; functions and background processes end with their command. Files are the session's.
"""

from __future__ import annotations

from journeyman.tools.errors import ToolError
from journeyman.tools.python import Repl
from journeyman.tools.tool import tool

# Variables before and after a command go by files, as long commands do: what a process is started
# with has narrow limits (128 KiB a string). Their descriptors are beyond those people redirect.
_DRIVER = r"""
import contextlib, fcntl, os, re, shlex, stat, subprocess, tempfile

state = b""
entry = re.compile(
    rb'''(?:[^'"\\\n]+|\$'(?:[^'\\]|\\.)*'|'[^']*'|"(?:[^"\\]|\\.)*"|\\.)+''', re.DOTALL
)
own = re.compile(
    rb"PWD|PPID|_|UID|EUID|GROUPS|SHELLOPTS|SHLVL|LINENO|FUNCNAME|DIRSTACK|BASH.*", re.DOTALL
)
script = '''. /dev/fd/%d
trap '{ set +vx; } 2>/dev/null
{ pwd -P && export -p && echo = && set && echo .; } >/dev/fd/%d' EXIT
eval "$1"'''

@contextlib.contextmanager
def opened():
    where = tempfile.gettempdir()
    mode = stat.S_IMODE(os.stat(where).st_mode)
    if os.access(where, os.W_OK | os.X_OK):
        yield
        return
    os.chmod(where, mode | 0o700)  # a command has closed it
    try:
        yield
    finally:
        os.chmod(where, mode)

def file(data, fds):
    with opened(), tempfile.TemporaryFile() as made:
        made.write(data)
        made.flush()
        fds.append(fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 60))

def keep(left):
    global state
    directory, _, left = left.partition(b"\n")
    exported, _, variables = left.partition(b"\n=\n")
    lines = [b"cd -- " + os.fsencode(shlex.quote(os.fsdecode(directory)))]
    lines += [each for each in entry.findall(variables) if not own.fullmatch(each.split(b"=")[0])]
    names = [each.split(b"=")[0].split()[-1] for each in entry.findall(exported)]
    lines += [b"export " + name for name in names if not own.fullmatch(name)]
    state = b"\n".join([*lines, b""])

def run(command):
    command = command.encode("utf-8", "surrogateescape")
    fds = []
    try:
        file(state, fds)
        file(b"", fds)
        before = script % tuple(fds)
        if len(command) > 100_000:
            file(command, fds)
            command = b". /dev/fd/%d" % fds[-1]
        done = subprocess.run(
            ["sh", "-c", before, "sh", command],
            executable="/bin/sh",
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            env={} if state else None,
        )
        left = os.pread(fds[1], os.fstat(fds[1]).st_size, 0)
    finally:
        for fd in fds:
            os.close(fd)
    if left.endswith(b"\n.\n"):
        keep(left[:-2])
    else:
        print("sh: directory and variables are as before this command: it ended before its end")
    if done.returncode:
        raise SystemExit(done.returncode if done.returncode > 0 else 128 - done.returncode)
"""


class Shell(Repl):
    """A shell in a sandbox that can be set back."""

    prelude = _DRIVER
    silence = "Nothing was printed."
    noun = "shell"

    def run(self, code: str) -> str:
        """Run a command; see `Repl.run`. A status other than 0 is a `ToolError`."""
        if "\0" in code:
            raise ToolError("A command cannot have NUL characters in it.")
        return super().run(code)

    def source(self, code: str) -> str:
        """What the sandbox is given to run a command."""
        return f"run({code!r})"


@tool(timeout_s=float("inf"))  # its sandbox has limits
def shell(state: Shell, command: str) -> tuple[Shell, str]:
    """Run a shell command. The directory, variables and files stay from call to call.

    Args:
        command: What /bin/sh is to run; it may have many lines.
    """
    return state, state.run(command)


TOOLS = (shell,)
