"""Runs of several configs in the processes of one job: to start a process takes longer than a run.

`python processes.py FILE`, also under `torchrun`: FILE holds a list of lists of arguments of the
command line, "stop_after=N" among them for a run that ends, as if killed, after its checkpoint N.
"""

import gc
import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from transformers import TrainerState

from journeyman.agents.cli import main
from journeyman.agents.learning.trainers.callbacks import MarkComplete

on_save = MarkComplete.on_save


class Killed(BaseException):
    """Nobody catches it."""


def run(arguments: list[str]) -> None:
    stop = next((int(it.partition("=")[2]) for it in arguments if it.startswith("stop_after=")), 0)

    def stopping(self: MarkComplete, args: object, state: TrainerState, *rest: object, **kw: object):  # type: ignore[no-untyped-def]
        on_save(self, args, state, *rest, **kw)  # type: ignore[arg-type]
        if state.global_step == stop:
            raise Killed

    MarkComplete.on_save = stopping  # type: ignore[method-assign]
    try:
        status = main([it for it in arguments if not it.startswith("stop_after=")])
        assert status == 0, arguments
        assert not stop, "it was not stopped"
    except Killed:
        pass
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        gc.collect()  # the lock of a run's folder goes with it


if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        run(arguments)
