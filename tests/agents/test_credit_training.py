"""Every credit algorithm and every estimator of step values trains, as its file configures it."""

import copy
import dataclasses
import importlib.resources
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from peft import LoraConfig

from journeyman.agents.credit import GAE, Attention, Critic, GrowingHorizon
from journeyman.agents.errors import SettingError
from journeyman.agents.learning.trainers import distill
from journeyman.agents.learning.trainers.parts import Parts
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.where import Rollouts
from journeyman.envs import Episode

from .chat_server import chatting, graded
from .test_trainers import babbler, changed, distillation, make_parts, steps, weights

CONF = importlib.resources.files("journeyman.conf")


def options(group: str) -> list[str]:
    return sorted(p.name.removesuffix(".yaml") for p in CONF.joinpath(group).iterdir())


def configured(credit: str, values: str = "tree", **settings: str) -> Parts:
    """The parts of a run with these files; trees of two rows where the credit needs a search."""
    config = OmegaConf.create(
        {
            "seed": 0,
            "steps": 4,
            "run_dir": "nowhere",
            "student": {"model": "embedded-student"},
        }
    )
    for group, option in (("credit", credit), ("values", values), ("search", "credit")):
        config[group] = OmegaConf.create(CONF.joinpath(group, f"{option}.yaml").read_text())
    parts = make_parts(babbler(), instantiate(config.credit, **settings))
    if not parts.credit.needs_search:
        return parts
    search = instantiate(config.search, rows=2, trajectories=1)
    return dataclasses.replace(parts, search=search)


def train(parts: Parts, folder: Path) -> list[dict[str, float]]:
    """What is logged of each step; the student must have changed."""
    before = weights(parts.student.model)
    trainer = distill.build(parts, distillation(folder, max_steps=1))
    trainer.train()
    assert changed(parts.student.model, before)
    assert all(p.isfinite().all() for p in parts.student.model.parameters())
    return steps(trainer)


def paying() -> Rollouts:
    """Outcomes that differ, within a tree as well: no tiny model solves a task."""
    count = itertools.count()

    def play(player: Any, tasks: list[Any], *rest: Any, **options: Any) -> list[Episode]:
        played = rollout(player, tasks, *rest, **options)
        return [dataclasses.replace(e, reward=float(next(count) % 3 == 0)) for e in played]

    return play


def paid(parts: Parts) -> Parts:
    """Whose rollouts have such outcomes."""
    return dataclasses.replace(parts, rollouts=paying())


@pytest.mark.parametrize("credit", options("credit"))
def test_a_step_with_every_credit(credit: str, tmp_path: Path) -> None:
    with chatting(graded) as server:
        served = {"base_url": server.url, "cache": str(tmp_path / "grades")}
        parts = configured(credit, **(served if credit == "judge" else {}))
        parts.credit.check(parts.student)
        (record,) = train(paid(parts), tmp_path)
    assert record["grad_norm"] > 0
    assert ("critic/loss" in record) == (credit == "gae")


@pytest.mark.parametrize("values", options("values"))
def test_a_step_with_every_estimator(values: str, tmp_path: Path) -> None:
    (record,) = train(configured("additive", values), tmp_path)
    assert record["search/env_steps"] > 0


def test_a_horizon_goes_on_where_a_run_stopped(tmp_path: Path) -> None:
    """It is a matter of the step, not of what this process has seen: weights are equal, too."""
    found = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        parts = make_parts(babbler(), GrowingHorizon(start=1, every=2))
        args = distillation(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
        trainer = distill.build(parts, args)
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append((weights(parts.student.model), [it["horizon"] for it in steps(trainer)]))
    (whole, horizons), (resumed, again) = found
    assert horizons == [1, 2, 2, 3] == again
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


# --- what reads the student's network -------------------------------------------------------------


@pytest.mark.parametrize("credit", [GAE(Critic(hidden=4), weight=0.0), Attention(weight=0.0)])
@pytest.mark.parametrize("lora", [False, True])
def test_reinforcement_alone_over_shared_rollouts(credit: Any, lora: bool, tmp_path: Path) -> None:
    parts = paid(make_parts(babbler(), copy.deepcopy(credit)))
    adapter = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    trainer = distill.build(
        parts,
        distillation(tmp_path, max_steps=5, per_device_train_batch_size=2),
        steps_per_generation=2,
        num_iterations=2,
        peft_config=adapter if lora else None,
    )
    before = weights(trainer.model)
    trainer.train()
    names = changed(trainer.model, before)
    assert names
    assert not lora or all("lora_" in name for name in names)
    assert parts.student.model.config._attn_implementation == "sdpa"
    records = steps(trainer)
    if isinstance(credit, GAE):
        judged = ["critic/loss" in record for record in records]
        assert judged == [True, False, False, False, True]  # a rollout is learned from once
        assert records[4]["critic/explained_variance"] != 0
        assert records[0]["critic/explained_variance"] == 0  # it knew nothing


def test_evaluation_teaches_the_critic_nothing(tmp_path: Path) -> None:
    parts = make_parts(babbler(), GAE(Critic()))
    trainer = distill.build(parts, distillation(tmp_path))
    rows = [trainer.train_dataset[i] for i in range(4)]
    trainer.model.eval()
    trainer._generate_and_score_completions(rows)
    assert parts.credit.state_dict() == {}
    trainer.model.train()
    trainer._generate_and_score_completions(rows)
    assert parts.credit.state_dict()


def test_what_a_critic_learned_in_an_older_release_is_not_lost(tmp_path: Path) -> None:
    """Each process had a file of its own: that of one which was alone is gone on with."""

    def trained(checkpoint: Path | None) -> dict[str, Any]:
        parts = paid(make_parts(babbler(), GAE(Critic())))
        args = distillation(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        trainer = distill.build(parts, args)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return dict(parts.credit.state_dict()["optimiser"]["state"][0])

    known, old = trained(None), tmp_path / "checkpoint-1"
    (old / "credit.pt").rename(old / "credit_0.pt")
    assert trained(old)["step"] == known["step"]
    (old / "credit_1.pt").write_bytes((old / "credit_0.pt").read_bytes())
    with pytest.raises(SettingError, match="each of 2 processes had a critic of its own"):
        trained(old)
