"""`journeyman search`."""

from __future__ import annotations

import argparse
from pathlib import Path

from journeyman.agents.cli.base import OK, Commands, command, task_id
from journeyman.agents.errors import CommandError


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "search", _search, "grow the tree of one task and draw it")
    parser.add_argument("id", help="environment, such as journeyman/Orders-v0")
    parser.add_argument(
        "--task", type=task_id, default="test/0", help="task id or number (default: %(default)s)"
    )
    parser.add_argument(
        "--student", default="embedded-student", help="model (default: %(default)s)"
    )
    parser.add_argument(
        "--render", default="names", help="how its prompt shows tools (default: %(default)s)"
    )
    parser.add_argument("--max-turn-tokens", type=int, default=48, help="default: %(default)s")
    parser.add_argument("--max-context", type=int, default=640, help="default: %(default)s")
    parser.add_argument(
        "--teacher", default="embedded-teacher", help="model (default: %(default)s)"
    )
    parser.add_argument("--trajectories", type=int, default=4, help="default: %(default)s")
    parser.add_argument(
        "--rows", type=int, default=16, help="episodes in all (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="0 or above (default: %(default)s)")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a picture too")


def _search(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation.printing import printable
    from journeyman.agents.rollouts.tasks import TaskRef
    from journeyman.agents.search.draw import as_svg, as_text
    from journeyman.agents.search.evidence import TreeRollouts
    from journeyman.agents.students.hf import load_student
    from journeyman.agents.teachers import Annotations
    from journeyman.agents.teachers.local import load_teacher
    from journeyman.envs import env_class

    task = env_class(options.id).load_task(options.task)
    if options.seed < 0:
        raise CommandError(f"--seed {options.seed}: expected 0 or above")
    try:
        rollouts = TreeRollouts(rows=options.rows, trajectories=options.trajectories)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if options.svg:
        _check_writable(options.svg)
    refs = [
        TaskRef(options.id, task.id, seed=(options.seed << 16) + i) for i in range(options.rows)
    ]
    student = load_student(
        options.student,
        render=options.render,
        max_turn_tokens=options.max_turn_tokens,
        max_context=options.max_context,
    )
    teacher = load_teacher(options.teacher)
    teacher.check(student)
    master = teacher.player(student.at(temperature=0.0))
    (grown,), _ = rollouts.grow(student, Annotations(teacher), master, refs, 64, {})
    print(f"{options.id} {task.id}: {task.prompt}\n{as_text(grown.tree)}")
    if options.svg:
        options.svg.write_text(printable(as_svg(grown.tree)), encoding="utf-8")
        print(f"picture: {options.svg}")
    return OK


def _check_writable(file: Path) -> None:
    """Before the search and not after it."""
    try:
        file.open("a").close()
    except OSError as error:
        raise CommandError(
            f"--svg {file}: {error.strerror}; name a file that I may write"
        ) from error
