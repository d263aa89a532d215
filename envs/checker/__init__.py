"""What every environment must keep to, as checks with a name each: `journeyman envs check ID`.

A search forks episodes and a trainer replays them: an environment that forgets part of its state,
draws a number from elsewhere than its seed, or rewards what solves nothing, gives wrong values
without any error. This finds it. Checks run from what is written (`written.py`) over what happens
when it is played (`played.py`, `elsewhere.py`) to what counts as success (`success.py`). One cause
is reported once, by the first check that meets it; what would only show it again is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from journeyman.envs.checker import played, success, written
from journeyman.envs.checker.elsewhere import processes
from journeyman.envs.checker.subject import Cause, Finding, Found, Subject, cause_of, told
from journeyman.envs.checker.success import answers_alone
from journeyman.envs.errors import InvalidEnvError
from journeyman.envs.registry import written_class

__all__ = ["CHECKS", "CheckResult", "answers_alone", "check"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check came to, or one of the things that it found."""

    name: str
    passed: bool
    """False if something is wrong."""
    detail: str
    """What was played, or what is wrong, where, and how to mend it."""
    skipped: bool = False
    """True if the check was left out: what another one found would show in it again."""


class Check(NamedTuple):
    """One check."""

    run: Callable[[Subject], str]
    """Returns what it did, or raises what it found."""
    needs: tuple[str, ...] = ()
    """Checks whose findings would show in this one again."""


CHECKS: dict[str, Check] = {
    "definition": Check(written.definition),
    "tasks": Check(written.tasks, ("definition",)),
    "splits": Check(written.splits, ("tasks",)),
    "tools": Check(played.tools, ("tasks",)),
    "seeds": Check(played.seeds, ("tasks",)),
    "attempts": Check(played.attempts, ("seeds",)),
    "episode": Check(played.episode, ("attempts",)),
    "gymnasium": Check(played.gymnasium, ("attempts", "episode")),
    "prefixes": Check(played.prefixes, ("attempts",)),
    "hashes": Check(played.hashes, ("prefixes",)),
    "processes": Check(processes, ("attempts",)),
    "gold": Check(success.gold, ("episode", "attempts")),
    "no_op": Check(success.no_op, ("episode",)),
    "near_misses": Check(success.near_misses, ("no_op", "prefixes", "attempts")),
}
"""The checks by name, in the order `check` runs them."""


def check(
    env_id: str,
    episodes: int = 20,
    prefixes: int = 20,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> list[CheckResult]:
    """Check an environment.

    Args:
        env_id: A registered id.
        episodes: Episodes a check plays (and tasks of a split and level that it looks at).
        prefixes: Random prefixes after which an episode is branched and replayed.
        seed: Another seed plays other tasks and other turns.
        progress: Show a bar while the prefixes are played, if stderr is a terminal.
        kwargs: Passed to the environment's constructor.

    Returns:
        The results in the order of `CHECKS`; a check that found several things gives as many. A
        check that meets an exception has failed.

    Raises:
        UnknownEnvError: No such id.
    """
    try:
        env_type = written_class(env_id)
    except InvalidEnvError as error:  # no `ToolEnv`: there is nothing that could be checked
        return [CheckResult("definition", False, str(error))]
    subject = Subject(env_id, env_type, episodes, prefixes, seed, progress, kwargs)
    results: list[CheckResult] = []
    causes: dict[Cause, str] = {}
    for name in CHECKS:
        results += _run(name, subject, results, causes)
    return results


def _run(
    name: str, subject: Subject, before: list[CheckResult], causes: dict[Cause, str]
) -> list[CheckResult]:
    unsound = {r.name for r in before if not r.passed or r.skipped}
    missing = next((need for need in CHECKS[name].needs if need in unsound), None)
    if missing is not None:
        return [CheckResult(name, True, f"left out until {missing!r} passes", skipped=True)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about arguments that nobody would give
            return [CheckResult(name, True, CHECKS[name].run(subject))]
    except Found as wrong:
        findings = wrong.findings
    except (Exception, SystemExit) as error:
        findings = (Finding(f"raised {told(error)}", cause_of(error)),)
    fresh = [f for f in findings if f.cause is None or f.cause not in causes]
    if not fresh:
        same = next(causes[f.cause] for f in findings if f.cause is not None)
        return [CheckResult(name, True, f"left out until {same!r} passes", skipped=True)]
    causes.update({f.cause: name for f in fresh if f.cause is not None})
    return [CheckResult(name, False, f.text) for f in fresh]
