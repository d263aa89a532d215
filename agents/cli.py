"""The `journeyman` command.

Handlers import what they need when they run: `journeyman --help` must not wait for torch. `train`
and `eval` are Hydra applications with a syntax of their own, so their arguments are passed on as
they are.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

Handler = Callable[[argparse.Namespace], int]
"""Runs a subcommand; returns the exit status."""

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; a check or program failed; the user's mistake; Ctrl-C."""

_HYDRA_APPS = {
    "train": "train a student (Hydra overrides; try: journeyman train --help)",
    "eval": "measure policies on held-out tasks (Hydra overrides)",
}
_DEBUG = "--debug"
# Their exceptions speak to the user: about a name, a value, a setting of the machine.
_SPEAKING = ("journeyman.", "hydra.", "omegaconf.")


class CommandError(Exception):
    """The command cannot do what was asked; the message is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; by default the process's own.

    Returns:
        The exit status: 0 done, 1 a check or a program failed, 2 a mistake in what was asked, 130
        interrupted. Errors that are not the user's are raised as they are.
    """
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
        print("journeyman: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _speaks_to_user(error):
            raise
        if debug:
            traceback.print_exc()
        print(f"journeyman: error: {_message(error)}", file=sys.stderr)
        return MISUSED


def _dispatch(arguments: list[str]) -> int:
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
    """True for the project's own exceptions, config errors, and what the machine refuses.

    Judged by the module of the class: importing the classes would load what they belong to.
    """
    modules = (f"{kind.__module__}." for kind in type(error).__mro__)
    return isinstance(error, (OSError, CommandError)) or any(
        module.startswith(_SPEAKING) for module in modules
    )


class _Parser(argparse.ArgumentParser):
    """One-line errors that suggest the nearest command."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(choices)}"
        raise argparse.ArgumentError(None, f"no {action.metavar or action.dest} {value!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"journeyman: error: {message} (try: {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = _Parser(
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
    _add_play(commands)
    _add_envs(_group(commands, "envs", "list, show and check environments"))
    _add_tools(_group(commands, "tools", "list the tools of environments"))
    _add_sandbox(_group(commands, "sandbox", "check the sandbox, or run a program in it"))
    _add_models(_group(commands, "models", "list and fetch models"))
    return parser


Commands = Any
"""What `add_subparsers` returns: argparse gives the type no public name."""


def _group(commands: Commands, name: str, help_text: str) -> Commands:
    parser = commands.add_parser(name, help=help_text)
    return parser.add_subparsers(metavar="command", required=True)


def _command(commands: Commands, name: str, handler: Handler, help_text: str) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(handler=handler)
    return parser


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows as left-aligned columns."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in listed)
    return "\n".join(lines)


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


# --- train, eval ----------------------------------------------------------------------------------


def _run_hydra(app: str, overrides: list[str]) -> int:
    if app == "train":
        from journeyman.agents.train import main as run
    else:
        from journeyman.agents.evaluate import main as run
    run(overrides)
    return OK


# --- play -----------------------------------------------------------------------------------------


def _add_play(commands: Commands) -> None:
    parser = _command(commands, "play", _play, "play the agent yourself")
    parser.add_argument("id", help="environment, such as journeyman/Bank-v0")
    parser.add_argument("--task", help="task id, such as test/0 (default: a random one)")
    parser.add_argument("--split", default="train", help="where a random task is drawn from")


def _play(options: argparse.Namespace) -> int:
    from journeyman.agents.play import play

    played = play(options.id, sys.stdin, sys.stdout, options.split, options.task)
    return OK if played else FAILED


# --- envs -----------------------------------------------------------------------------------------


def _add_envs(commands: Commands) -> None:
    listing = _command(commands, "list", _envs_list, "list the registered environments")
    listing.add_argument("--json", action="store_true", help="for programs")
    show = _command(commands, "show", _envs_show, "show tools and a task of an environment")
    show.add_argument("id", help="environment, such as journeyman/Bank-v0")
    check = _command(commands, "check", _envs_check, "check that an environment keeps the rules")
    which = check.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", help="environment, such as journeyman/Bank-v0")
    which.add_argument("--all", action="store_true", help="every registered environment")


def _envs_list(options: argparse.Namespace) -> int:
    from journeyman.envs import env_class, env_ids

    classes = {env_id: env_class(env_id) for env_id in env_ids()}
    if options.json:
        _print_json(
            [
                {
                    "id": env_id,
                    "class": f"{cls.__module__}:{cls.__qualname__}",
                    "tools": [tool.name for tool in cls.toolset],
                    "description": _first_line(cls.__doc__),
                }
                for env_id, cls in classes.items()
            ]
        )
        return OK
    print(
        _columns(
            (env_id, f"{len(cls.toolset)} tools", _first_line(cls.__doc__))
            for env_id, cls in classes.items()
        )
    )
    return OK


def _envs_show(options: argparse.Namespace) -> int:
    from journeyman.envs import make

    env = make(options.id)
    _, info = env.reset(options={"task_id": next(env.tasks("train"))})
    print(f"{options.id}: {_first_line(type(env).__doc__)}\n\nTools")
    for spec in env.tools:
        print(f"  {spec.signature()}: {spec.description}")
    print(f"\nTask {info['task_id']} ({env.task.kind})\n  {env.task.prompt}\n\nSolution")
    for call in env.oracle():
        print(f"  {call.canonical()}")
    print(f"  Answer: {env.task.answer}")
    env.close()
    return OK


def _envs_check(options: argparse.Namespace) -> int:
    from journeyman.envs import env_ids
    from journeyman.envs.checker import check

    passed = True
    for env_id in env_ids() if options.all else [options.id]:
        results = check(env_id)
        print(env_id, flush=True)  # --all takes a while
        for result in results:
            passed = passed and result.passed
            _print_check(result.name, result.passed, result.detail)
    return OK if passed else FAILED


def _print_check(name: str, passed: bool, detail: str) -> None:
    print(f"  {'pass' if passed else 'FAIL'}  {name}" + (f": {detail}" if detail else ""))


# --- tools ----------------------------------------------------------------------------------------


def _add_tools(commands: Commands) -> None:
    listing = _command(commands, "list", _tools_list, "list tools by environment")
    listing.add_argument("id", nargs="?", help="one environment (or plugin) only")
    listing.add_argument(
        "--plugins", action="store_true", help="by plugin (entry points `journeyman.tools`) instead"
    )
    listing.add_argument("--json", action="store_true", help="schemas, for programs")


def _tools_list(options: argparse.Namespace) -> int:
    from journeyman.envs import env_class, env_ids
    from journeyman.tools import load_plugins, plugin_tools

    if options.plugins:
        names = list(load_plugins()) if options.id is None else [options.id]
        toolsets = {name: plugin_tools(name) for name in names}
    else:
        names = env_ids() if options.id is None else [options.id]
        toolsets = {env_id: env_class(env_id).toolset for env_id in names}
    specs = {name: [tool.spec for tool in toolset] for name, toolset in toolsets.items()}
    if options.json:
        _print_json({name: [s.as_function() for s in specs[name]] for name in names})
        return OK
    for name in names:
        print(name)
        for spec in specs[name]:
            print(f"  {spec.signature()}: {spec.description}")
    return OK


# --- sandbox --------------------------------------------------------------------------------------


def _add_sandbox(commands: Commands) -> None:
    check = _command(commands, "check", _sandbox_check, "check that a backend isolates here")
    run = _command(commands, "run", _sandbox_run, "run a Python file in the sandbox")
    run.add_argument("file", help="a Python file, or - for standard input")
    run.add_argument("--timeout", type=float, default=5.0, help="seconds (default: %(default)s)")
    for parser in (check, run):
        parser.add_argument("--backend", default="namespace", help="default: %(default)s")


def _sandbox_check(options: argparse.Namespace) -> int:
    from journeyman.sandbox import conformance

    backend = _backend(options.backend)
    for layer, what in backend.describe().items():
        print(f"{layer}: {what}")
    results = conformance.check(backend)
    for result in results:
        if result.skipped:
            print(f"  skip  {result.family}: {result.name}: {result.skipped}")
        else:
            _print_check(f"{result.family}: {result.name}", result.passed, result.detail)
    failures = sum(not result.passed for result in results)
    run = sum(not result.skipped for result in results)
    print(f"{run - failures} of {run} checks passed")
    return FAILED if failures else OK


def _sandbox_run(options: argparse.Namespace) -> int:
    from journeyman.sandbox import Limits, Sandbox

    code = _read_source(options.file)
    try:
        limits = Limits(wall_s=options.timeout, cpu_s=options.timeout)
    except ValueError as error:
        raise CommandError(f"--timeout: {error}") from error
    result = Sandbox(_backend(options.backend), limits).exec(code)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    if result.value_repr is not None:
        print(result.value_repr)
    if result.killed_reason is not None:
        print(f"journeyman: killed: {result.killed_reason}", file=sys.stderr)
    elif result.signal is not None:
        print(f"journeyman: ended by signal {result.signal}", file=sys.stderr)
    return FAILED if result.exit_status is None else result.exit_status


def _read_source(name: str) -> str:
    if name == "-":
        return sys.stdin.read()
    try:
        with open(name, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise CommandError(f"{name} is not UTF-8 text: {error}") from error


def _backend(name: str) -> Any:
    from journeyman.sandbox import resolve_backend

    try:
        return resolve_backend(name)
    except ValueError as error:
        raise CommandError(str(error)) from error


# --- models ---------------------------------------------------------------------------------------


def _add_models(commands: Commands) -> None:
    _command(commands, "list", _models_list, "list models by name")
    pull = _command(
        commands, "pull", _models_pull, "fetch a model into the cache, print its folder"
    )
    path = _command(commands, "path", _models_path, "print what a name stands for")
    for parser in (pull, path):
        parser.add_argument("name", help="such as smollm2-135m")


def _models_list(options: argparse.Namespace) -> int:
    from journeyman.agents import models

    rows = (
        (name, str(folder) if folder else f"not here; run: {models.how_to_get(name)}")
        for name, folder in models.available().items()
    )
    print(_columns(rows))
    return OK


def _models_pull(options: argparse.Namespace) -> int:
    from journeyman.agents import models

    # Stages go to stderr: `$(journeyman models pull NAME)` is the folder.
    print(models.pull(options.name, lambda line: print(line, file=sys.stderr, flush=True)))
    return OK


def _models_path(options: argparse.Namespace) -> int:
    from journeyman.agents import models

    print(models.resolve(options.name))
    return OK


if __name__ == "__main__":
    sys.exit(main())
