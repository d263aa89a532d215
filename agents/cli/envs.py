"""`journeyman envs …`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from journeyman.agents.cli.base import (
    FAILED,
    OK,
    Commands,
    columns,
    command,
    first_line,
    print_check,
    print_json,
)
from journeyman.agents.errors import CommandError

if TYPE_CHECKING:
    from journeyman.envs import Task, ToolEnv
    from journeyman.envs.checker import CheckResult
    from journeyman.tools import ToolSpec


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    listing = command(commands, "list", _envs_list, "list the registered environments")
    listing.add_argument("--json", action="store_true", help="for programs")
    show = command(commands, "show", _envs_show, "show tools and a task of an environment")
    show.add_argument("id", help="environment, such as journeyman/Bank-v0")
    check = command(commands, "check", _envs_check, "check that an environment keeps the rules")
    which = check.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", help="environment, such as journeyman/Bank-v0")
    which.add_argument("--all", action="store_true", help="every registered environment")
    check.add_argument(
        "--prefixes",
        type=_count,
        default=1000,
        metavar="N",
        help="random prefixes to restore and to replay (default: %(default)s)",
    )
    check.add_argument(
        "--jobs",
        type=_count,
        default=1,
        metavar="N",
        help="environments to check at a time, in a process each (default: %(default)s)",
    )
    new = command(commands, "new", _envs_new, "write a package with a new environment")
    new.add_argument("name", help="<namespace>/<Name>, such as acme/Garden")
    new.add_argument("--path", default=".", help="where its folder goes (default: here)")
    serve = command(commands, "serve", _envs_serve, "let other programs play an environment")
    serve.add_argument("id", help="environment, such as journeyman/Bank-v0")
    how = serve.add_mutually_exclusive_group(required=True)
    how.add_argument("--mcp", action="store_true", help="by MCP: over stdio, or with --http")
    how.add_argument("--openenv", action="store_true", help="by OpenEnv, over HTTP (port 8000)")
    serve.add_argument("--http", type=_port, metavar="PORT", help="port to answer at")
    serve.add_argument("--host", default="127.0.0.1", help="for --http (default: %(default)s)")
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that the server may be called by, and pages come from (may be repeated)",
    )
    serve.add_argument(
        "--sessions",
        type=_count,
        default=64,
        metavar="N",
        help="clients at once over HTTP, each with an episode of its own (default: %(default)s)",
    )
    serve.add_argument("--split", help="where a random task is drawn from (default: its own)")


def _count(text: str) -> int:
    """A number of things, for argparse: at least one."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def _port(text: str) -> int:
    """A port, for argparse."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: expected 1 to 65535")
    return int(text)


def _envs_list(options: argparse.Namespace) -> int:
    from journeyman.envs import env_ids

    classes = _sound_classes(env_ids())
    if options.json:
        print_json(
            [
                {
                    "id": env_id,
                    "class": f"{cls.__module__}:{cls.__qualname__}",
                    # null: they come with the tasks of a benchmark, which may not be installed
                    "tools": [tool.name for tool in cls.toolset] or None,
                    "levels": list(cls.levels),
                    "description": first_line(cls.__doc__),
                }
                for env_id, cls in classes.items()
            ]
        )
        return OK
    print(
        columns(
            (env_id, _number_of_tools(cls.toolset), ", ".join(cls.levels), first_line(cls.__doc__))
            for env_id, cls in classes.items()
        )
    )
    return OK


def _sound_classes(env_ids: Sequence[str]) -> dict[str, type[ToolEnv]]:
    """The classes by id; one that is written wrongly is told of, and takes no other down."""
    from journeyman.envs import env_class
    from journeyman.envs.errors import InvalidEnvError

    classes = {}
    for env_id in env_ids:
        try:
            classes[env_id] = env_class(env_id)
        except InvalidEnvError as error:
            print(f"journeyman: warning: {env_id}: {error}", file=sys.stderr)
    return classes


def _number_of_tools(tools: Sequence[object]) -> str:
    if not tools:
        return "see show"  # they come with the tasks of a benchmark, which may not be installed
    return f"{len(tools)} tool{'s' if len(tools) > 1 else ''}"


def tools_of(env: ToolEnv) -> tuple[str, list[ToolSpec]]:
    """A heading, and the tools: those of the first task if every task has its own."""
    if specs := env.tools:
        return "Tools", specs
    task_id = _first_task(env, env.levels[0])
    env.reset(options={"task_id": task_id})
    return f"Tools of {task_id}; every task has its own", env.tools


def _first_task(env: ToolEnv, level: str) -> str | None:
    from journeyman.envs.types import SPLITS

    return next((task_id for s in SPLITS for task_id in env.tasks(f"{s}/{level}")), None)


def _envs_show(options: argparse.Namespace) -> int:
    from journeyman.envs import make

    with make(options.id) as env:
        heading, specs = tools_of(env)
        print(f"{options.id}: {first_line(type(env).__doc__)}\n\n{heading}")
        for spec in specs:
            print(f"  {spec.signature()}: {spec.description}")
        for level in env.levels:
            task_id = _first_task(env, level)
            if task_id is not None:
                _show_task(env.load_task(task_id), level)
    return OK


def _show_task(task: Task, level: str) -> None:
    from journeyman.envs import answer_text

    print(f"\nTask {task.id} ({level}, {task.kind})")
    for rule in task.policy.splitlines():
        print(f"  Rule: {rule}")
    for turn in task.turns:
        print(f"  User: {turn.prompt}")
        for call in turn.gold:
            print(f"    {call.canonical()}")
        print(f"    {answer_text(turn)}")


def _missing_package(env_id: str) -> str | None:
    """What an environment lacks that is made of a benchmark; None if it lacks nothing."""
    from journeyman.envs import env_class
    from journeyman.envs.errors import InvalidEnvError, MissingBenchmarkError

    try:
        cls = env_class(env_id)
        cls.task_count("test", cls.levels[0])
    except InvalidEnvError:  # which the check of its definition tells
        return None
    except MissingBenchmarkError as error:
        return str(error)
    return None


def _envs_check(options: argparse.Namespace) -> int:
    from journeyman.envs import env_ids

    ids = env_ids() if options.all else [options.id]
    one = functools.partial(_checked, prefixes=options.prefixes, progress=options.jobs == 1)
    passed = True
    with contextlib.ExitStack() as stack:
        if options.jobs == 1:
            outcomes: Iterator[list[CheckResult] | str] = map(one, ids)
        else:
            # Not forked: what they check starts processes and threads of its own.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(options.jobs, context))
            outcomes = pool.map(one, ids)
        for env_id, outcome in zip(ids, outcomes, strict=True):
            if isinstance(outcome, str) and not options.all:
                raise CommandError(f"{env_id}: {outcome}")
            if isinstance(outcome, str):
                print(f"{env_id}\n  skip  {outcome}")
                continue
            print(env_id, flush=True)  # --all takes a while
            for result in outcome:
                passed = passed and result.passed
                print_check(result.name, result.passed, result.detail, result.skipped)
    return OK if passed else FAILED


def _checked(env_id: str, prefixes: int, progress: bool) -> list[CheckResult] | str:
    """What the checks of an environment came to, or what it lacks to be played at all."""
    from journeyman.envs.checker import check

    missing = _missing_package(env_id)
    if missing is not None:
        return missing
    return check(env_id, prefixes=prefixes, progress=progress)


def _envs_new(options: argparse.Namespace) -> int:
    from journeyman.envs.scaffold import new_package

    print(new_package(options.name, Path(options.path)))
    return OK


def _envs_serve(options: argparse.Namespace) -> int:
    return _serve_openenv(options) if options.openenv else _serve_mcp(options)


def _split(options: argparse.Namespace) -> dict[str, str]:
    """The split that was asked for, as an environment's argument; each has a default of its own."""
    return {} if options.split is None else {"split": options.split}


def _serve_mcp(options: argparse.Namespace) -> int:
    from journeyman.envs import make

    def make_env() -> ToolEnv:
        return make(options.id, **_split(options))

    make_env().close()  # a bad id or split shows now
    try:
        from journeyman.envs.mcp import make_server, serve_http, serve_stdio
    except ImportError as error:  # a venv with OpenEnv in it has an older `mcp`
        raise _lacking("mcp", error) from error
    if options.http is None:
        with make_env() as env:
            serve_stdio(make_server(env, options.id))
    else:
        serve_http(
            make_env,
            options.id,
            options.host,
            options.http,
            allow=options.allow_host,
            sessions=options.sessions,
        )
    return OK


def _serve_openenv(options: argparse.Namespace) -> int:
    from journeyman.envs import make

    def make_env() -> ToolEnv:
        return make(options.id, **_split(options))

    make_env().close()  # a bad id or split shows now
    try:
        from journeyman.envs.openenv import serve_http
    except ImportError as error:
        raise _lacking("openenv", error) from error
    serve_http(
        make_env,
        options.id,
        options.host,
        8000 if options.http is None else options.http,
        allow=options.allow_host,
        sessions=options.sessions,
    )
    return OK


def _lacking(extra: str, error: ImportError) -> CommandError:
    return CommandError(
        f"{error}: serving needs the optional packages: pip install 'journeyman[{extra}]' (mcp and "
        f"openenv each in a venv of its own)"
    )
