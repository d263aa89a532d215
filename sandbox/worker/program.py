"""Where the worker begins, inside."""

from __future__ import annotations

import gc
import importlib
import os
import resource
import signal
import sys
from typing import Any

from journeyman.sandbox.worker.frames import encode, receive, write_all
from journeyman.sandbox.worker.processes import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl
from journeyman.sandbox.worker.relay import Relay
from journeyman.sandbox.worker.repl import warm_up
from journeyman.sandbox.worker.supervisor import Supervisor


def describe_self() -> dict[str, Any]:  # pragma: no cover - runs inside the sandbox
    """What the host compares with itself before it trusts the walls."""
    kinds = ("user", "pid", "net", "mnt", "ipc", "uts")
    root = os.statvfs("/")
    with open("/proc/self/status") as file:
        parts = [line.partition(":") for line in file]
    return {
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds},
        "pid": os.getpid(),
        "root_read_only": bool(root.f_flag & os.ST_RDONLY),
        "python": sys.version.split()[0],
        "status": {name: value.strip() for name, _, value in parts},
    }


def main(link: str) -> None:  # pragma: no cover - runs inside the sandbox
    """Runs the supervisor.

    Args:
        link: The number of an inherited socket, or "relay" for standard input and output.
    """
    control = 0 if link == "relay" else int(link)
    os.set_inheritable(control, False)
    prctl(PR_SET_DUMPABLE, 0)
    # Python's own handler would let the session's processes interrupt the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    config = receive(control)
    if config is None:
        return
    relay = Relay() if link == "relay" else None
    if relay is not None:
        control = relay.theirs.fileno()
    if not config["contained"]:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each branch
    sys.path[:0] = config["extra_path"] if config["python"] == list(sys.version_info[:2]) else []
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    supervisor = None
    hello = _import_packages(config["packages"])
    if not hello:
        warm_up()
        gc.collect()
        gc.freeze()  # so that the collector does not touch, and copy, every shared page
        hello = describe_self()
        supervisor = Supervisor(control, config, 1 if relay is None else 2)
        supervisor.start()
    if relay is not None:
        relay.start()  # after the fork: threads do not mix
    write_all(control, encode(hello))
    if supervisor is not None:
        supervisor.serve()
    if relay is not None:
        relay.finish()


def _import_packages(names: list[str]) -> dict[str, Any]:  # pragma: no cover - inside the sandbox
    try:
        for name in names:
            importlib.import_module(name)
    except Exception as error:
        return {"error": f"importing {name}: {type(error).__name__}: {error}"}
    return {}
