"""Whoever learns from rewards alone keeps what the student could do; whoever loses it says so."""

import logging
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from trl import DistillationConfig

from journeyman.agents.credit import Outcome
from journeyman.agents.learning.losses import NoLoss
from journeyman.agents.learning.trainers import distill
from journeyman.agents.learning.trainers.parts import Parts
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.students.hf import load_student

from .test_trainers import COMMON

ENV = "journeyman/Orders-v0"


def reinforced(folder: Path, seed: int, **settings: Any) -> list[dict[str, float]]:
    """144 steps of 4 rows on the order desk, at the default rate; the rollouts' figures."""
    student = load_student("embedded-student", render="names", max_turn_tokens=48, max_context=640)
    parts = Parts(
        student,
        None,
        NoLoss(),
        Outcome(1.0, 0.0),
        lambda count: deal([ENV], "train", 1000 * seed, count, short="cycle"),
        {"max_turns": 8},
    )
    args = DistillationConfig(
        output_dir=str(folder / "checkpoints"),
        max_steps=144,
        seed=seed,
        per_device_train_batch_size=4,
        **COMMON
        | {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 5}
        | {"max_grad_norm": 1.0},
    )
    trainer = distill.build(parts, args, steps_per_generation=4, **settings)
    trainer.train()
    return [dict(it) for it in trainer.state.log_history if "rollout/success" in it]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # one or two minutes, if nothing else works
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rewards_alone_do_not_ruin_a_student(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        figures = reinforced(tmp_path, seed)
    assert len(figures) == 36
    before = figures[0]["rollout/success"]  # of the student as it was
    after = fmean(it["rollout/success"] for it in figures[-9:])
    said = any("training collapses" in it.getMessage() for it in caplog.records)
    assert before > 0.3
    assert after > before / 2 or said


@pytest.mark.slow
@pytest.mark.timeout(1200)  # as above
def test_a_run_that_ruins_its_student_says_so_and_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        figures = reinforced(tmp_path, 0, kl=0, on_collapse="stop")
    # It may fall from one rollout to the next; two of them are enough to stop it.
    assert figures[0]["rollout/success"] > 0.3
    assert fmean(it["rollout/success"] for it in figures[-2:]) < 0.1
    assert len(figures) < 36
    assert sum("training collapses" in it.getMessage() for it in caplog.records) == 1
