"""`journeyman report` and `journeyman view`."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import TYPE_CHECKING

from journeyman.agents.cli.base import OK, Commands, Parser, command, count
from journeyman.agents.cli.show import add_choices, matches, nothing
from journeyman.agents.errors import CommandError

if TYPE_CHECKING:
    from journeyman.agents.evaluation.viewer.live import PageServer

DEFAULT_PAGE = Path("report.html")
_MOST_PORT = 65535


def add(commands: Commands) -> None:
    """Add both commands."""
    parser = command(commands, "report", _report, "write runs as one HTML page")
    _add_runs(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        default=DEFAULT_PAGE,
        help="where to (default: %(default)s)",
    )
    parser = command(commands, "view", _view, "serve the same page live, to this machine alone")
    _add_runs(parser)
    parser.add_argument(
        "--port", type=_port, default=0, metavar="N", help="of 127.0.0.1; 0 takes a free one"
    )


def _add_runs(parser: Parser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's or a sweep's folder, or its name under runs/",
    )
    add_choices(parser)
    parser.add_argument(
        "--limit",
        metavar="N",
        type=count,
        default=0,
        help="of each row at most so many episodes; figures are of all (default: all)",
    )


def _port(text: str) -> int:
    """A port's number, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) > _MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: expected 0 to {_MOST_PORT}")
    return int(text)


def _runs(options: argparse.Namespace) -> list[Path]:
    from journeyman.agents.evaluation.records import find_runs

    # One that is named twice is shown once.
    found = dict.fromkeys(run for name in options.runs for run in find_runs(name))
    return list(found)


def _report(options: argparse.Namespace) -> int:
    from journeyman.agents.evaluation.records import EpisodeFile
    from journeyman.agents.evaluation.report import write_atomically
    from journeyman.agents.evaluation.viewer.document import page, page_data, read_runs

    runs = _runs(options)
    if options.output.is_dir():
        raise CommandError(f"--output {options.output} is a folder: name a file in it")
    gc.disable()  # what is read stays until the end: a tenth of the time would look in vain
    try:
        data = page_data(read_runs(runs, lambda line: matches(line, options)), options.limit)
    finally:
        gc.enable()
    if not data["episodes"]:
        raise CommandError(nothing(EpisodeFile(runs[0]), options))
    text = page(data).encode("utf-8", "backslashreplace")
    write_atomically(options.output, text)
    episodes = sum(row["episodes"] for row in data["rows"])
    shown = len(data["episodes"])
    of = f"{shown} episodes" if shown == episodes else f"{shown} of {episodes} episodes"
    print(f"page: {options.output} ({of}, {len(text) / 1e6:.1f} MB)")
    return OK


def _view(options: argparse.Namespace) -> int:
    server = serving(options)
    print(f"{server.url} shows {', '.join(options.runs)}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return OK
    finally:
        server.server_close()
    return OK


def serving(options: argparse.Namespace) -> PageServer:
    """The server that `view` runs, already listening."""
    from journeyman.agents.evaluation.viewer.document import page_data, read_runs
    from journeyman.agents.evaluation.viewer.live import LiveData, PageServer

    runs = _runs(options)
    reading = LiveData(
        runs,
        lambda: page_data(read_runs(runs, lambda line: matches(line, options)), options.limit),
    )
    try:
        return PageServer(reading, options.port)
    except OSError as error:
        raise CommandError(
            f"--port {options.port}: {error.strerror}; choose another, or leave it out"
        ) from error
