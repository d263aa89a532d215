"""A look at validation tasks while training, which training does not feel."""

from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.learning.trainers.callbacks import read_metrics

TINY = ("train", "debug=tiny", "threads=1", "evaluation.tasks=0", "steps=4")


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("trainer", [pytest.param("distill", marks=pytest.mark.slow), "sft"])
def test_validation_changes_nothing(trainer: str, tmp_path: Path, journeyman: Any) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    # Dropout draws from torch's dice: whoever else did would show in the weights.
    common = (*TINY, f"trainer={trainer}")
    looks = ("evaluation.every=2", "evaluation.validation_tasks=6")
    for run, options in ((plain, ()), (watched, looks)):
        done = journeyman(*common, *options, f"run_dir={run}", before=DROPOUT)
        assert done.status == 0, done.stderr
    assert weights(plain) == weights(watched)
    records = read_metrics(watched / "metrics.jsonl")
    seen = [record for record in records if "eval/success" in record]
    assert [record["step"] for record in seen] == [2, 4]
    for record in seen:
        assert 0 <= record["eval/low"] <= record["eval/success"] <= record["eval/high"] <= 1
        assert record["eval/tasks"] == 6
        assert record["eval/infra_errors"] == 0
    rest = [record for record in records if "eval/success" not in record]
    assert [r["loss"] for r in rest] == [r["loss"] for r in read_metrics(plain / "metrics.jsonl")]


DROPOUT = """
from journeyman.agents.students import hf

load = hf.load_model

def with_dropout(*args, **kwargs):
    model = load(*args, **kwargs)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    return model

hf.load_model = with_dropout
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.every=-1", "evaluation.every=-1: expected a whole number, 0 or more"),
        (
            "evaluation.validation_tasks=0",
            "evaluation.validation_tasks=0: expected a whole number, 1 or more",
        ),
    ],
)
def test_mistakes_show_before_training(
    override: str, message: str, tmp_path: Path, journeyman: Any
) -> None:
    refused = journeyman(*TINY, override, f"run_dir={tmp_path / 'run'}")
    assert refused.status == 2
    assert message in refused.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()
