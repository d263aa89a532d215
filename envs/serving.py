"""What stands before every server of environments over HTTP: `envs/mcp.py`, `envs/openenv.py`.

A server runs code for whoever calls it. A page in a browser of this machine can call it too, under
a name of its own that leads here (DNS rebinding): so the names it may be called by are few, and a
page of another origin is refused. Needs uvicorn, which the extras `mcp` and `openenv` have.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import uvicorn

SESSIONS = 64
"""Clients that play side by side, each in an environment of its own."""
IDLE_S = 1800.0
"""A session that nothing is heard of for so long is closed, with its environment."""
MAX_BODY = 4 * 2**20
"""Longest body of a request, and longest WebSocket message, in bytes."""
_DRAINED, _DRAINED_S = 64 * MAX_BODY, 10.0
"""How much is read of a longer one, and thrown away, so that the client reads why."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)


class Guard:
    """An ASGI application around another one: checks Host, Origin and length, and says no more.

    A refusal is a line of JSON under "error", with status 421 (Host), 403 (Origin) or 413 (body).
    An exception of the application goes to the log; the client reads that there was one.
    """

    def __init__(self, app: App, host: str, allow: Sequence[str] = ()) -> None:
        """Stand before `app`.

        Args:
            app: The application.
            host: What the server binds to. On another than a loopback address, it may be called by
                every IP address as well: no name leads there, so none can be rebound.
            allow: More names that it may be called by, and that pages may come from.
        """
        self._app = app
        self._names = {host.lower(), *(name.lower() for name in allow)}
        self._by_address = not _is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await _refuse(scope, send, *refusal)
            return
        if scope["type"] == "websocket":  # uvicorn limits the messages
            await self._app(scope, receive, send)
            return
        body = await _read_body(scope, receive)
        if body is None:
            await _refuse_body(receive, send)
            return
        await self._answer(scope, _replay(body, receive), send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            logger.exception("%s %s", scope["method"], scope["path"])
            if not begun:
                await _refuse(scope, send, 500, "the server failed; its log says how")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"host", "")
        host = _hostname(f"//{given}")
        if host is None or not self._is_ours(host):
            return 421, (
                f"the server is not called {given[:80]!r}: use its address, or start it with "
                f"--allow-host"
            )
        origin = headers.get(b"origin")
        if origin is None:
            foreign = headers.get(b"sec-fetch-site") == "cross-site"
        else:
            page = _hostname(origin)
            same = origin.partition("://")[2].lower() == given.lower()
            foreign = page is None or not (same or _is_loopback(page) or page in self._names)
        if foreign:
            return 403, (
                f"pages of {str(origin)[:80]!r} may not call this server: start it with "
                f"--allow-host to let them"
            )
        return None

    def _is_ours(self, host: str) -> bool:
        return host in self._names or _is_loopback(host) or (self._by_address and _is_address(host))


def serve(app: App, host: str, port: int, allow: Sequence[str] = ()) -> None:
    """Answer until interrupted.

    Args:
        app: The application, which is put behind a `Guard`.
        host: Address to bind to.
        port: Its port.
        allow: As of `Guard`.
    """
    guarded: Any = Guard(app, host, allow)
    uvicorn.run(
        guarded,
        host=host,
        port=port,
        log_level="warning",
        ws_max_size=MAX_BODY,
        timeout_graceful_shutdown=5,  # a client that listens would hold it open for ever
    )


def _hostname(address: str) -> str | None:
    """The host of an address with a `//`, in lower case; None if it has none that can be read."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    if parts.username is not None or parts.scheme not in ("", "http", "https"):
        return None
    return parts.hostname


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


async def _read_body(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body, or None once it is too long, whatever its header says."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    if any(not value.isdigit() or int(value) > MAX_BODY for value in lengths):
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)  # the client is gone
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first."""
    first = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return next(first, None) or await receive()

    return replay


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
    else:
        await answer(send, status, {"error": reason})


async def _refuse_body(receive: Receive, send: Send) -> None:
    """Refuse at once, and read on for a while: few clients look before they have sent all."""
    body = json.dumps({"error": f"the body is longer than {MAX_BODY} bytes"}).encode()
    await _start(send, 413, body, (b"connection", b"close"))
    await send({"type": "http.response.body", "body": body, "more_body": True})
    left, more = _DRAINED, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAINED_S):
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message.get("more_body", False)
    await send({"type": "http.response.body", "body": b""})


async def answer(send: Send, status: int, value: Any) -> None:
    """Answer an HTTP request with JSON.

    Args:
        send: The request's.
        status: Its status.
        value: What to say.
    """
    body = json.dumps(value).encode()
    await _start(send, status, body)
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    headers = [(b"content-type", b"application/json"), length, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
