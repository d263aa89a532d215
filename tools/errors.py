"""Errors of the tools floor.

    ToolsError
    ├── ToolError           (RuntimeError)    data for the model: the tool refuses
    │   └── ToolTimeout     (TimeoutError)    the tool did not answer in time
    ├── ToolDefinitionError (TypeError)       a programmer's error: this cannot be a tool
    ├── ToolServerError     (ConnectionError) a server of tools cannot be started, or died
    ├── NoBranchError       (NotImplementedError) a server's state cannot be copied
    ├── ReplayError         (RuntimeError)    what a task loads cannot be run (python.py)
    ├── UnknownToolsError   (KeyError)        no plugin of that name
    └── UnknownParserError  (KeyError)        no call form of that name

After a `ToolError` the episode goes on. A tool that cannot work for reasons the model has no part
in (a dead sandbox, a lost server) raises anything else; the rollout records it as an infrastructure
failure and masks the episode.
"""

from __future__ import annotations


class ToolsError(Exception):
    """Base of all errors that this floor raises on its own account."""

    def __str__(self) -> str:
        """The message as it is: KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""


class ToolError(ToolsError, RuntimeError):
    """The tool refuses the call; the message goes to the model."""


class ToolTimeout(ToolError, TimeoutError):
    """The tool did not answer in time; the message goes to the model."""


class ToolDefinitionError(ToolsError, TypeError):
    """A function that cannot become a tool; the message says what to change."""


class ToolServerError(ToolsError, ConnectionError):
    """A server of tools cannot be started, or died: an infrastructure failure."""


class NoBranchError(ToolsError, NotImplementedError):
    """An episode cannot be branched: a server that its tools live in has a state of its own."""


class UnknownToolsError(ToolsError, KeyError):
    """No plugin of tools of that name; the message suggests the nearest."""


class UnknownParserError(ToolsError, KeyError):
    """No call form of that name; the message lists those there are."""
