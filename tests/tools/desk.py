"""What the tests of the mock APIs play on."""

from collections.abc import Iterable
from typing import Any

from journeyman.tools import CallStatus, Tool, ToolCall, execute


class Desk:
    """An API with a state that calls move on, refusals leave alone, and nothing else touches."""

    def __init__(self, tools: Iterable[Tool], state: Any) -> None:
        self.tools = {t.name: t for t in tools}
        self.state = state

    def ok(self, name: str, /, **arguments: Any) -> str:
        before, text = self.state, repr(self.state)
        self.state, result = execute(ToolCall(name, arguments), self.tools, self.state)
        assert result.ok, result.content
        assert repr(before) == text  # a tool never changes the state it was given
        return result.content

    def refused(self, name: str, /, **arguments: Any) -> str:
        state, result = execute(ToolCall(name, arguments), self.tools, self.state)
        assert state is self.state
        assert result.call.status is CallStatus.TOOL_ERROR, result.content
        assert result.call.error is not None
        return result.call.error
