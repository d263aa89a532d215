"""The main job with a real model: SmolLM2-135M from the package registry, three optimiser steps."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from journeyman.agents.students.hf import load_student

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(cache: Path, *arguments: str) -> str:
    """A command's stdout; its progress goes where pytest's own output goes."""
    done = subprocess.run(
        [sys.executable, "-m", "journeyman.agents.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=cache,
        env=os.environ | {"JOURNEYMAN_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0
    return done.stdout


def test_three_steps_with_a_real_model(tmp_path: Path) -> None:
    pulled = Path(run(tmp_path, "models", "pull", "smollm2-135m").strip())
    folder = tmp_path / "run"
    table = run(tmp_path, "train", "experiment=smollm2", f"run_dir={folder}")

    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logged] == [1, 2, 3]
    for record in logged:
        assert math.isfinite(record["loss"])
        assert record["loss"] > 0
        assert 0 < record["grad_norm"] < math.inf
        assert record["rollout/infra_errors"] == 0
    for row in ("no-op", "oracle", "student before", "student after", "teacher"):
        assert f"\n{row} " in table

    before, after = (load_file(place / "model.safetensors") for place in (pulled, folder / "model"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    trained = load_student(str(folder / "model"), render="signature")
    ids = torch.tensor([trained.dialect.tokenizer.encode("A calendar is a tool.")])
    with torch.inference_mode():
        assert trained.model(ids.to(trained.model.device)).logits.isfinite().all()
