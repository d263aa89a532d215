"""A shell as a tool: a `Repl` whose snippets are commands, with its state, branches and replay.

Each command is a new `/bin/sh` in the sandbox, for no process outlives its call there. What a user
expects of one long session is carried over: the directory and the variables (all are exported);
functions and background processes end with their command. Files are the session's.
"""

from __future__ import annotations

from journeyman.tools.errors import ToolError
from journeyman.tools.python import Repl
from journeyman.tools.tool import tool

# The descriptor that the state is written to comes as standard input, the one place whose number
# the shell is sure to know.
_DRIVER = r"""
import shlex, subprocess, tempfile

state = ""

def run(command):
    global state
    script = f'''exec 3<&0 </dev/null
{state}
set -a
trap '{{ pwd -P && export -p; }} >&3' EXIT
eval "$1"'''
    with tempfile.TemporaryFile() as file:
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", command], stdin=file, stderr=subprocess.STDOUT
        )
        file.seek(0)
        directory, _, variables = file.read().decode("utf-8", "surrogateescape").partition("\n")
    if directory:
        state = f"cd -- {shlex.quote(directory)}\n{variables}"
    if done.returncode:
        raise SystemExit(done.returncode if done.returncode > 0 else 128 - done.returncode)
"""


class Shell(Repl):
    """A shell in a sandbox that can be set back."""

    prelude = _DRIVER
    silence = "Nothing was printed."

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
