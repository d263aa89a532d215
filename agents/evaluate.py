"""`journeyman eval`: a student's figures beside the no-op and the oracle, without training."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from journeyman.agents.app import RunFolder, attempts, evaluate, machine, run_app
from journeyman.agents.evaluation.report import breakdown, plot, table, write_summary
from journeyman.agents.policy import Policy, Student
from journeyman.agents.search.policy import SearchPolicy
from journeyman.agents.train import bounds


def main(argv: Sequence[str]) -> None:
    """Entry of the command line."""
    run_app("eval", evaluate_student, argv)


def evaluate_student(config: DictConfig) -> None:
    """Evaluate, print the table, write summary and picture."""
    folder = RunFolder(config)
    attempts(config)  # a mistake shows before models load
    policy: Student = instantiate(config.student)
    folder.claim()
    rows = bounds(policy, config)
    tested: Policy = policy.at(config.evaluation.temperature)
    if policy.search is not None:
        # Its turns are judged by forks of the tests themselves: a row of its own.
        rows["student"] = evaluate("student", tested, config)
        tested = SearchPolicy(policy, policy.search)
    name = "student" if policy.search is None else f"student, {policy.search} search"
    rows[name] = evaluate(name, tested, config)
    extra = {"machine": machine(), "config": OmegaConf.to_container(config, resolve=True)}
    write_summary(folder.path / "summary.json", rows, extra)
    plot(folder.path / "plot.png", rows)
    print(f"\n{table(rows)}\n")
    if config.evaluation.breakdown:
        print(f"{breakdown(rows)}\n")
    print(f"summary: {folder.path / 'summary.json'}")
