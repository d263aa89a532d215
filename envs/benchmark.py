"""What environments made of third-party benchmarks share: optional packages, tools, one split."""

from __future__ import annotations

import functools
import importlib
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from journeyman.envs.core import ToolEnv
from journeyman.envs.errors import MissingBenchmarkError
from journeyman.envs.task import Task
from journeyman.envs.types import Level, Split
from journeyman.tools import Tool, ToolSpec

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

INSTALL = "make benchmarks-extras"
"""The command that installs the benchmarks without their own pins."""


def benchmark_module(name: str) -> ModuleType:
    """Import a module of a benchmark's package.

    Raises:
        MissingBenchmarkError: The package, or one that it imports, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingBenchmarkError(
            f"this environment needs the package {name.partition('.')[0]!r}, which could not be "
            f"imported ({error}); install it with `{INSTALL}` (see docs/benchmarks.md)"
        ) from error


@dataclass(frozen=True)
class BenchmarkTool(Tool):
    """A tool that a benchmark describes by a JSON schema, and whose own code judges arguments.

    Arguments that are missing or unknown are refused as everywhere. Their types are the benchmark's
    affair: a stricter check here would give other verdicts than the benchmark gives.
    """

    function: Callable[[Any, dict[str, Any]], Any]
    """`function(state, arguments) -> result`; it may change the state in place."""

    @functools.cached_property
    def validator(self) -> Validator:
        """Accepts everything."""
        from jsonschema import Draft202012Validator  # whoever only lists environments has no need

        return Draft202012Validator({})

    def run(self, state: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
        """Call the function; the state is the same object, perhaps changed."""
        return state, self.function(state, dict(arguments))


class BenchmarkEnv(ToolEnv):
    """A benchmark's tasks in their order, all in the split "test"."""

    toolset: ClassVar[tuple[Tool, ...]] = ()
    """Empty: the tools come with the tasks, see `tools`."""
    harmless = MappingProxyType(
        dict.fromkeys(
            ("dropped", "changed", "added", "answer", "no_op"),
            "the benchmark's own checker decides, and passes some that did less or other than gold",
        )
        | {"refused": "the benchmark's own gold makes calls that its tools turn down"}
    )

    def __init__(
        self,
        split: str = "test",
        max_turns: int = 200,
        render_mode: str | None = None,
    ) -> None:
        """Make an environment; see `ToolEnv`. The other splits have no tasks."""
        super().__init__(split, max_turns, render_mode)

    @property
    def tools(self) -> list[ToolSpec]:
        """The schemas of the tools that the student may use now; none before `reset`."""
        return [tool.spec for tool in self._tools.values()]

    @classmethod
    @abstractmethod
    def load(cls, number: int) -> Task:
        """The task at that place of the benchmark; the id is filled in by the caller."""

    @classmethod
    @abstractmethod
    def size(cls) -> int:
        """How many tasks the benchmark has."""

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: Level) -> Task:
        """Draw one of the tasks."""
        return cls.load(rng.randrange(cls.size()))

    @classmethod
    def _task_at(cls, split: Split, level: Level, number: int) -> Task:
        return replace(cls.load(number), id=f"{split}/{number}")

    @classmethod
    def task_count(cls, split: Split, level: Level) -> int:
        """All tasks are test tasks."""
        return cls.size() if split == "test" else 0
