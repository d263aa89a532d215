"""Every config composes, and what it names exists and takes the arguments it is given."""

import importlib.resources
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from journeyman.agents.learning.trainers.callbacks import read_metrics
from journeyman.agents.networks.catalogue import available
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.runs.application import offer_options
from journeyman.agents.runs.train import settle
from journeyman.envs import env_ids
from journeyman.sandbox import Sandbox, Session

CONF = importlib.resources.files("journeyman.conf")
ROOTS = sorted(p.name.removesuffix(".yaml") for p in CONF.iterdir() if p.name.endswith(".yaml"))
GROUPS = {
    group.name: sorted(
        p.name.removesuffix(".yaml") for p in group.iterdir() if p.name.endswith(".yaml")
    )
    for group in CONF.iterdir()
    if group.is_dir() and not group.name.startswith("_")
}
COLLECTED = ("env", "student", "sandbox", "rollouts")
TAKEN = {"collect": COLLECTED, "eval": (*COLLECTED, "tracker"), "proxy": ("student",)}
"""Groups that fit these commands; all fit `train`."""

LIGHT = (
    "journeyman.agents.credit.",
    "journeyman.agents.learning.losses.",
    "journeyman.agents.rollouts.",
    "journeyman.agents.search.",
    "journeyman.agents.students.openai.",
    "journeyman.agents.teachers.no_teacher",
    "journeyman.sandbox.",
)
"""What is built wherever the tests run; models are built if they are on this machine."""

NEEDED = {
    ("student", "hf"): ["student.model=embedded-student"],
    ("student", "openai"): ["student.base_url=http://127.0.0.1:8000/v1"],
    ("credit", "judge"): ["credit.base_url=http://127.0.0.1:8000/v1"],
    ("method", "judge"): ["credit.base_url=http://127.0.0.1:8000/v1"],
    ("teacher", "hf"): ["teacher.model=embedded-teacher"],
    ("teacher", "cross_tokenizer"): ["teacher.model=embedded-teacher"],
    ("teacher", "router"): ["teacher.routes={}"],
    ("teacher", "mixture"): ["teacher.weights={}"],
}
"""Options that name nothing by themselves, and what they must be told."""

CHOICES = [
    (root, group, option)
    for root in ROOTS
    for group, options in GROUPS.items()
    for option in options
    if root == "train" or group in TAKEN[root]
]


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    offer_options()
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        yield


def nodes(config: Any) -> Iterator[DictConfig]:
    """Every node with a `_target_`, inner ones first."""
    if isinstance(config, DictConfig):
        for name in config:
            yield from nodes(config[name])
        if "_target_" in config:
            yield config


EXTRA = ("journeyman.agents.students.vllm.", "journeyman.agents.students.vllm_server.")
"""What needs an optional package, or a server: built by tests of its own."""


def check(node: DictConfig, folder: Path) -> None:
    """Build what can be built here; of the rest, check that the call would be accepted."""
    target = get_object(node._target_)
    keys = [str(name) for name in node if not str(name).startswith("_")]
    arguments = list(node.get("_args_", ()))
    signature = inspect.signature(target)
    if node.get("_partial_", False):
        signature.bind_partial(*arguments, **{name: node[name] for name in keys})
    else:
        signature.bind(*arguments, **{name: node[name] for name in keys})
    if node._target_.startswith("trl."):
        cpu = {} if torch.cuda.is_available() else {"use_cpu": True, "bf16": False}
        instantiate(node, output_dir=str(folder), **cpu)
    elif node._target_.startswith(EXTRA):
        return
    elif node._target_.startswith(LIGHT) or available().get(node.get("model")) is not None:
        instantiate(node)


def test_the_roots_are_the_ones_we_know() -> None:
    assert ROOTS == ["collect", "eval", "proxy", "train"]
    assert "sandbox" in GROUPS
    assert "experiment" in GROUPS


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_composes_and_instantiates(root: str, tmp_path: Path) -> None:
    config = compose(root)
    found = [node._target_ for node in nodes(config)]
    assert "journeyman.agents.students.hf.load_student" in found
    for node in nodes(config):
        check(node, tmp_path)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(("root", "group", "option"), CHOICES)
def test_an_option_composes_and_instantiates(
    root: str, group: str, option: str, tmp_path: Path
) -> None:
    config = compose(root, [f"{group}={option}", *NEEDED.get((group, option), [])])
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    # Experiments and methods reach everywhere, an option only into its own group.
    part = config if group in ("experiment", "method", "debug") else config[group]
    for node in nodes(part):
        check(node, tmp_path)


@pytest.mark.parametrize(("group", "option"), NEEDED)
def test_an_option_that_names_nothing_says_so(group: str, option: str) -> None:
    config = compose("train", [f"{group}={option}"])
    (needed,) = (override.partition("=")[0] for override in NEEDED[group, option])
    with pytest.raises(MissingMandatoryValue, match=needed):
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("root", [root for root in ROOTS if root != "proxy"])
def test_every_environment_is_an_option(root: str) -> None:
    ids = env_ids()
    assert len(ids) >= 4
    # The options are the same for every root: composing all of them once is enough.
    for env_id in ids if root == "train" else (ids[0], ids[-1]):
        assert compose(root, [f"env={env_id}"]).env == {"ids": [env_id], "kwargs": {}}


def test_an_environments_arguments_can_be_overridden() -> None:
    config = compose("train", ["env=journeyman/Bank-v0", "+env.kwargs.max_turns=3"])
    assert config.env.kwargs == {"max_turns": 3}


def test_what_is_trained_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("train", ["experiment=qwen3"])
    assert (config.student.dtype, config.teacher.dtype) == ("float32", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    settle(config)
    assert config.trainer.args.bf16  # the passes


@pytest.mark.parametrize("trainer", ["distill", "sft"])
@pytest.mark.parametrize(
    ("gpu", "knows", "said", "expected"),
    [
        (False, False, [], (True, False)),
        (True, True, [], (False, True)),
        (True, False, [], (False, False)),
        (True, True, ["trainer.args.use_cpu=true"], (True, False)),
        (True, True, ["trainer.args.bf16=false"], (False, False)),
        (True, True, ["+trainer.args.fp16=true"], (False, False)),
        (False, False, ["trainer.args.bf16=true"], (True, True)),
    ],
)
def test_the_machine_decides_where_nobody_says(
    gpu: bool,
    knows: bool,
    said: list[str],
    expected: tuple[bool, bool],
    trainer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: knows)
    config = compose("train", [f"trainer={trainer}", *said])
    settle(config)
    args = config.trainer.args
    assert (args.use_cpu, args.bf16) == expected


# --- the applications -----------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["train", "eval", "collect"])
def test_help_lists_the_groups(app: str, journeyman: Any) -> None:
    shown = journeyman(app, "--help")
    assert shown.status == 0, shown.stderr
    lines = shown.stdout.splitlines()
    for group, options in GROUPS.items():
        takes = app == "train" or group in TAKEN[app]
        assert (f"{group}: {', '.join(options)}" in lines) is takes
    names = [env_id.partition("/")[2] for env_id in env_ids()]
    assert f"env/journeyman: {', '.join(names)}" in lines
    assert f"journeyman {app}" in lines[0]


def test_the_config_can_be_printed(journeyman: Any) -> None:
    shown = journeyman("train", "--cfg", "job", "steps=7", "experiment=demo")
    assert shown.status == 0, shown.stderr
    printed = OmegaConf.create(shown.stdout)
    assert printed.steps == 7  # the command line beats the experiment
    assert printed.name == "demo"


NOTE_TASKS = """
from journeyman.agents.rollouts import rollout

played = rollout.played

def noted(player, tasks, *args, **kwargs):
    open("tasks", "w").write(" ".join(task.task_id for task in tasks))
    return played(player, tasks, *args, **kwargs)

rollout.played = noted
"""


def test_a_level_can_be_trained_on(tmp_path: Path, journeyman: Any) -> None:
    command = ("train", "debug=tiny", "steps=1", "evaluation.tasks=0", f"run_dir={tmp_path}")
    small = ("env.kwargs.max_turns=2", "student.max_turn_tokens=8")
    trained = journeyman(
        *command,
        *small,
        "split=train/hard",
        before=NOTE_TASKS.replace('"tasks"', repr(str(tmp_path / "tasks"))),
    )
    assert trained.status == 0, trained.stderr
    played = (tmp_path / "tasks").read_text().split()
    assert played == ["train/hard/0"] * 3 + ["train/hard/1"]
    assert f"model: {tmp_path / 'model'}\n" in trained.stdout


@pytest.mark.parametrize(
    "way",
    [("trainer=sft",), ("loss=none", "credit=outcome", "credit.weight=0", "seed=1")],
    ids=["supervised", "reinforced"],
)
def test_a_run_without_a_teacher(way: tuple[str, ...], tmp_path: Path, journeyman: Any) -> None:
    command = ("train", "debug=tiny", "steps=2", "evaluation.tasks=2", f"run_dir={tmp_path}")
    # Batches of which some succeed and some fail: of others, rewards alone say nothing.
    trained = journeyman(
        *command, *way, "teacher=none", "trainer.args.per_device_train_batch_size=8"
    )
    assert trained.status == 0, trained.stderr
    assert list(json.loads((tmp_path / "summary.json").read_text())["rows"]) == [
        "no-op",
        "oracle",
        "student before",
        "student after",
    ]
    logged = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in logged] == [1, 2]
    assert any(record["grad_norm"] > 0 for record in logged)


NOTE_SANDBOX = """
from journeyman.sandbox import Sandbox

session = Sandbox.session

def noted(self):
    print(self.backend.name, self.limits.wall_s, file=open({notes!r}, "a"))
    return session(self)

Sandbox.session = noted
"""
MIXED = "env.ids=[journeyman/Bank-v0,journeyman/Python-v0]"


def test_the_sandbox_reaches_the_environments_that_run_code(
    tmp_path: Path, journeyman: Any, bwrap: str
) -> None:
    notes = tmp_path / "notes"
    done = journeyman(
        *("eval", MIXED, "sandbox=namespace", "sandbox.limits.wall_s=7", "evaluation.tasks=2"),
        f"run_dir={tmp_path / 'run'}",
        before=NOTE_SANDBOX.format(notes=str(notes)),
    )
    assert done.status == 0, done.stderr
    opened = notes.read_text().splitlines()
    assert len(opened) > 1  # once before all else, and where the gold program runs
    assert set(opened) == {"namespace 7"}


def test_a_search_and_demonstrations_get_the_sandbox_too() -> None:
    from journeyman.agents.learning.trainers.sft import demonstration_rows
    from journeyman.agents.search.language import LanguageWorld
    from journeyman.agents.students.hf import load_student

    class Refused(Sandbox):
        def session(self) -> Session:
            raise RuntimeError("asked for a session")

    kwargs = {"sandbox": Refused()}
    player = load_student("embedded-student", render="names", max_turn_tokens=8)
    world = LanguageWorld(player, 2, kwargs)
    tasks = [TaskRef(f"journeyman/{name}-v0", "train/0") for name in ("Bank", "Python")]
    assert len(world.begin(tasks[:1])) == 1  # an environment that runs no code is not given it
    with pytest.raises(RuntimeError, match="asked for a session"):
        demonstration_rows(tasks, player.dialect, env_kwargs=kwargs)


def test_a_sandbox_that_cannot_be_had_is_said_at_once(tmp_path: Path, journeyman: Any) -> None:
    done = journeyman(
        *("eval", MIXED, "sandbox=docker", f"run_dir={tmp_path / 'run'}"),
        before="import os; os.environ['DOCKER_HOST'] = 'unix:///nowhere/docker.sock'",
    )
    assert done.status == 2, done.stderr
    assert "cannot isolate untrusted code: no Docker engine answers" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_gives_each_run_its_folder(tmp_path: Path, journeyman: Any) -> None:
    swept = journeyman(
        "train",
        "--multirun",
        "debug=tiny",
        "steps=1",
        "credit=attention,gae",
        "teacher.model=embedded-student",
        "evaluation.tasks=0",
        f"run_dir={tmp_path}",
    )
    assert swept.status == 0, swept.stderr
    models = sorted(path.parent.parent.name for path in tmp_path.rglob("model/model.safetensors"))
    assert len(models) == 2
    assert "credit=attention" in models[0]
    assert "credit=gae" in models[1]


def test_a_sweep_over_environments(tmp_path: Path, journeyman: Any) -> None:
    swept = journeyman(
        "eval",
        "--multirun",
        "env=journeyman/Bank-v0,journeyman/Orders-v0",
        "evaluation.tasks=2",
        f"run_dir={tmp_path}",
    )
    assert swept.status == 0, swept.stderr
    assert len(list(tmp_path.rglob("summary.json"))) == 2
