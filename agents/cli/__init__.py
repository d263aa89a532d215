"""The `journeyman` command.

Handlers import what they need when they run: `journeyman --help` must not wait for torch. `train`,
`eval` and `collect` are Hydra applications with a syntax of their own, so their arguments are
passed on as they are.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from journeyman.agents.cli import (
    cluster,
    compare,
    envs,
    figures,
    leaderboard,
    models,
    pages,
    play,
    processes,
    sandbox,
    show,
    student,
    teacher,
    tools,
    why,
    worth,
)
from journeyman.agents.cli.base import (
    FAILED,
    INTERRUPTED,
    MISUSED,
    OK,
    Handler,
    Parser,
    group,
)
from journeyman.agents.errors import AgentError
from journeyman.agents.evaluation.printing import complain, guard_streams
from journeyman.agents.runs.threads import wait_briefly

_HYDRA_APPS = {
    "train": "train a student (Hydra overrides; try: journeyman train --help)",
    "eval": "measure policies on held-out tasks (Hydra overrides)",
    "collect": "write down a policy's episodes, for trainer=sft trainer.data=… (Hydra overrides)",
}
_PROXY = "an OpenAI-compatible server that records what is played (Hydra overrides)"
_DEBUG = "--debug"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; by default the process's own.

    Returns:
        The exit status: 0 done, 1 a check or a program failed, 2 a mistake in what was asked, 130
        interrupted. Errors that are not the user's are raised as they are.
    """
    guard_streams()
    wait_briefly()
    if processes.place():
        processes.hush()
    given = list(sys.argv[1:] if argv is None else argv)
    debug = _DEBUG in given or os.environ.get("JOURNEYMAN_DEBUG", "") not in ("", "0")
    arguments = [a for a in given if a != _DEBUG]  # it may stand anywhere, overrides included
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter is shutting down
        return status
    except SystemExit as stop:  # argparse and Hydra end with it
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return FAILED
        return stop.code or OK
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. What is still buffered must go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        if processes.place():
            return INTERRUPTED
        hint = (
            "; run the same command to go on"
            if arguments[:1] in (["train"], ["collect"], ["why"])
            else ""
        )
        complain(f"journeyman: interrupted{hint}")
        return INTERRUPTED
    except Exception as error:
        processes.give_way(error)
        if not _speaks_to_user(error):
            raise
        if debug:
            traceback.print_exc()
        complain(f"journeyman: error: {_message(error)}")
        return MISUSED


def _dispatch(arguments: list[str]) -> int:
    if arguments[:2] == ["serve", "proxy"]:
        return _run_hydra("proxy", arguments[2:])
    if arguments and arguments[0] in _HYDRA_APPS:
        return _run_hydra(arguments[0], arguments[1:])
    options = _parser().parse_args(arguments)
    handler: Handler = options.handler
    return handler(options)


def _message(error: Exception) -> str:
    """An error's text on one line."""
    wrapped = error.__cause__ if type(error).__name__ == "InstantiationException" else None
    if isinstance(wrapped, Exception) and _speaks_to_user(wrapped):
        return _message(wrapped)  # what failed says it better than Hydra, which called it
    if isinstance(error, OSError) and error.strerror:  # else str() starts with "[Errno 2]"
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error).partition("Config search path:")[0]  # Hydra's, of no use to a user
    return " ".join(text.split()) or type(error).__name__


def _speaks_to_user(error: Exception) -> bool:
    """True for the errors of the four floors, of configs, and for what the machine refuses."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from journeyman.envs.errors import EnvError
    from journeyman.sandbox.errors import SandboxError
    from journeyman.tools.errors import ToolsError

    ours = (AgentError, EnvError, ToolsError, SandboxError)
    return isinstance(error, (*ours, HydraException, OmegaConfBaseException, OSError))


def _parser() -> Parser:
    from importlib.metadata import version

    parser = Parser(
        prog="journeyman",
        description="A small agent learns to use tools by working under a master.",
    )
    parser.add_argument(
        "--version", action="version", version=f"journeyman {version('journeyman')}"
    )
    parser.add_argument(
        _DEBUG,
        action="store_true",
        help="show the traceback of an error, with any command (also JOURNEYMAN_DEBUG=1)",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, help_text in _HYDRA_APPS.items():  # for --help only: main() takes them first
        commands.add_parser(name, help=help_text, add_help=False)
    serve = group(commands, "serve", "serve a student to any agent program")
    serve.add_parser("proxy", help=_PROXY, add_help=False)  # the same: it is a Hydra application
    play.add(commands)
    worth.add(commands)
    show.add(commands)
    why.add(commands)
    compare.add(commands)
    pages.add(commands)
    leaderboard.add(commands)
    envs.add(group(commands, "envs", "list, show and check environments"))
    figures.add(group(commands, "metrics", "list the figures of an evaluation"))
    tools.add(group(commands, "tools", "list the tools of environments"))
    sandbox.add(group(commands, "sandbox", "check the sandbox, or run a program in it"))
    cluster.add(group(commands, "cluster", "a Ray cluster of this machine, for rollouts=ray"))
    models.add(group(commands, "models", "list and fetch models"))
    models.add_export(commands)
    teacher.add(group(commands, "teacher", "serve a teacher"))
    student.add(group(commands, "student", "serve a student that is trained meanwhile"))
    return parser


def _run_hydra(app: str, overrides: list[str]) -> int:
    from journeyman.agents.runs.application import run_app

    run_app(app, overrides)
    return OK
