"""`journeyman eval`: a student's figures beside the no-op and the oracle, without training."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from journeyman.agents.errors import UserError
from journeyman.agents.evaluation.report import breakdown, plot, table, write_summary
from journeyman.agents.runs.app import (
    RunFolder,
    attempts,
    check,
    check_environments,
    env_kwargs,
    evaluate,
    machine,
    run_app,
)
from journeyman.agents.runs.train import bounds
from journeyman.agents.search.playing import SearchPolicy
from journeyman.agents.students.player import Policy, Student

PLACES = frozenset(
    {"name", "seed", "run_dir", "threads", "evaluation", "env", "student", "sandbox"}
)
"""What a config of `eval` has at its top."""


def main(argv: Sequence[str]) -> None:
    """Entry of the command line."""
    run_app("eval", evaluate_student, argv)


def evaluate_student(config: DictConfig) -> None:
    """Evaluate, print the table, write summary and picture."""
    check(config)
    if config.evaluation.tasks < 1:
        raise UserError(
            f"evaluation.tasks={config.evaluation.tasks}: expected a whole number above zero"
        )
    if strange := sorted(str(name) for name in set(config) - PLACES):
        raise UserError(
            f"eval has no use for {strange[0]}=…: it plays the student alone; its places are "
            f"{', '.join(sorted(PLACES))}"
        )
    folder = RunFolder(config, replaces=True)
    # Mistakes show before models load.
    attempts(config)
    check_environments(config)
    policy: Student = instantiate(config.student)
    tested: Policy = policy.at(config.evaluation.temperature)
    searching: SearchPolicy | None = None
    if policy.search is not None:
        try:
            searching = SearchPolicy(policy, policy.search, env_kwargs=env_kwargs(config))
        except ValueError as error:
            raise UserError(f"student.search={policy.search}: {error}") from error
    folder.claim()
    rows = bounds(policy, config)
    if searching is not None:
        # Its turns are judged by forks of the tests themselves: a row of its own.
        rows["student"] = evaluate("student", tested, config)
        tested = searching
    name = "student" if policy.search is None else f"student, {policy.search} search"
    rows[name] = evaluate(name, tested, config)
    extra = {"machine": machine(), "config": OmegaConf.to_container(config, resolve=True)}
    write_summary(folder.path / "summary.json", rows, extra)
    plot(folder.path / "plot.png", rows)
    print(f"\n{table(rows)}\n")
    if config.evaluation.breakdown:
        print(f"{breakdown(rows)}\n")
    print(f"summary: {folder.path / 'summary.json'}")
