"""An OpenEnv server: `journeyman envs serve ID --openenv`. Any OpenEnv client can play then.

OpenEnv's own library does the serving (HTTP, and WebSocket sessions with an environment each); here
are the types of a turn, and the translation. Needs the optional package `openenv`, which wants an
older `mcp` than `journeyman.envs.mcp`: a venv holds one of the two.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
from openenv.core.env_server.types import ConcurrencyConfig
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from journeyman.envs import serving
from journeyman.envs.core import ENDLESS, ToolEnv, pool_name
from journeyman.envs.core import Observation as Messages
from journeyman.envs.errors import EnvError, EpisodeOverError
from journeyman.envs.types import SPLITS
from journeyman.tools import ToolCall, ToolResult

_LISTED = 100
"""Tasks of an endless split that a list shows."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
logger = logging.getLogger(__name__)


class Call(BaseModel):
    """A call of a tool."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class TurnAction(Action):
    """An assistant's turn: its calls, or its raw text (which may hold calls in their own form)."""

    text: str = ""
    calls: list[Call] = Field(default_factory=list)


class CallReport(Call):
    """What became of a call."""

    status: str
    """A `journeyman.tools.CallStatus`."""
    error: str | None = None


class Seen(Observation):
    """What a turn led to; `reward` and `done` are OpenEnv's own fields."""

    messages: list[dict[str, str]]
    """Chat messages: tool results, or what the user says."""
    calls: list[CallReport] = Field(default_factory=list)
    success: bool = False
    tools: list[dict[str, Any]] = Field(default_factory=list)
    """Schemas, as chat templates take them; only after a reset."""


class Where(State):
    """Where an episode is."""

    task_id: str | None = None
    seed: int | None = None
    """What the task was drawn with; None if it was named, or drawn without."""
    max_turns: int | None = None
    """Turns there are; `step_count` have been taken."""
    state_hash: str | None = None


class _MistakeError(ValueError):
    """What the client can mend; the message says how."""


class _BrokenError(RuntimeError):
    """What it cannot; the log says how."""


def _told(
    method: Callable[Concatenate[OpenEnvironment, _P], _R],
) -> Callable[Concatenate[OpenEnvironment, _P], _R]:
    """Tell the client of its own mistakes, and of what breaks only that it broke.

    OpenEnv's server sends the text of every exception.
    """

    @functools.wraps(method)
    def guarded(self: OpenEnvironment, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except (EnvError, _MistakeError):
            raise
        except Exception as error:
            logger.exception("%s()", method.__name__)
            raise _BrokenError(
                "the environment broke, and the episode with it: reset() begins another"
            ) from error

    return guarded


class OpenEnvironment(Environment[TurnAction, Seen, Where]):
    """A `ToolEnv` as OpenEnv sees one."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, env: ToolEnv) -> None:
        """Play on `env`, which is closed with this."""
        super().__init__()
        self._env = env
        self._state = Where()

    @_told
    def reset(
        self, /, seed: int | None = None, episode_id: str | None = None, **options: Any
    ) -> Seen:
        """Start an episode.

        Args:
            seed: Seeds the choice of task.
            episode_id: Shows in `state`.
            options: Those of `ToolEnv.reset`; or OpenEnv's "split" and "index".
        """
        if "index" in options:
            split = options.pop("split", self._env.split)
            options["task_id"] = f"{split}/{options.pop('index')}"
        for name in options:
            if name not in ("task_id", "split"):
                raise _MistakeError(
                    f"no option {name!r}; there are: seed, episode_id, task_id, split, index"
                )
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
            raise _MistakeError(f"seed={seed!r}: expected 0 to {2**32 - 1}")
        messages, info = self._env.reset(seed=seed, options=options)
        self._state = Where(
            episode_id=episode_id,
            task_id=info["task_id"],
            seed=None if "task_id" in options else seed,
            max_turns=self._env.max_turns,
        )
        return Seen(messages=_as_dicts(messages), tools=[t.as_function() for t in self._env.tools])

    @_told
    def step(self, /, action: TurnAction, timeout_s: float | None = None, **_: Any) -> Seen:
        """Play a turn; tools have time limits of their own, so `timeout_s` is not heeded."""
        calls = [ToolCall(call.name, call.arguments) for call in action.calls]
        messages, reward, terminated, truncated, info = self._env.step(calls or action.text)
        self._state.step_count += 1
        return Seen(
            messages=_as_dicts(messages),
            reward=reward,
            done=terminated or truncated,
            calls=[_report(result) for result in info["calls"]],
            success=info["success"],
        )

    @property
    @_told
    def state(self) -> Where:
        """Where the episode is, with a hash that is equal for equal states."""
        if self._state.task_id is not None:
            self._state.state_hash = self._env.state_hash()
        return self._state

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    # OpenEnv's task API

    def list_splits(self) -> list[str]:
        """The splits that have tasks, harder levels as "test/hard"."""
        return [name for name in self._pools() if self.num_tasks(name)]

    def num_tasks(self, split: str) -> int:
        """Tasks of a split; where they have no end, as many as are drawn from."""
        pools = self._pools()
        if split not in pools:
            raise IndexError(f"no split {split!r}; there are: {', '.join(pools)}")
        count = self._env.task_count(*pools[split])
        return ENDLESS if count is None else count

    def get_task(self, split: str, index: int) -> dict[str, str]:
        """Id, kind and first prompt of a task."""
        if not 0 <= index < self.num_tasks(split):
            raise IndexError(f"no task {index} in {split}")
        task = self._env.load_task(f"{split}/{index}")
        return {"id": task.id, "kind": task.kind, "prompt": task.prompt}

    def get_task_range(
        self, split: str, start: int | None = None, stop: int | None = None
    ) -> list[dict[str, str]]:
        """Tasks as a slice gives them."""
        numbers = range(self.num_tasks(split))[start:stop]
        return [self.get_task(split, i) for i in numbers]

    def list_tasks(self, split: str) -> list[dict[str, str]]:
        """All tasks of a split; the first hundred of an endless one."""
        endless = self.num_tasks(split) == ENDLESS
        return self.get_task_range(split, stop=_LISTED if endless else None)

    def _pools(self) -> dict[str, Any]:
        return {pool_name(s, level): (s, level) for s in SPLITS for level in self._env.levels}


def make_app(make_env: Callable[[], ToolEnv], name: str, sessions: int = serving.SESSIONS) -> Any:
    """An OpenEnv server as a FastAPI application.

    Args:
        make_env: Called for each session.
        name: How the server calls the environment; without slashes, since it goes into addresses.
        sessions: How many there may be at once; one more is told so, and refused.
    """
    limits = ConcurrencyConfig(max_concurrent_envs=sessions, session_timeout=serving.IDLE_S)
    app = create_fastapi_app(
        lambda: OpenEnvironment(make_env()),
        TurnAction,
        Seen,
        concurrency_config=limits,
        env_name=name,
        state_cls=Where,
    )
    for error in (EnvError, _MistakeError, _BrokenError):
        app.add_exception_handler(error, _refuse)
    return app


def serve_http(
    make_env: Callable[[], ToolEnv],
    env_id: str,
    host: str,
    port: int,
    allow: Sequence[str] = (),
    sessions: int = serving.SESSIONS,
) -> None:
    """Answer at http://host:port, and at ws://host:port/ws, until interrupted."""
    serving.serve(make_app(make_env, env_id.rpartition("/")[2], sessions), host, port, allow)


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """What became of a plain HTTP request; a session is told by OpenEnv."""
    if isinstance(error, EpisodeOverError):
        message = "a request without a session has no episode: play over WebSocket, at /ws"
        return JSONResponse({"detail": message}, 409)
    return JSONResponse({"detail": str(error)}, 500 if isinstance(error, _BrokenError) else 400)


def _as_dicts(messages: Messages) -> list[dict[str, str]]:
    return [m.as_dict() for m in messages]


def _report(result: ToolResult) -> CallReport:
    call = result.call
    return CallReport(
        name=call.name, arguments=dict(call.arguments), status=call.status, error=call.error
    )
