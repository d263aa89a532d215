"""Every preset of `method=` composes, says what it overrides, and trains."""

import importlib.resources
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from safetensors.torch import load_file

from journeyman.agents.errors import SettingError
from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.networks.catalogue import available
from journeyman.agents.rollouts import where
from journeyman.agents.runs.application import offer_options
from journeyman.agents.runs.train import train

from .chat_server import chatting, graded
from .test_credit_training import paying

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
CONF = importlib.resources.files("journeyman.conf")
METHODS = sorted(path.name.removesuffix(".yaml") for path in CONF.joinpath("method").iterdir())
SMALL = (
    *("debug=tiny", "steps=1", "evaluation.tasks=0", "log_episodes=0", "threads=1"),
    # Where rows of a task differ at once: advantages of equal ones cancel.
    *("env=journeyman/Orders-v0", "++env.kwargs.max_turns=1", "student.max_turn_tokens=40"),
    "trainer.args.per_device_train_batch_size=8",  # as many rows as GRPO has of a task
    "trainer.args.warmup_steps=0",  # or the first step would be of size 0
)


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    offer_options()
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        yield


def weights_of(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, "rollout", paying())  # or rewards would be alike, and teach nothing
    with chatting(graded) as server:
        more = [f"credit.base_url={server.url}"] if method == "judge" else []
        train(compose("train", [f"method={method}", *SMALL, *more, f"run_dir={tmp_path}"]))
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record["grad_norm"] > 1e-4  # far above rounding
    before = available()["embedded-student"]
    assert before is not None
    after = weights_of(tmp_path / "model")
    old = weights_of(before)
    assert any(not after[name].equal(old[name]) for name in after)


def test_no_method_is_chosen_by_itself() -> None:
    assert "method" not in compose("train")
    assert compose("train").loss.beta == 1.0


def test_the_command_line_has_the_last_word_and_a_method_the_one_before_it() -> None:
    told = compose("train", ["experiment=demo", "method=tcod"])
    assert told.credit._target_.endswith("GrowingHorizon")
    assert told.loss._target_.endswith("SampledReverseKL")
    assert told.trainer.num_iterations == 3  # the experiment's, of which the method says nothing
    told = compose("train", ["method=gkd", "loss=forward_kl", "trainer.lmbda=0.25"])
    assert (told.loss.beta, told.trainer.lmbda) == (0.0, 0.25)


def test_settings_that_an_experiment_has_for_another_trainer_are_named(tmp_path: Path) -> None:
    given = ["experiment=demo", "method=sft", *SMALL, f"run_dir={tmp_path}"]
    names = ("steps_per_generation", "num_iterations")
    said = rf"trainer=sft has no {', '.join(names)}: .* {' '.join(f'~trainer.{n}' for n in names)}$"
    with pytest.raises(SettingError, match=said):
        train(compose("train", given))
    train(compose("train", [*given, *(f"~trainer.{name}" for name in names)]))
    assert (tmp_path / "model").exists()


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel's tests come without docs/")
def test_every_loss_and_method_is_in_the_documentation() -> None:
    text = DOCS.read_text()
    losses = [path.name.removesuffix(".yaml") for path in CONF.joinpath("loss").iterdir()]
    for name in (*METHODS, *losses):
        assert re.search(rf"^\| `{name}` \|", text, re.MULTILINE), name
