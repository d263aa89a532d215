"""What the tests of servers share: one in a thread, a request, environments that are counted."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from journeyman.envs import ToolEnv, make
from journeyman.envs.serving import Guard

BANK = "journeyman/Bank-v0"
CLIENTS = 50


@contextmanager
def served(app: Any, host: str = "127.0.0.1", allow: tuple[str, ...] = ()) -> Iterator[int]:
    """Serve an application in a thread, behind the guard of `journeyman envs serve`."""
    guarded: Any = Guard(app, host, allow)
    config = uvicorn.Config(
        guarded, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server has ended"
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def ask(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, str, http.client.HTTPMessage]:
    """One request: status, text, headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), reply.headers
    finally:
        connection.close()


class Counted:
    """Makes environments, and counts what becomes of them."""

    def __init__(self, env_id: str = BANK, **kwargs: Any) -> None:
        self.env_id, self.kwargs = env_id, kwargs
        self.made = self.closed = 0

    def __call__(self) -> ToolEnv:
        env = make(self.env_id, **self.kwargs)
        self.made += 1
        close = env.close

        def counted() -> None:
            self.closed += 1
            close()

        env.close = counted  # type: ignore[method-assign]
        return env


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise TimeoutError
