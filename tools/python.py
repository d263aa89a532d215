"""A Python interpreter as a tool: what the model runs goes to a sandbox, its output comes back.

A live interpreter cannot be copied, but what made it can: its state is the tuple of `Cell`s it has
run. The session behind a `Repl` is a cache of that value, rebuilt by replay when the value is set
to another branch; a replay whose output differs from the recorded one raises `ReplayError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from journeyman.sandbox import ExecResult, KilledReason, Sandbox, SandboxDied, Session
from journeyman.tools.errors import ToolError, ToolTimeout
from journeyman.tools.tool import tool

MAX_OUTPUT_CHARS = 4000
"""Longest text a model is shown of one call: its middle is cut."""

# Programs that draw at random must draw the same again when they are replayed.
_PRELUDE = "import random; random.seed(0); del random"
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One snippet that an interpreter has run."""

    code: str
    output: str | None = None
    """What came of it; None if nobody recorded it, so that a replay cannot be checked."""


class ReplayError(RuntimeError):
    """A snippet did something else when it was run again: its branch cannot be rebuilt."""


class Repl:
    """An interpreter in a sandbox that can be set back.

    A call that fails on a limit changes nothing: the next one finds the interpreter as it was
    before. An exception of the code is like one in any REPL: what was done before it stays done.
    """

    def __init__(self, sandbox: Sandbox | str = "namespace") -> None:
        """Start nothing yet: the first `run` opens the session.

        Args:
            sandbox: Where sessions come from; a string names a backend with its default limits.
        """
        self.cells: tuple[Cell, ...] = ()
        """What the interpreter has run. Assign to go to another branch."""
        self._sandbox = sandbox
        self._session: Session | None = None
        self._done: tuple[Cell, ...] = ()  # what the live session has run

    def run(self, code: str) -> str:
        """Run a snippet; `cells` grows by it unless it was killed.

        Returns:
            What it printed and the value of its last expression.

        Raises:
            ToolError: The code raised, ended its interpreter or met a limit (`ToolTimeout` for
                one of time); the message says what happened and how the interpreter stands now.
            SandboxError: The sandbox cannot be opened, or died of something else than the code.
            ReplayError: The branch could not be rebuilt.
        """
        session = self._at(self.cells)
        result = self._exec(session, code)
        if not session.alive:
            self.close()
            raise _killed(result)
        failed = result.exit_status != 0
        output = _show(result)
        self.cells = self._done = (*self.cells, Cell(code, output))
        if failed:
            raise ToolError(output)
        return output

    def close(self) -> None:
        """End the session; `run` opens another one."""
        session, self._session, self._done = self._session, None, ()
        if session is not None:
            session.close()

    def _at(self, cells: tuple[Cell, ...]) -> Session:
        """A session that has run just these cells."""
        if self._session is not None and self._done != cells[: len(self._done)]:
            self.close()
        if self._session is None:
            if isinstance(self._sandbox, str):
                self._sandbox = Sandbox(self._sandbox)
            self._session = self._sandbox.session()
            self._exec(self._session, _PRELUDE)
        session = self._session
        for number, cell in enumerate(cells[len(self._done) :], len(self._done)):
            result = self._exec(session, cell.code)
            if not session.alive:
                self.close()
                raise ReplayError(f"cell {number} of {len(cells)} was killed when it was replayed")
            output = _show(result)
            if cell.output not in (None, output):
                self.close()
                raise ReplayError(
                    f"cell {number} of {len(cells)} gave {output[:200]!r} when it was replayed, "
                    f"not {(cell.output or '')[:200]!r}"
                )
            self._done = (*self._done, cell)
        return session

    def _exec(self, session: Session, code: str) -> ExecResult:
        try:
            result = session.exec(code)
        except BaseException:
            self.close()
            raise
        if result.killed_reason is KilledReason.INFRA:
            self.close()
            raise SandboxDied("the sandbox died while it ran a snippet")
        return result


@tool
def python(state: Repl, code: str) -> tuple[Repl, str]:
    """Run Python code. Variables stay from call to call; the last expression's value is shown.

    Args:
        code: Python source.
    """
    return state, state.run(code)


def _show(result: ExecResult) -> str:
    """What a model sees of a finished call: output, value, errors; the same in every session."""
    parts = [result.stdout, result.value_repr or "", result.stderr]
    if result.exit_status and not result.stderr:
        parts.append(f"The code exited with status {result.exit_status}.")
    text = "\n".join(part.rstrip("\n") for part in parts if part)
    text = _ADDRESS.sub("at 0x…", text)
    if len(text) > MAX_OUTPUT_CHARS:
        half = MAX_OUTPUT_CHARS // 2
        cut = len(text) - 2 * half
        text = f"{text[:half]}\n… {cut} characters cut …\n{text[-half:]}"
    return text or "Nothing was printed. End with an expression, or print(), to see a value."


_LIMITS = {
    KilledReason.WALL: "it ran too long",
    KilledReason.CPU: "it used too much processor time",
    KilledReason.MEMORY: "it used too much memory",
    KilledReason.PIDS: "it started too many processes",
    KilledReason.OUTPUT: "it printed too much",
    KilledReason.DISK: "it wrote too much",
}


def _killed(result: ExecResult) -> ToolError:
    """Why the call ended the interpreter, in words a model can act on."""
    if result.killed_reason is not None:
        what = f"The code was stopped: {_LIMITS[result.killed_reason]}."
    elif result.signal is not None:
        what = f"The code crashed the interpreter (signal {result.signal})."
    else:
        what = f"The code ended the interpreter (status {result.exit_status})."
    message = f"{what} Nothing of this call was kept; variables are as before it."
    if result.killed_reason in (KilledReason.WALL, KilledReason.CPU):
        return ToolTimeout(message)
    return ToolError(message)


TOOLS = (python,)
