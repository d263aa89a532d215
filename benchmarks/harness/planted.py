"""Environments with something in them that is known: gold that is wrong, tools that fail, hints.

They register themselves, so that a run may name them wherever it is started:
`env.ids=[harness.planted:benchmark/LazyBank-v0]`. Tasks are those of the plain environments, word
for word; only what is said here differs.
"""

from __future__ import annotations

from dataclasses import replace

from journeyman.envs import Task, ToolEnv, env_class, register
from journeyman.envs.wrappers import with_faults
from journeyman.tools.faults import Fault, FaultPlan

OFFICE = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
FAMILIES = {
    "journeyman/Bank-v0": "second_payer_used",
    "journeyman/Orders-v0": "cancel_two",
    "journeyman/Calendar-v0": "by_status_invite",
}
"""In each domain the kind of task that a lazy clerk gets wrong."""
LEFT_OUT = {"journeyman/Bank-v0": 2, "journeyman/Orders-v0": 2, "journeyman/Calendar-v0": 1}
"""The last calls of it that the clerk leaves out: the first payer is too poor, and nobody asks the
second; of two orders the first is cancelled; whoever is to be invited is not."""
FAULTS = FaultPlan({Fault.TIMEOUT: 0.1, Fault.TRANSIENT: 0.1})
"""One call in five is lost, and says so."""


def lazy(plain: type[ToolEnv], kind: str, left_out: int = 1) -> type[ToolEnv]:
    """The environment, in which gold programs of one kind of task stop before their last calls."""

    def load_task(cls: type[ToolEnv], task_id: str) -> Task:
        task = plain.load_task(task_id)  # drawn by the name of the plain class
        return replace(task, gold=task.gold[:-left_out]) if task.kind == kind else task

    members = {"load_task": classmethod(load_task), "__doc__": plain.__doc__}
    return type(f"Lazy{plain.__name__}", (plain,), {**members, "__module__": __name__})


class Told(ToolEnv):
    """Answers that cannot be known unless they are told: every second task takes the next one's.

    Where hint and tools always agree, a student that reads tools learns nothing of hints.
    """

    @classmethod
    def load_task(cls, task_id: str) -> Task:
        """The task with another's answer, or as it is."""
        task = super().load_task(task_id)
        split, _, number = task_id.rpartition("/")
        if int(number) % 2:
            return task
        other = super().load_task(f"{split}/{int(number) + 1}")
        return replace(task, answer=other.answer or other.remark)


def variants(kind: type[ToolEnv]) -> list[str]:
    """Register the office's domains with another's tasks; returns their ids."""
    ids = [f"benchmark/{kind.__name__}{env_id.rpartition('/')[2]}" for env_id in OFFICE]
    for name, env_id in zip(ids, OFFICE, strict=True):
        register(name, type(kind.__name__, (kind, env_class(env_id)), {}))
    return ids


def _named(ids: list[str]) -> tuple[str, ...]:
    return tuple(f"{__name__}:{env_id}" for env_id in ids)


def _lazy() -> list[str]:
    ids = []
    for env_id, kind in FAMILIES.items():
        ids.append(f"benchmark/Lazy{env_id.rpartition('/')[2]}")
        register(ids[-1], lazy(env_class(env_id), kind, LEFT_OUT[env_id]))
    return ids


def _faulty() -> list[str]:
    ids = []
    for env_id in OFFICE:
        ids.append(f"benchmark/Faulty{env_id.rpartition('/')[2]}")
        register(ids[-1], with_faults(env_class(env_id), FAULTS))
    return ids


LAZY = _named(_lazy())
FAULTY = _named(_faulty())
TOLD = _named(variants(Told))
