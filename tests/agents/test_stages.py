"""An experiment of stages: planned before it begins, run in order, gone on with after a kill."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from journeyman.agents.errors import ModelNotFoundError, SettingError
from journeyman.agents.runs import explaining, places
from journeyman.agents.runs.application import offer_options
from journeyman.agents.runs.explaining import Question
from journeyman.agents.runs.measuring import fingerprint
from journeyman.agents.runs.plan import Stage, learned, planned, sibling
from journeyman.agents.runs.train import finish, settle
from journeyman.agents.students.hf import load_student

from .test_resume import KILL

EXPERIMENTS = {
    "two": """\
stages: {warm: [two/warm, two/least], taught: [two/taught, two/least]}
env: {ids: [journeyman/Bank-v0], kwargs: {max_turns: 8}}
evaluation: {tasks: 4, batch_size: 4}
""",
    "two/warm": "defaults: [{override /trainer: sft}, {override /teacher: none}]\n",
    "two/taught": 'student: {model: "${stage:warm}/model"}\nsteps: 7\n',
    "two/least": """\
steps: 1
env: {ids: [journeyman/Bank-v0], kwargs: {max_turns: 3}}
trainer: {args: {per_device_train_batch_size: 2, save_steps: 1, warmup_steps: 0}}
""",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Models that are looked for; all of them are there."""
    names: list[str] = []
    monkeypatch.setattr(places, "check", names.append)
    offer_options()
    OmegaConf.register_new_resolver("stage", sibling, replace=True)
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        yield names


def plan(*overrides: str) -> dict[str, Any]:
    """Stages by name, in order."""
    stages = planned(compose("train", list(overrides)), overrides)
    assert all(isinstance(it, Stage) for it in stages)
    return {it.name: it.config for it in stages}


@pytest.mark.parametrize("size", ["smollm2-bank", "smollm2-bank-gpu"])
def test_what_ships_can_be_run(
    size: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = size.endswith("gpu")  # and so is the machine
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    stages = plan(f"experiment={size}", "seed=3", "evaluation.batch_size=7")
    assert list(stages) == ["student", "teacher", "on-policy", "self"]
    assert set(asked) == {"smollm2-135m"}  # what stages before make is not looked for
    for name, config in stages.items():
        assert (config.run_dir, config.name) == (f"runs/{size}/{name}", f"{size}/{name}")
        assert (config.seed, config.evaluation.tasks, config.evaluation.batch_size) == (3, 0, 7)
        assert config.trainer.args.output_dir == f"runs/{size}/{name}/checkpoints"
        settled = OmegaConf.create({"trainer": config.trainer})
        settle(settled)
        assert settled.trainer.args.bf16 == gpu != settled.trainer.args.use_cpu
        each = config.trainer.get("steps_per_generation", 1)
        assert (
            config.trainer.args.save_steps % (each * config.trainer.get("num_iterations", 1)) == 0
        )
    learned = f"runs/{size}/student/model"
    models = [config.student.model for config in stages.values()]
    assert models == ["smollm2-135m", learned, learned, learned]
    assert stages["on-policy"].teacher.model == f"runs/{size}/teacher/model"
    assert stages["student"].trainer.hint == stages["self"].teacher.hint == "gold"
    assert len({config.first_task for config in stages.values()}) == 3
    assert stages["on-policy"].first_task == stages["self"].first_task


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+stages={}"], "stages={}: expected a name and an experiment a stage"),
        (["+stages={oracle: smollm2}"], "stages.oracle: expected a name of letters"),
        (["+stages={a b: smollm2}"], "stages.a b: expected a name of letters"),
        (["+stages={a: 3}"], "stages.a=3: expected the name of an experiment"),
        (["+stages={a: []}"], "stages.a=[]: expected the name of an experiment"),
        (["+stages={a: nope}"], "stages.a: In 'train': Could not load 'experiment/nope'"),
        (["+stages={a: smollm2-bank}"], "stages.a=smollm2-bank has stages itself"),
        (
            ["+stages={a: smollm2-bank/student}", "trainer.rollout_batch=3"],
            "stages.a: Could not override 'trainer.rollout_batch'",
        ),
        (["+stages={a: smollm2}", "steps=0"], "stages.a: steps=0: expected a whole number"),
    ],
)
def test_what_cannot_be_a_stage_says_so(overrides: list[str], words: str, asked: list[str]) -> None:
    with pytest.raises(SettingError) as error:
        plan(*overrides)
    assert words in str(error.value)


def test_a_model_that_no_stage_before_makes_is_looked_for(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(name: str) -> None:
        raise ModelNotFoundError(f"no model {name}")

    monkeypatch.setattr(places, "check", none)
    with pytest.raises(ModelNotFoundError) as error:
        plan("+stages={teacher: smollm2-bank/teacher}", "name=mine")
    told = "stages.teacher: no model runs/mine/student/model (stages before it: none)"
    assert str(error.value) == told


def test_an_adapter_of_all_stages_is_begun_once(asked: list[str]) -> None:
    stages = plan("experiment=smollm2-bank", "student.lora={r: 4}")
    begun = {name: config.student.lora for name, config in stages.items()}
    assert begun == {"student": {"r": 4}, "teacher": None, "on-policy": None, "self": None}
    for name, config in stages.items():
        as_left = learned(config.student, Path(config.run_dir))
        assert (as_left.model, as_left.lora) == (f"runs/smollm2-bank/{name}/model", None)


def test_another_model_is_what_the_first_stage_begins_with(asked: list[str]) -> None:
    stages = plan("experiment=smollm2-bank", "student.model=embedded-student")
    made = "runs/smollm2-bank/student/model"
    models = [config.student.model for config in stages.values()]
    assert models == ["embedded-student", made, made, made]
    assert stages["on-policy"].teacher.model == "runs/smollm2-bank/teacher/model"
    assert set(asked) == {"embedded-student"}


def test_a_second_adapter_on_a_stage_s_own_is_refused_before_the_first(asked: list[str]) -> None:
    added = "+trainer.peft_config={_target_: peft.LoraConfig, r: 4}"
    with pytest.raises(SettingError) as error:
        plan("experiment=smollm2-bank", added)
    assert "stages.teacher: trainer.peft_config=" in str(error.value)
    assert "runs/smollm2-bank/student/model is an adapter of a stage before" in str(error.value)


def test_who_plays_on_from_inside_a_stage_s_episodes(asked: list[str], tmp_path: Path) -> None:
    config = compose("train", ["experiment=smollm2-bank", f"run_dir={tmp_path}"])
    OmegaConf.save(config, tmp_path / "config.yaml")
    for stage in planned(config, ["experiment=smollm2-bank", "student.lora={r: 4}"]):
        (tmp_path / stage.name / "model").mkdir(parents=True)
        OmegaConf.save(stage.config, tmp_path / stage.name / "config.yaml")
    for name in ("student", "on-policy"):
        node = explaining._student(tmp_path, explaining._config(tmp_path), name, Question())
        assert (node.model, node.lora) == (str(tmp_path / name / "model"), None)


def rows(run: Path) -> Counter[str]:
    return Counter(it["row"] for it in episodes(run))


def episodes(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]


@pytest.mark.timeout(600)
def test_a_run_goes_on_with_the_stage_that_was_under_way(journeyman: Any, tmp_path: Path) -> None:
    for name, text in EXPERIMENTS.items():
        file = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package _global_\n{text}")
    run = tmp_path / "run"
    folder = ("--config-dir", tmp_path / "conf")
    command = ("train", *folder, "experiment=two", f"run_dir={run}", "threads=1")

    stages = "journeyman.agents.runs.stages"
    killed = journeyman(*command, before=KILL.format(module=stages, name="train", call=2))
    assert killed.status == -signal.SIGKILL, killed.stderr
    assert rows(run) == {"no-op": 4, "oracle": 4, "warm": 4}
    assert not (run / "taught").exists()
    made = (run / "warm" / "model" / "model.safetensors").stat().st_mtime_ns

    killed = journeyman(*command, before=KILL.format(module=stages, name="evaluate", call=2))
    assert killed.status == -signal.SIGKILL, killed.stderr
    assert (run / "taught" / "table.txt").exists() and not (run / "table.txt").exists()

    ended = journeyman(*command)
    assert ended.status == 0, ended.stderr
    assert (run / "warm" / "model" / "model.safetensors").stat().st_mtime_ns == made
    # Nobody played twice, and each row is of the model that its stage made.
    assert rows(run) == {"no-op": 4, "oracle": 4, "warm": 4, "taught": 4}
    weights = {it["row"]: it["weights"] for it in episodes(run)}
    for name in ("warm", "taught"):
        student = load_student(
            str(run / name / "model"), None, "names", max_turn_tokens=48, max_context=640
        )
        assert weights[name] == fingerprint(student.at(temperature=0.0))
    assert weights["warm"] != weights["taught"]
    config = OmegaConf.load(run / "taught" / "config.yaml")
    assert config.student.model == f"{run}/warm/model"
    assert (config.steps, config.env.kwargs.max_turns) == (1, 3)  # the later experiment counts

    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["rows"]) == ["no-op", "oracle", "warm", "taught"]
    curves = {key for entry in summary["history"] for key in entry}
    assert curves == {"step", "warm loss", "taught loss", "taught rollout/success"}
    assert (run / "plot.png").stat().st_size > 10_000
    table = (run / "table.txt").read_text()
    assert [line.split("  ")[0] for line in table.splitlines()[2:6]] == list(summary["rows"])
    again = journeyman(*command)
    assert again.status == 0 and "is finished" in again.stdout and table in again.stdout


def test_where_nothing_was_evaluated_the_table_says_so(tmp_path: Path) -> None:
    finish(tmp_path, {}, OmegaConf.create({}), 1.0)
    (table,) = tmp_path.iterdir()
    assert table.name == "table.txt"
    assert table.read_text() == "trained without evaluation (evaluation.tasks=0)\n"
