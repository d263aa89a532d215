"""Errors of the environments floor.

EnvError
├── UnknownEnvError       (KeyError)      no environment of that id
├── InvalidEnvError       (TypeError)     no ToolEnv, or one that is written wrongly
├── InvalidTaskError      (TypeError)     a task one of whose fields is of another type
├── StateChangedError     (RuntimeError)  a tool changed the state instead of returning a new one
├── MissingBenchmarkError (ImportError)   the package of a benchmark is not installed
├── UnknownTaskError      (KeyError)      no such split or task id
├── BadActionError        (TypeError)     neither text nor a list of calls
├── EpisodeOverError      (RuntimeError)  step() before reset() or after the end
├── EnvBusyError          (RuntimeError)  two threads play on one environment
├── VectorError           (RuntimeError)  an environment of a vector failed
├── BrokenEpisodeError    (RuntimeError)  an environment failed where an episode cannot be left out
└── ScaffoldError         (ValueError)    no new package can be written like that

What the model does wrong is no error here but data for it: a `ToolError`, see `tools/errors.py`.
"""

from __future__ import annotations


class EnvError(Exception):
    """Base of all errors that environments raise at their caller."""

    def __str__(self) -> str:
        """The message as it is: KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""


class UnknownEnvError(EnvError, KeyError):
    """No environment of that id; the message suggests the nearest."""


class InvalidEnvError(EnvError, TypeError):
    """What is registered under an id is no `ToolEnv`, or one that cannot work as it is written."""


class InvalidTaskError(EnvError, TypeError):
    """A field of a task is of another type; the message says what to write."""


class StateChangedError(EnvError, RuntimeError):
    """A tool changed the state in place: snapshots and the goal of the task would change with it.

    The environment is wrong, not what it runs on; what was earned in it until then counts for
    nothing. Also raised where the turns of a record lead to another state than they did.
    """


class MissingBenchmarkError(EnvError, ImportError):
    """The package of a benchmark is not installed; the message says how to install it."""


class UnknownTaskError(EnvError, KeyError):
    """No such split or task id."""


class EpisodeOverError(EnvError, RuntimeError):
    """`step()` was called before `reset()` or after the episode ended."""


class BadActionError(EnvError, TypeError):
    """An action that is neither text nor a list of `ToolCall`."""


class EnvBusyError(EnvError, RuntimeError):
    """A second thread plays on an environment whose step or reset is not over."""


class VectorError(EnvError, RuntimeError):
    """An environment of a vector failed; the message says which, its own error is the cause."""


class BrokenEpisodeError(EnvError, RuntimeError):
    """An environment failed, and whoever asks for its reward cannot leave the episode out."""


class ScaffoldError(EnvError, ValueError):
    """A new package cannot be written: its name is of another form, or its folder is there."""
