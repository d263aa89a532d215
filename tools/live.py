"""Tools that live in a server with a state of its own, and an episode's share of it.

A tool of a function keeps its state in the environment, as a value; one of a server keeps it where
nobody can copy it. So an environment never calls such a server by the tool alone: it opens a
`ToolSession` of its own for each episode (`LiveTools`), at the first call that needs one. Two
episodes cannot meet in it, and what cannot be branched says so. `tools/mcp/` has such tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from journeyman.tools.errors import NoBranchError, ToolError, ToolServerError, ToolTimeout

if TYPE_CHECKING:
    from journeyman.tools.tool import Tool

RESTARTED = (
    "the tool server ended while it ran this call; it was started anew, and what earlier calls "
    "left in it is gone"
)
"""What the model reads whose call a server did not survive."""


class ServerState(StrEnum):
    """What a server of tools remembers from one call to the next."""

    NONE = "none"
    """Nothing that a call changes: episodes share one session, and branch freely."""
    EPISODE = "episode"
    """Something: each episode gets a session of its own. It cannot be branched."""
    REPLAY = "replay"
    """As `EPISODE`; and the same calls in a new session lead to the same state and the same
    results. A branch is rebuilt so."""


class ToolSession(Protocol):
    """One client's share of a server."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """What the tool returns.

        Raises:
            ToolError: It refuses, or does not answer in time.
            ToolServerError: The server is gone.
        """

    def close(self) -> None:
        """End the session, without waiting for the server's end."""


class ToolServer(Protocol):
    """Where live tools come from."""

    @property
    def name(self) -> str:
        """How errors call it."""

    @property
    def state(self) -> ServerState:
        """What it remembers."""

    def open(self) -> ToolSession:
        """A new session, with nothing called in it.

        Raises:
            ToolServerError: The server does not start.
        """


@dataclass(frozen=True, slots=True)
class PlayedCall:
    """One call that a server with a state has carried out, and what it said."""

    server: str
    tool: str
    arguments: str
    """As JSON with sorted keys."""
    outcome: str
    """As JSON: the result, or the error under "error"; `_LOST` if the server did not survive."""


_LOST = "lost"
_TIMEOUT = "timeout"


class LiveTools:
    """The tools of one environment, those that live in servers bound to its own sessions."""

    def __init__(self, toolset: tuple[Tool, ...]) -> None:
        """Bind a toolset; nothing is opened before the first call.

        Args:
            toolset: Tools of servers and others.
        """
        self.tools = {tool.name: self._bound(tool) for tool in toolset}
        """The tools by name, for `execute`."""
        self.played: tuple[PlayedCall, ...] = ()
        """What has been called in this episode's sessions, in order."""
        self._sessions: dict[ToolServer, _Session] = {}

    def begin(self) -> None:
        """Forget the last episode."""
        self.played = ()
        if self._sessions:
            self.close()

    def branch(self) -> tuple[PlayedCall, ...]:
        """What leads to the present state of the servers, for `seek`.

        Raises:
            NoBranchError: A server's state can only be reached once.
        """
        for tool in self.tools.values():
            if tool.live is not None and tool.live.state is ServerState.EPISODE:
                raise NoBranchError(
                    f"the tool server {tool.live.name!r} keeps a state that cannot be copied: if "
                    f"the same calls in a new session lead to the same state and results, say "
                    f"state='replay'; if it keeps none, state='none'; else train without "
                    f"search=credit"
                )
        return self.played

    def seek(self, played: tuple[PlayedCall, ...]) -> None:
        """Go to a branch point; a session is rebuilt when it is called next."""
        self.played = played

    def close(self) -> None:
        """End the sessions; the tools may be called again."""
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _bound(self, tool: Tool) -> Tool:
        server = tool.live
        if server is None or server.state is ServerState.NONE:
            return tool
        name = tool.name

        def call(**arguments: Any) -> Any:
            return self._call(server, name, arguments)

        return tool.bound(call)

    def _call(self, server: ToolServer, name: str, arguments: dict[str, Any]) -> Any:
        before = tuple(entry for entry in self.played if entry.server == server.name)
        session = self._session(server, before)
        given = json.dumps(arguments, sort_keys=True)
        try:
            outcome, value = session.play(name, given)
        except ToolServerError:
            # Nobody else has called this session: what it died of is the model's doing, or cannot
            # be told from it. A server that does not start again is none of the model's.
            self._sessions.pop(server).close()
            self._session(server, ())
            outcome, value = _LOST, ToolError(RESTARTED)
        entry = PlayedCall(server.name, name, given, outcome)
        self.played += (entry,)
        if outcome != _LOST:
            session.log += (entry,)
        if isinstance(value, ToolError):
            raise value
        return value

    def _session(self, server: ToolServer, before: tuple[PlayedCall, ...]) -> _Session:
        """A session in which just this has been played since the server's last restart."""
        lost = [i for i, entry in enumerate(before) if entry.outcome == _LOST]
        before = before[lost[-1] + 1 :] if lost else before
        session = self._sessions.get(server)
        if session is None or session.log != before[: len(session.log)]:
            if session is not None:
                self._sessions.pop(server).close()
            session = self._sessions[server] = _Session(server.open())
        for entry in before[len(session.log) :]:
            outcome, _ = session.play(entry.tool, entry.arguments)
            if outcome != entry.outcome:
                self._sessions.pop(server).close()
                raise ToolServerError(
                    f"the tool server {server.name!r} cannot be branched, although it was declared "
                    f"state='replay': {entry.tool}({entry.arguments[:80]}) gave "
                    f"{entry.outcome[:80]}, and when it was played again {outcome[:80]}"
                )
            session.log += (entry,)
        return session


class _Session:
    """A session, and what has been played in it."""

    def __init__(self, inner: ToolSession) -> None:
        self._inner = inner
        self.log: tuple[PlayedCall, ...] = ()
        self.close = inner.close

    def play(self, name: str, arguments: str) -> tuple[str, Any]:
        """The outcome as text, and the value or the error."""
        try:
            value = self._inner.call(name, json.loads(arguments))
        except ToolTimeout as error:
            return _TIMEOUT, error
        except ToolError as error:
            return json.dumps({"error": str(error)}), error
        return json.dumps(value, sort_keys=True), value
