"""Runs of several configs in the processes of one job: to start a process takes longer than a run.

`run` makes one in this process, `several.py FILE` all of a file, under `torchrun` too. It holds
lists of arguments of the command line, with options of its own among them: "stop_after=N" ends a
run, as if killed, after its checkpoint N; "broken=R" lets the first rollout of the process of rank
R fail, or of all where R is "all".
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from journeyman.agents.cli import main
from journeyman.agents.errors import AgentError
from journeyman.agents.learning.collector import Collector
from journeyman.agents.learning.trainers.callbacks import MarkComplete

REASON = "the room is on fire"
OPTIONS = ("stop_after", "broken")
on_save, collect = MarkComplete.on_save, Collector.collect


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
        return collect(*args, **others)

    MarkComplete.on_save = stopping  # type: ignore[method-assign]
    Collector.collect = breaking  # type: ignore[method-assign]
    try:
        status = main([it for it in arguments if it.split("=")[0] not in OPTIONS])
        return 1 if stop else status  # it was to be stopped
    except Killed:
        return 0
    finally:
        MarkComplete.on_save, Collector.collect = on_save, collect  # type: ignore[method-assign]
        gc.collect()  # the lock of a run's folder goes with it


if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        if status := run(arguments):
            sys.exit(status)
