"""`InterpreterEnv`: what environments share that have an interpreter in a sandbox."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from journeyman.envs.core import Snapshot, ToolEnv
from journeyman.sandbox import Sandbox
from journeyman.tools import Tool, ToolCall, ToolResult, execute
from journeyman.tools.cells import Cell, Cells
from journeyman.tools.python import Repl, python


class InterpreterEnv(ToolEnv):
    """An environment with an interpreter; no sandbox starts before the first call of its tool.

    What the interpreter has run is a part of the state, and brings a fork of the session along: a
    snapshot keeps it alive after the env is closed, until the snapshot itself is dropped.
    """

    waits = True
    interpreter: ClassVar[Tool] = python
    """The tool that runs code, one of the toolset: `python`, or `journeyman.tools.shell.shell`."""
    repl: ClassVar[type[Repl]] = Repl
    """What that tool works on."""

    def __init__(
        self,
        split: str = "train",
        max_turns: int = 20,
        render_mode: str | None = None,
        sandbox: Sandbox | str = "namespace",
    ) -> None:
        """Make an environment; no sandbox starts before the first call of its interpreter.

        Args:
            split: See `ToolEnv`.
            max_turns: See `ToolEnv`.
            render_mode: See `ToolEnv`.
            sandbox: Where sessions come from, or the name of a backend.
        """
        super().__init__(split, max_turns, render_mode)
        self._repl = self.repl(sandbox)

    @staticmethod
    @abstractmethod
    def cells_of(state: Any) -> Sequence[Cell]:
        """What the interpreter has run in a state, as `with_cells` was given it."""

    @staticmethod
    @abstractmethod
    def with_cells(state: Any, cells: Cells) -> Any:
        """The state with another past of the interpreter."""

    @classmethod
    def travels(cls, snapshot: Snapshot) -> bool:
        """What the interpreter has run travels; the fork of its session does not."""
        return getattr(cls.cells_of(snapshot.state), "checkpoint", None) is None

    def close(self) -> None:
        """End the sandbox session; the env can be reset and used again."""
        self._repl.close()
        if self._state is not None:  # it must not keep a fork either
            self._state = self.with_cells(self._state, Cells(self.cells_of(self._state)))
        super().close()

    def _execute(self, call: ToolCall) -> ToolResult:
        if call.name != self.interpreter.name:
            return super()._execute(call)
        self._repl.cells = self.cells_of(self._state)
        _, result = execute(call, self._tools, self._repl)
        # A call that failed may have run a part (REPLs are so), or cost what was run before.
        self._state = self.with_cells(self._state, self._repl.cells)
        return result
