"""Runs of several configs in the processes of one job: to start a process takes longer than a run.

`python several.py FILE`, also under `torchrun`. FILE holds lists of arguments of the command line,
with options of its own among them: "stop_after=N" ends a run, as if killed, after its checkpoint N;
"broken=R" lets the first rollout of the process of rank R fail, or of all where R is "all".
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState

from journeyman.agents.cli import main
from journeyman.agents.errors import AgentError
from journeyman.agents.learning import collector
from journeyman.agents.learning.trainers.callbacks import MarkComplete

REASON = "the room is on fire"
OPTIONS = ("stop_after", "broken")
on_save, rollout = MarkComplete.on_save, collector.rollout


class Killed(BaseException):
    """Nobody catches it."""


def run(arguments: list[str]) -> int:
    given = dict(it.split("=", 1) for it in arguments if it.split("=")[0] in OPTIONS)
    stop, broken = int(given.get("stop_after", 0)), given.get("broken")

    def stopping(self: MarkComplete, args: Any, state: Any, *rest: Any, **others: Any) -> None:
        on_save(self, args, state, *rest, **others)
        if state.global_step == stop:
            raise Killed

    def breaking(*args: Any, **others: Any) -> Any:
        if broken in ("all", os.environ.get("RANK", "0")):
            raise AgentError(REASON)
        return rollout(*args, **others)

    MarkComplete.on_save = stopping  # type: ignore[method-assign]
    collector.rollout = breaking
    try:
        status = main([it for it in arguments if it.split("=")[0] not in OPTIONS])
        return 1 if stop else status  # it was to be stopped
    except Killed:
        return 0
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # of the run before
        gc.collect()  # the lock of a run's folder goes with it


if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        if status := run(arguments):
            sys.exit(status)
