"""Errors of the tools floor.

    Exception
    ├── ToolError            data for the model: the tool refuses, the episode goes on
    │   └── ToolTimeout      the tool did not answer in time
    ├── ToolDefinitionError  (TypeError) a programmer's error: this function cannot be a tool
    ├── ToolServerError      (RuntimeError) a server of tools cannot be started, or died
    └── UnknownToolsError    (KeyError) no plugin of that name

A tool that cannot work for reasons the model has no part in (a dead sandbox, a lost server) raises
anything else; the rollout records it as an infrastructure failure and masks the episode.
"""

from __future__ import annotations


class ToolError(Exception):
    """The tool refuses the call; the message goes to the model."""


class ToolTimeout(ToolError):
    """The tool did not answer in time; the message goes to the model."""


class ToolDefinitionError(TypeError):
    """A function that cannot become a tool; the message says what to change."""


class ToolServerError(RuntimeError):
    """A server of tools cannot be started, or died: an infrastructure failure."""


class UnknownToolsError(KeyError):
    """No plugin of tools of that name; the message suggests the nearest."""

    def __str__(self) -> str:
        """The message as it is: KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""
