"""The recipe of the embedded pair, at the size of a test."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from .factory import build, vocabulary

Recipe, schedule, train_tokenizer = build.Recipe, build.schedule, vocabulary.train_tokenizer

TINY = Recipe(width=96, layers=2, steps=3, error_rate=0.2, batch_size=4)


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "POOL", 8)
    monkeypatch.setattr(build, "VALIDATION", 2)
    monkeypatch.setattr(build, "CORPUS_TASKS", 5)
    monkeypatch.setattr(build, "SAVE_EVERY", 2)


def test_a_killed_recipe_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer(build.corpus())
    whole = build.train("whole", TINY, tokenizer, tmp_path)

    class Killed(Exception):
        pass

    def die(step: int, recipe: Recipe) -> float:
        if step == 2:
            raise Killed
        return schedule(step, recipe)

    monkeypatch.setattr(build, "schedule", die)
    with pytest.raises(Killed):
        build.train("cut", TINY, tokenizer, tmp_path)
    monkeypatch.setattr(build, "schedule", schedule)
    resumed = build.train("cut", TINY, tokenizer, tmp_path)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_main_writes_models_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "RECIPES", {"student": TINY})
    build.main(["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")])
    from journeyman.agents.students.hf import load_student

    player = load_student(str(tmp_path / "out" / "student"), render="names")
    assert player.model.num_parameters() > 0
    assert (tmp_path / "out" / "training.jsonl").read_text().count('"model": "student"') == 2


def test_the_rate_rises_and_falls() -> None:
    recipe = replace(TINY, steps=1000, learning_rate=2.0)
    rates = [schedule(step, recipe) for step in range(1000)]
    assert rates[0] < rates[49] > rates[500] > rates[999] > 0
    assert max(rates) <= 2


def test_the_rate_can_stay_high() -> None:
    recipe = replace(TINY, steps=1000, learning_rate=2.0, decay=False)
    rates = [schedule(step, recipe) for step in range(1000)]
    assert rates[0] < rates[48] < rates[49] == 2.0
    assert set(rates[49:]) == {2.0}
