"""`journeyman sandbox …`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from journeyman.agents.cli.base import FAILED, OK, Commands, command, print_check
from journeyman.agents.errors import CommandError


def add(commands: Commands) -> None:
    """Add the commands of the group."""
    check = command(commands, "check", _sandbox_check, "check that a backend isolates here")
    run = command(commands, "run", _sandbox_run, "run a Python file in the sandbox")
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
            print_check(f"{result.family}: {result.name}", result.passed, result.detail)
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
