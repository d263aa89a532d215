"""A Ray cluster of this machine, for this machine alone: a process of its own that ends with it.

    python -m journeyman.agents.rollouts.workers.head '{"cpus": 2, "folder": "/tmp/jr-…"}'

It prints one line of JSON once the cluster is up, and stops it at SIGTERM, or where it was asked to
(`attached`) once its standard input is closed: so a driver that is killed leaves nothing behind.
Everything listens on 127.0.0.1 alone, there is no dashboard, and nothing is sent to anybody.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
from typing import Any

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray warns of a default that changes
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
"""Said before Ray is imported, wherever it is."""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Else Ray takes the address by which other machines reach this one for 127.0.0.1."""


def main() -> int:
    """Start, say so, wait, stop."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    os.environ |= QUIET | LOOPBACK
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 waits for whatever else runs here
    if asked.get("port"):
        os.environ["RAY_GCS_SERVER_PORT"] = str(asked["port"])
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    import ray

    try:
        told: Any = ray.init(
            address="local",
            num_cpus=asked["cpus"],
            num_gpus=asked.get("gpus"),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            _temp_dir=asked["folder"],
        )
        print(json.dumps({"address": told.address_info["gcs_address"]}), flush=True)
        if asked.get("attached"):
            threading.Thread(target=_until_closed, args=(over,), daemon=True).start()
        over.wait()
    finally:
        ray.shutdown()
        shutil.rmtree(asked["folder"], ignore_errors=True)
    return 0


def _until_closed(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    sys.exit(main())
