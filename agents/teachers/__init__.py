"""Who judges what the student wrote.

`signal.py` says what a teacher is; `local.py` is one in this process, `privileged.py` the student
itself that reads a hint (`hints.py`), `oracle.py` the gold program, `router.py` several at once;
`scoring.py` brings what they say to steps and their parts.
"""

from journeyman.agents.teachers.signal import (
    Annotations,
    Detail,
    Distribution,
    Signal,
    Teacher,
    TopK,
)

__all__ = ["Annotations", "Detail", "Distribution", "Signal", "Teacher", "TopK", "no_teacher"]


def no_teacher() -> None:
    """`teacher=none`: supervised training and reinforcement need none."""
