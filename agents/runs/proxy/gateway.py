"""The server of `journeyman serve proxy`: OpenAI's routes, and one that ends an episode.

    POST /v1/chat/completions   a turn, with `stream: true` as events
    GET  /v1/models             the one that is served
    POST /v1/episodes/NAME      {"success": true, "reward": 1}, or {"error": "…"}: a verdict

A turn is written down when its client gets it. Whoever hangs up before has asked for nothing: the
conversation is as it was, and may be asked in again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from journeyman.agents.runs.proxy.hosts import Host, Written
from journeyman.agents.runs.proxy.talks import Talk, Talks, read_verdict
from journeyman.agents.runs.proxy.wire import (
    NAMES,
    ApiError,
    ChatRequest,
    event,
    events,
    last_events,
)
from journeyman.envs import Message

LOOK_S = 0.25
"""How often somebody looks whether the client is still there."""
PATIENT_S = 5.0
"""How long a stream waits with its first word: an error before it has a status of its own. Then,
and as often again, it says that it is alive."""
SWEEP_S = 5.0
"""How often idle conversations are looked for."""


@dataclass
class _Work:
    """A turn that is being written, in a conversation that is locked meanwhile."""

    talk: Talk
    request: ChatRequest
    new: list[Message]
    results: list[str]
    future: asyncio.Future[Written]
    gone: threading.Event

    def end(self) -> None:
        """Nobody waits any more, or it is done."""
        self.gone.set()
        self.talk.lock.release()


class Gateway:
    """One host, its conversations, and the application that serves them."""

    def __init__(
        self,
        host: Host,
        talks: Talks,
        idle_s: float = 1800.0,
        timeout_s: float = 600.0,
        secret: str = "",
    ) -> None:
        """Join the parts.

        Args:
            host: Writes the turns.
            talks: Keeps the conversations.
            idle_s: Seconds after which a conversation that nobody asks in ends unjudged.
            timeout_s: Longest that a turn may take.
            secret: What clients must know; "" asks for nothing.
        """
        self._host = host
        self._talks = talks
        self._idle_s = idle_s
        self._timeout_s = timeout_s
        self._secret = secret
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/episodes/{name:path}", self._judge, methods=["POST"]),
            ],
            exception_handlers={ApiError: _refuse, HTTPException: _refuse_http},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            self._talks.end_all()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._talks.end_idle(self._idle_s)

    def _admit(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._secret and not hmac.compare_digest(given.encode(), self._secret.encode()):
            raise ApiError(401, "this server wants another key", code="invalid_api_key")

    async def _models(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self._admit(request)
        if request.path_params["name"] != self._host.name:
            raise ApiError(404, f"this server has {self._host.name}", code="model_not_found")
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._host.name,
            "object": "model",
            "created": 0,
            "owned_by": "journeyman",
            "max_model_len": self._host.player.max_context,
        }

    async def _judge(self, request: Request) -> Response:
        self._admit(request)
        name = request.path_params["name"]
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise ApiError(400, "the body is not an object")
        verdict = read_verdict(body)
        while (talk := self._talks.busy(name)) is not None:
            async with talk.lock:
                pass
        return JSONResponse(self._talks.judge(name, verdict))

    async def _chat(self, request: Request) -> Response:
        self._admit(request)
        asked = ChatRequest.read(await request.body(), request.headers)
        work = await self._begin(asked)
        streamed = False
        try:
            if asked.stream:
                await asyncio.wait({work.future}, timeout=PATIENT_S)
                streamed = not work.future.done() or work.future.exception() is None
            if streamed:
                return _Events(self._stream(work), work)
            written = await self._waited_for(work, request)
            self._keep(work, written)
            return JSONResponse(written.answer, headers=_named(work.talk))
        finally:
            if not streamed:
                work.end()

    async def _begin(self, asked: ChatRequest) -> _Work:
        """Find the conversation and have its next turn written."""
        while True:
            talk = self._talks.find(asked)
            if talk is None:
                talk = self._talks.begin(asked, self._host.opening(asked))
            await talk.lock.acquire()
            if talk.goes_on_in(asked):  # else somebody was faster
                break
            talk.lock.release()
        try:
            new, results = talk.new_in(asked)
            gone = threading.Event()
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(
                self._host.pool, self._host.write, talk.visit, asked, new, gone
            )
        except BaseException:
            talk.lock.release()
            raise
        return _Work(talk, asked, new, results, future, gone)

    async def _waited_for(self, work: _Work, request: Request) -> Written:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout_s
        while not work.future.done():
            await asyncio.wait({work.future}, timeout=LOOK_S)
            if loop.time() > end:
                raise _too_slow(self._timeout_s)
            if await request.is_disconnected():
                raise ApiError(499, "the client has hung up")
        if await request.is_disconnected():
            raise ApiError(499, "the client has hung up")
        return work.future.result()

    async def _stream(self, work: _Work) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout_s
        while not work.future.done():
            yield b": writing\n\n"
            await asyncio.wait({work.future}, timeout=min(PATIENT_S, end - loop.time()))
            if loop.time() >= end and not work.future.done():
                yield event(_too_slow(self._timeout_s).body)
                return
        try:
            written = work.future.result()
        except ApiError as error:
            yield event(error.body)
            return
        options = work.request.body.get("stream_options")
        usage = isinstance(options, dict) and options.get("include_usage") is True
        for it in events(written.answer, usage):
            yield it
        self._keep(work, written)  # before it can be answered
        for it in last_events(written.answer, usage):
            yield it

    def _keep(self, work: _Work, written: Written) -> None:
        self._talks.add(
            work.talk,
            work.request,
            written,
            work.new,
            work.results,
            lambda: self._host.opening(work.request),
        )


class _Events(StreamingResponse):
    """The events of a turn; whatever ends them, the conversation is free again."""

    def __init__(self, content: AsyncIterator[bytes], work: _Work) -> None:
        headers = {"cache-control": "no-cache", **_named(work.talk)}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._work.end()


def _named(talk: Talk) -> dict[str, str]:
    """What an episode is called, for its verdict."""
    return {NAMES[0]: talk.name} if talk.name.isascii() and talk.name.isprintable() else {}


def _too_slow(seconds: float) -> ApiError:
    return ApiError(504, f"the turn was not written within {seconds:g} s", "timeout_error")


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; there are /v1/chat/completions"
    message += ", /v1/models and /v1/episodes/NAME"
    body = ApiError(error.status_code, message, code="unknown_url").body
    return JSONResponse(body, status_code=error.status_code)
