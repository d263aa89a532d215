"""Errors of the agents floor that a user can mend.

    Exception
    └── AgentError
        ├── CommandError            (ValueError)  a command cannot do what was asked
        ├── CallSyntaxError         (ValueError)  a person's line that cannot be read as a call
        ├── SettingError            (ValueError)  a value in a config or an argument is out of range
        ├── DialectError            (ValueError)  the chat template cannot carry an episode
        ├── ModelNotFoundError      (FileNotFoundError) no model of that name here
        ├── ModelPullError          (ConnectionError) a model could not be fetched whole
        ├── UnsupportedModelError   (ValueError)  the student's engine cannot run the model
        ├── MissingExtraError       (ModuleNotFoundError) an optional package is not installed
        ├── VocabularyMismatchError (ValueError)  student and teacher count tokens differently
        ├── TeacherServerError      (ConnectionError) a teacher's server is gone, or would mislead
        ├── JudgeServerError        (ConnectionError) a judge's server is gone, or gives no grades
        ├── StudentServerError      (ConnectionError) a student's server is gone, or refuses
        ├── LostTurnError           (ConnectionError) a server gives no turn in one conversation
        ├── ContextFullError        (ValueError)  a conversation is too long for its server
        ├── BudgetSpentError        (RuntimeError) a student has cost as much as it may
        ├── RunDirError             (ValueError)  the run folder holds another run, or one at work
        ├── RunFileError            (ValueError)  a file of a run folder holds something else
        ├── ConversationError       (ValueError)  a file to learn from holds what is no conversation
        ├── DivergedError           (ValueError)  the model's weights are no longer of use
        ├── BrokenRolloutError      (RuntimeError) nothing of a rollout came to its end
        ├── CrewError               (ConnectionError) workers elsewhere are gone, or die of a job
        ├── NoSnapshotError         (ValueError)  a search in an environment without snapshots
        ├── ParcelError             (ValueError)  what cannot be sent to, or played by, a worker
        └── DiskFullError           (OSError)     no room for checkpoints

The command line prints their message on one line.
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of errors whose message says what to change."""

    def __str__(self) -> str:
        """The message as it is: KeyError would show its repr, OSError a number."""
        return str(self.args[0]) if self.args else ""


class CommandError(AgentError, ValueError):
    """The command cannot do what was asked."""


class CallSyntaxError(AgentError, ValueError):
    """A person's line that starts like a call and cannot be read as one; the message says why."""


class ModelNotFoundError(AgentError, FileNotFoundError):
    """No model of that name here; the message says how to get it."""


class ModelPullError(AgentError, ConnectionError):
    """A model could not be fetched or does not match its checksum."""


class SettingError(AgentError, ValueError):
    """A value in a config, or an argument, that is out of its range."""


class DialectError(AgentError, ValueError):
    """The tokenizer's chat template, or how it is to be used, does not fit multi-turn tool use."""


class UnsupportedModelError(AgentError, ValueError):
    """The student's engine cannot run the model, or not as asked."""


class ModelExportError(AgentError, RuntimeError):
    """A model cannot be written in the form that was asked for."""


class MissingExtraError(AgentError, ModuleNotFoundError):
    """A part needs an optional package; the message says how to get it."""


class VocabularyMismatchError(AgentError, ValueError):
    """Student and teacher do not share a vocabulary."""


class TeacherServerError(AgentError, ConnectionError):
    """A teacher's server does not answer, refuses, or answers what cannot be learned from."""


class JudgeServerError(AgentError, ConnectionError):
    """A judge's server does not answer, refuses, or answers what are no grades."""


class StudentServerError(AgentError, ConnectionError):
    """A student's server does not answer, refuses, or answers what is no turn."""


class LostTurnError(AgentError, ConnectionError):
    """A student's server answers others, and gives no turn in one conversation."""


class ContextFullError(AgentError, ValueError):
    """A conversation has become longer than its student's server takes."""


class BudgetSpentError(AgentError, RuntimeError):
    """A student has cost as much as it may; the run can be resumed with more."""


class RunDirError(AgentError, ValueError):
    """The run folder belongs to a run with another configuration, or to one that is at work."""


class RunFileError(AgentError, ValueError):
    """A file of a run folder holds what no run wrote there; the message names the line."""


class ConversationError(AgentError, ValueError):
    """A file to learn from holds no conversations; the message names line, field and remedy."""


class DivergedError(AgentError, ValueError):
    """A model gives logits that are not finite, or nothing that a loss can be formed from."""

    def __init__(self, message: str | None = None) -> None:
        """Say so; of a student that plays it is the same mistake wherever it shows."""
        super().__init__(
            message
            or "the student's logits are not finite: its training diverged; lower "
            "trainer.args.learning_rate and start anew"
        )


class BrokenRolloutError(AgentError, RuntimeError):
    """Every episode of a rollout broke: nothing is left to learn from."""


class CrewError(AgentError, ConnectionError):
    """No worker elsewhere is left, or none survives what it is asked to play."""


class NoSnapshotError(AgentError, ValueError):
    """A search goes back to states, and the environment cannot."""


class ParcelError(AgentError, ValueError):
    """A player, a task or an episode that cannot leave its process, or has not come to another."""


class DiskFullError(AgentError, OSError):
    """The run folder's disk has no room for what is to be written."""
