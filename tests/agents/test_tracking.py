"""`tracker=`: what is told, read back from what the tracker wrote."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from omegaconf import OmegaConf
from transformers import TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.metrics import Metrics, summarise
from journeyman.agents.runs import tracking
from journeyman.agents.runs.tracking import Tracking, load_tracker


class Notebook(GeneralTracker):
    """Writes down what it is told."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Any] = []

    @property
    def tracker(self) -> list[Any]:
        return self.said

    def start(self) -> None:
        self.said.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.said.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.said.append((step, values))

    def finish(self) -> None:
        self.said.append("finish")


def rows() -> dict[str, Metrics]:
    return {"student": summarise([])}


def test_what_a_tracker_is_told(tmp_path: Path) -> None:
    book = Notebook()
    told = Tracking(book)
    told.open({"seed": 1, "env": {"ids": ["a", "b"], "kwargs": {}}, "sandbox": None})
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(global_step=3), TrainerControl()
    told.on_log(args, state, control, logs={"loss": 0.5, "worst": float("nan"), "note": "none"})
    told.on_log(args, state, control, logs={"train_runtime": 1.0})
    told.log(4, {"step": 4, "eval/success": 0.25, "eval/tasks": 8, "eval/low": None})
    told.close(4, rows())
    assert book.said == [
        "start",
        {"seed": 1, "env.ids": "['a', 'b']", "env.kwargs": "{}", "sandbox": "None"},
        (3, {"loss": 0.5}),
        (4, {"eval/success": 0.25, "eval/tasks": 8}),
        (4, {"table/student/low": 0.0, "table/student/high": 1.0}),
        "finish",
    ]


def test_without_a_tracker_nothing_is_told() -> None:
    assert load_tracker(None) is None
    told = Tracking(None)  # which must take it all the same
    told.open({})
    told.log(1, {"loss": 1.0})
    told.close(1, rows())


def test_a_package_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        tracking.importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    node = OmegaConf.create(
        {"_target_": "accelerate.tracking.WandBTracker", "run_name": "journeyman"}
    )
    with pytest.raises(SettingError, match="tracker=wandb: it is not installed: pip install wandb"):
        load_tracker(node)


def test_what_is_no_tracker_is_refused() -> None:
    node = OmegaConf.create({"_target_": "builtins.dict"})
    with pytest.raises(SettingError, match=r"dict is no accelerate\.tracking\.GeneralTracker"):
        load_tracker(node)


def test_a_service_that_refuses_says_so_in_one_line() -> None:
    class Closed(Notebook):
        def start(self) -> None:
            raise ConnectionError("no\nlogin")

    with pytest.raises(SettingError, match="tracker=notebook cannot begin: no login"):
        Tracking(Closed()).open({})


def test_tensorboard_has_training_validation_and_table(tmp_path: Path, journeyman: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    done = journeyman(
        *("train", "debug=tiny", "env=journeyman/Bank-v0", "tracker=tensorboard", "threads=1"),
        *("evaluation.every=1", "evaluation.validation_tasks=2", "evaluation.tasks=2"),
        f"run_dir={run}",
    )
    assert done.status == 0, done.stderr
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["loss"] == found["eval/success"] == found["rollout/success"] == [1, 2]
    assert found["table/student after/success"] == found["table/oracle/success"] == [2]
    assert events.Scalars("table/oracle/success")[0].value == 1.0
