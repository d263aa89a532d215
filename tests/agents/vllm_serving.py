"""vLLM's server beside a test."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND = (sys.executable, "-P", "-m", "journeyman.agents.cli")
OPTIONS = ("--dtype=float32", "--enforce-eager", "--block-size=32")
CACHE = "--kv-cache-memory-bytes=134217728"


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(command: Sequence[str], folder: Path, port: int | None = None) -> Iterator[str]:
    """The address of a server, until the tests are done.

    Args:
        command: That starts it; its port is added.
        folder: Where what it says is written.
        port: To listen at; None takes a free one.
    """
    port = port or free_port()
    environment = dict(os.environ, VLLM_CPU_OMP_THREADS_BIND="nobind")
    log = folder / "log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [*command, f"--port={port}"], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise TimeoutError(log.read_text()[-4000:])
