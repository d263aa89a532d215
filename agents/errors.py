"""Errors of the agents floor that a user can mend.

    Exception
    └── UserError
        ├── VocabularyMismatchError (ValueError)  student and teacher count tokens differently
        ├── RunDirError             (ValueError)  the run folder holds another run
        └── DiskFullError           (OSError)     no room for checkpoints

The command line prints their message on one line.
"""

from __future__ import annotations


class UserError(Exception):
    """Base of errors whose message says what to change."""


class VocabularyMismatchError(UserError, ValueError):
    """Student and teacher do not share a vocabulary."""


class RunDirError(UserError, ValueError):
    """The run folder belongs to a run with another configuration."""


class DiskFullError(UserError, OSError):
    """The run folder's disk has no room for what is to be written."""
