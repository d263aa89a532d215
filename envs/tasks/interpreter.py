"""`InterpreterEnv`: what environments share that have a Python interpreter in a sandbox."""

from __future__ import annotations

from journeyman.envs.core import ToolEnv
from journeyman.sandbox import Sandbox
from journeyman.tools import ToolCall, ToolResult, execute
from journeyman.tools.python import Cell, Repl


class InterpreterEnv(ToolEnv):
    """An environment with an interpreter; no sandbox starts before the first call of `python`."""

    waits = True

    def __init__(
        self,
        split: str = "train",
        max_turns: int = 20,
        render_mode: str | None = None,
        sandbox: Sandbox | str = "namespace",
    ) -> None:
        """Make an environment; no sandbox starts before the first call of `python`.

        Args:
            split: See `ToolEnv`.
            max_turns: See `ToolEnv`.
            render_mode: See `ToolEnv`.
            sandbox: Where sessions come from, or the name of a backend.
        """
        super().__init__(split, max_turns, render_mode)
        self._repl = Repl(sandbox)

    def close(self) -> None:
        """End the sandbox session; the env can be reset and used again."""
        self._repl.close()
        super().close()

    def _run_python(
        self, call: ToolCall, cells: tuple[Cell, ...]
    ) -> tuple[tuple[Cell, ...], ToolResult]:
        """Run a call of `python` after these cells; returns what has been run by then."""
        self._repl.cells = cells
        _, result = execute(call, self._tools, self._repl)
        return self._repl.cells, result  # a call that failed may have run a part: REPLs are so
