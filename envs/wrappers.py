"""What can be laid around an environment's class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from journeyman.envs.core import Observation, Snapshot, ToolEnv
from journeyman.envs.hashing import digest
from journeyman.envs.task import Task
from journeyman.tools import ToolCall, ToolResult
from journeyman.tools.faults import Fault, FaultPlan, FaultState, inject
from journeyman.tools.live import ServerState


class Faults(ToolEnv):
    """Lets the tools of the next class in line fail by plan: `class Flaky(Faults, BankEnv)`.

    Tasks are those of that class; each meets faults of its own. What has happened so far is part of
    snapshots and hashes. Who plays on from a snapshot with other dice (`reroll`) meets others from
    there on. `with_faults` makes such a class of any other.
    """

    plan: ClassVar[FaultPlan] = FaultPlan()
    """Which calls meet which faults; the task's id is added to its seed."""
    _plan: FaultPlan
    _faults: FaultState = FaultState()
    _dice: int | None = None
    """Of `reroll`; None throws the task's own. It is not hashed: nobody can see it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the plan.

        Raises:
            TypeError: It has stale reads, but the environment cannot run a call on another state.
        """
        super().__init_subclass__(**kwargs)
        # One whose state is a value has no need of a `restore` of its own. In objects that change
        # in place, a call that is tried on an earlier state would be carried out now.
        in_place = super().restore is not ToolEnv.restore or any(
            tool.live is not None and tool.live.state is not ServerState.NONE
            for tool in getattr(cls, "toolset", ())
        )
        if cls.plan.rates.get(Fault.STALE_READ) and in_place:
            raise TypeError(
                f"{cls.__name__}: {Fault.STALE_READ} needs an environment whose state is a value, "
                f"and this one's objects change in place: give a plan whose rates leave it out"
            )

    @classmethod
    def load_task(cls, task_id: str) -> Task:
        """The task that the plain environment has under this id."""
        return _plain(cls).load_task(task_id)

    def begin(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with no fault behind it."""
        self._throw(task, None)
        self._faults = FaultState()
        return super().begin(task)

    def reroll(self, seed: int) -> None:
        """Meet other faults from here on."""
        super().reroll(seed)
        self._throw(self.task, seed)

    def _throw(self, task: Task, dice: int | None) -> None:
        own = "" if dice is None else f"/{dice}"
        self._dice, self._plan = dice, replace(self.plan, seed=f"{self.plan.seed}/{task.id}{own}")

    def adapt(self, call: ToolCall) -> ToolCall:
        """A call such as `oracle` gives, under the names that its arguments have by now."""
        return self._faults.adapt(call)

    def snapshot(self) -> Snapshot:
        """The current branch point, faults included."""
        snapshot = super().snapshot()
        return replace(snapshot, state=(snapshot.state, self._faults, self._dice))

    def restore(self, snapshot: Snapshot) -> None:
        """Go back (or across) to a branch point of any env of this class."""
        if snapshot.env is not type(self):
            super().restore(snapshot)  # refuses it
        state, faults, dice = snapshot.state
        super().restore(replace(snapshot, state=state))
        self._throw(snapshot.task, dice)
        self._faults = faults

    def state_hash(self) -> str:
        """As the plain environment's, with what has happened so far."""
        return digest((super().state_hash(), self._faults))

    def _execute(self, call: ToolCall) -> ToolResult:
        self._faults, self._state, result = inject(
            self._plan, self._faults, call, self._tools, self._state, self._run
        )
        return result

    def _run(self, state: Any, call: ToolCall) -> tuple[Any, ToolResult]:
        """Run a call without faults on a state of its own."""
        self._state = state
        result = super()._execute(call)
        return self._state, result


def with_faults(env: type[ToolEnv], plan: FaultPlan | None = None) -> type[Faults]:
    """The class of an environment whose tools fail by plan; register it like any other.

    Args:
        env: The plain class.
        plan: By default a call in four meets a fault, of any kind.

    Raises:
        TypeError: The plan has stale reads, and the environment's objects change in place.
    """
    members = {"plan": plan or FaultPlan(), "__doc__": env.__doc__, "__module__": env.__module__}
    return type(f"Faulty{env.__name__}", (Faults, env), members)


def _plain(cls: type[ToolEnv]) -> type[ToolEnv]:
    """The class that `Faults` is laid around."""
    line = cls.__mro__
    found = line[line.index(Faults) + 1]
    if not issubclass(found, ToolEnv) or found is ToolEnv:
        raise TypeError(f"{cls.__name__}: put Faults before an environment: (Faults, BankEnv)")
    return found
