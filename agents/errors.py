"""Errors of the agents floor that a user can mend.

    Exception
    └── UserError
        ├── ChatFormatError         (ValueError)  the chat template cannot carry an episode
        ├── UnsupportedModelError   (ValueError)  the student's engine cannot run the model
        ├── MissingExtraError       (ImportError) an optional package is not installed
        ├── VocabularyMismatchError (ValueError)  student and teacher count tokens differently
        ├── RunDirError             (ValueError)  the run folder holds another run, or one at work
        ├── DivergedError           (ValueError)  the model's weights are no longer of use
        ├── NoSnapshotError         (ValueError)  a search in an environment without snapshots
        └── DiskFullError           (OSError)     no room for checkpoints

The command line prints their message on one line.
"""

from __future__ import annotations


class UserError(Exception):
    """Base of errors whose message says what to change."""


class ChatFormatError(UserError, ValueError):
    """The tokenizer's chat template, or how it is to be used, does not fit multi-turn tool use."""


class UnsupportedModelError(UserError, ValueError):
    """The student's engine cannot run the model, or not as asked."""


class MissingExtraError(UserError, ModuleNotFoundError):
    """A part needs an optional package; the message says how to get it."""


class VocabularyMismatchError(UserError, ValueError):
    """Student and teacher do not share a vocabulary."""


class RunDirError(UserError, ValueError):
    """The run folder belongs to a run with another configuration, or to one that is at work."""


class DivergedError(UserError, ValueError):
    """The model that plays gives logits that are not finite."""

    def __init__(self) -> None:
        """Say so; it is the same mistake wherever it shows."""
        super().__init__(
            "the student's logits are not finite: its training diverged; lower "
            "trainer.args.learning_rate and start anew"
        )


class NoSnapshotError(UserError, ValueError):
    """A search goes back to states, and the environment cannot."""


class DiskFullError(UserError, OSError):
    """The run folder's disk has no room for what is to be written."""
