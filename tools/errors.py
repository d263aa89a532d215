"""Errors of the tools floor.

    Exception
    ├── ToolError            data for the model: the tool refuses, the episode goes on
    │   └── ToolTimeout      the tool did not answer in time
    └── ToolDefinitionError  (TypeError) a programmer's error: this function cannot be a tool

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
