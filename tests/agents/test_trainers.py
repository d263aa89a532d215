import ast
import copy
import dataclasses
import inspect
import math
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel
from trl import DistillationConfig, SFTConfig
from trl.trainer.utils import add_fused_lm_head

from journeyman.agents.credit import Credit, Outcome, Trace, Uniform
from journeyman.agents.credit.trees import Additive
from journeyman.agents.errors import AgentError, SettingError
from journeyman.agents.evaluation.scores import Scores
from journeyman.agents.learning.losses import (
    JSD,
    Loss,
    NoLoss,
    SampledReverseKL,
    TopKReverseKL,
)
from journeyman.agents.learning.trainers import distill, fused, sft
from journeyman.agents.learning.trainers import parts as trainer_parts
from journeyman.agents.learning.trainers.parts import Parts, tasks_needed
from journeyman.agents.networks import sharing
from journeyman.agents.networks.heads import backbone
from journeyman.agents.rollouts.demonstrations import demonstrate
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.search.evidence import Forest, TreeEpisode, TreeRollouts
from journeyman.agents.students.dialect import Dialect, Llama3
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.teachers import Detail, Signal, Teacher
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.envs import Episode, env_class, make

from .tiny import chat, gpt2, llama, tokenizer

ENV = "journeyman/Bank-v0"
COMMON: dict[str, Any] = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def bank_tasks(count: int) -> Sequence[TaskRef]:
    return [TaskRef(ENV, f"train/{i}", seed=i) for i in range(count)]


def make_parts(
    student: PreTrainedModel, credit: Credit | None = None, loss: Loss | None = None
) -> Parts:
    own = copy.deepcopy(tokenizer())  # a trainer may set its padding
    teacher = LocalTeacher(gpt2(len(own), width=48, seed=9), own)
    player = HFPlayer(student, Dialect(own, "names"), Sampling(max_tokens=6))
    return Parts(
        player, teacher, loss or JSD(1.0), credit or Uniform(), bank_tasks, {"max_turns": 3}
    )


def model_of(teacher: Any) -> PreTrainedModel:
    """A local teacher's model, which is nobody else's business."""
    assert isinstance(teacher, LocalTeacher)
    return teacher._model


def babbler() -> PreTrainedModel:
    """A student that mostly opens tool calls, so that its episodes have several turns."""
    model = gpt2(len(tokenizer()), seed=4)
    (opener,) = tokenizer().encode("<tool_call>")
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        model.get_input_embeddings().weight[opener] = 0.3
    return model


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def distillation(folder: Path, **kwargs: Any) -> DistillationConfig:
    arguments = COMMON | {"max_steps": 2, "per_device_train_batch_size": 4} | kwargs
    return DistillationConfig(output_dir=str(folder), **arguments)


def steps(trainer: Any) -> list[dict[str, float]]:
    """What was logged of each optimiser step."""
    return [record for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_steps_of_distillation(accumulation: int, tmp_path: Path) -> None:
    parts = make_parts(babbler(), Trace())
    before, taught = weights(parts.student.model), weights(model_of(parts.teacher))
    args = distillation(tmp_path, gradient_accumulation_steps=accumulation)
    trainer = distill.build(parts, args, rollout_batch=3)
    trainer.train()
    assert trainer.state.global_step == 2
    assert changed(parts.student.model, before) == before.keys()
    assert all(p.isfinite().all() for p in parts.student.model.parameters())
    assert changed(model_of(parts.teacher), taught) == set()
    first, second = steps(trainer)
    assert first.keys() == second.keys()
    for record in (first, second):
        assert record["loss"] > 0
        assert record["entropy"] > 0
        assert record["grad_norm"] > 0
        assert record["rollout/success"] == 0
        assert record["rollout/infra_errors"] == 0
        assert 1 < record["rollout/turns"] <= 3
        assert record["rollout/calls"] >= 1
        assert record["rollout/tokens"] >= 6
        assert record["rollout/seconds"] > 0
        assert record["rollout/tokens_per_s"] > 0
        assert all(record[f"divergence/turn_{turn}"] > 0 for turn in (1, 2, 3))
        assert "divergence/turn_4" not in record


def test_a_rollout_is_dealt_among_the_steps_that_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, learned = [], []
    parts = dataclasses.replace(
        make_parts(babbler()),
        rollouts=lambda player, tasks, *_: played.append(tasks) or rollout(player, tasks),
    )
    args = distillation(tmp_path, max_steps=5, per_device_train_batch_size=2)
    trainer = distill.build(parts, args, steps_per_generation=2)
    compute = trainer._compute_loss

    def counting(student: Any, inputs: dict[str, Tensor], count: Tensor) -> Any:
        learned.append(len(inputs["prompt_ids"]))
        assert int(count) == int(inputs["tool_mask"].sum())
        return compute(student, inputs, count)

    monkeypatch.setattr(trainer, "_compute_loss", counting)
    trainer.train()
    ids = [[task.task_id for task in tasks] for tasks in played]
    assert ids == [[f"train/{4 * i + j}" for j in range(4)] for i in range(3)]
    assert learned == [2] * 5
    rollouts = ["rollout/success" in record for record in steps(trainer)]
    assert rollouts == [True, False, True, False, True]


def test_a_rollout_can_be_learned_from_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = distillation(tmp_path, max_steps=8, per_device_train_batch_size=2)
    trainer = distill.build(make_parts(babbler()), args, steps_per_generation=2, num_iterations=2)
    generated: list[Tensor] = []
    learned: list[Tensor] = []
    generate, compute = trainer._generate_and_score_completions, trainer._compute_loss

    def generating(inputs: Any) -> Any:
        rows = generate(inputs)
        generated.append(rows["completion_ids"])
        return rows

    def computing(student: Any, inputs: dict[str, Tensor], count: Tensor) -> Any:
        learned.append(inputs["completion_ids"])
        return compute(student, inputs, count)

    monkeypatch.setattr(trainer, "_generate_and_score_completions", generating)
    monkeypatch.setattr(trainer, "_compute_loss", computing)
    trainer.train()
    assert len(trainer.train_dataset) == 8
    assert [len(ids) for ids in generated] == [4, 4]
    assert [len(ids) for ids in learned] == [2] * 8
    for iteration in range(4):  # two of each rollout, each of every episode once
        first, second = learned[2 * iteration : 2 * iteration + 2]
        rows = sorted(torch.cat([first, second]).tolist())
        assert rows == sorted(generated[iteration // 2].tolist())


def test_checkpoints_fall_between_rollouts(tmp_path: Path) -> None:
    args = distillation(tmp_path, max_steps=6, save_strategy="steps", save_steps=3)
    with pytest.raises(
        AgentError, match=r"save_steps=3: expected a multiple of .*generation=2 \* "
    ):
        distill.build(make_parts(babbler()), args, steps_per_generation=2)
    with pytest.raises(AgentError, match=r"\* num_iterations=2"):
        distill.build(make_parts(babbler()), args, num_iterations=2)
    distill.build(make_parts(babbler()), args, steps_per_generation=3)


def test_distillation_draws_the_student_to_the_teacher(tmp_path: Path) -> None:
    parts = make_parts(llama(len(tokenizer()), seed=4), loss=JSD(0.0))
    trainer = distill.build(parts, distillation(tmp_path, max_steps=6))
    trainer.train()
    losses = [record["loss"] for record in steps(trainer)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_run_gives_the_same_weights(tmp_path: Path) -> None:
    runs = []
    for name in ("first", "second"):
        parts = make_parts(babbler())
        distill.build(parts, distillation(tmp_path / name)).train()
        runs.append(weights(parts.student.model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_rollouts_depend_on_the_step_not_on_what_was_played(tmp_path: Path) -> None:
    trainer = distill.build(make_parts(babbler()), distillation(tmp_path))
    rows = [trainer.train_dataset[i] for i in range(4)]
    first = trainer._generate_and_score_completions(rows)
    again = trainer._generate_and_score_completions(rows)
    trainer.state.global_step = 1
    later = trainer._generate_and_score_completions(rows)
    assert torch.equal(first["completion_ids"], again["completion_ids"])
    assert not torch.equal(first["completion_ids"], later["completion_ids"])


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
def test_the_teacher_plays_what_the_student_does_not(lmbda: float, tmp_path: Path) -> None:
    played: dict[str, Any] = {}

    def playing(player: Any, tasks: Sequence[TaskRef], *rest: Any) -> Any:
        found = rollout(player, tasks, *rest)
        played.update({t.task_id: (player.model, e) for t, e in zip(tasks, found, strict=True)})
        return found

    parts = dataclasses.replace(make_parts(babbler()), rollouts=playing)
    trainer = distill.build(parts, distillation(tmp_path), lmbda=lmbda)
    trainer.model.train()
    rows = [trainer.train_dataset[i % 4] | {"task_id": f"train/{i}"} for i in range(24)]
    batch = trainer._generate_and_score_completions(rows)
    episodes = [played[row["task_id"]][1] for row in rows]
    theirs = [played[row["task_id"]][0] is model_of(parts.teacher) for row in rows]
    assert sum(theirs) == {0.0: 24, 0.5: 9, 1.0: 0}[lmbda]
    # Rows stay in the tasks' order, and each has the probabilities it was sampled with.
    chosen = batch["tool_mask"].bool()
    for i, episode in enumerate(episodes):
        own = [logprob for logprob, it in zip(episode.logprobs, episode.mask, strict=True) if it]
        assert batch["sampled_logprobs"][i][chosen[i]].tolist() == pytest.approx(own)
    metrics = trainer._metrics["train"]
    own = [e for e, it in zip(episodes, theirs, strict=True) if not it]
    written = [sum(e.mask) for e, it in zip(episodes, theirs, strict=True) if it]
    assert metrics["rollout/teacher_tokens"] == ([sum(written)] if written else [])
    assert metrics["rollout/student_tokens"] == [sum(sum(e.mask) for e in own)]
    assert metrics["rollout/env_steps"] == [sum(len(e.steps) for e in episodes)]
    calls = [sum(len(e.calls) for e in own) / len(own)] if own else []
    assert metrics["rollout/calls"] == calls
    assert metrics["rollout/infra_errors"] == [0]


def test_who_plays_must_be_a_probability_and_trees_are_the_students(tmp_path: Path) -> None:
    args = distillation(tmp_path)
    with pytest.raises(AgentError, match=r"trainer\.lmbda=1\.5: expected 0"):
        distill.build(make_parts(babbler()), args, lmbda=1.5)
    parts = dataclasses.replace(make_parts(babbler()), search=TreeRollouts(rows=4))
    with pytest.raises(AgentError, match=r"trainer\.lmbda=0\.5: a search grows"):
        distill.build(parts, args, lmbda=0.5)


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("credit", [Uniform(), Trace()])
def test_the_teacher_reads_each_row_of_a_rollout_once(
    credit: Credit, iterations: int, search: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks: search, credit or loss; and however often the rollout is learned from."""
    played: list[Sequence[Episode]] = []

    def record(step: int, episodes: Sequence[Episode], scores: Iterable[Scores]) -> None:
        played.append(episodes)
        for episode, found in zip(episodes, scores, strict=True):
            assert (found.log_ratio is not None) == any(episode.mask)

    parts = dataclasses.replace(make_parts(babbler(), credit), record=record)
    if search:
        parts = dataclasses.replace(parts, search=TreeRollouts(rows=4, trajectories=2))
    read: list[Episode] = []
    passed: list[int] = []
    annotate = LocalTeacher.annotate

    def reading(self: LocalTeacher, rows: Sequence[Episode], detail: Detail) -> Any:
        read.extend(rows)
        return annotate(self, rows, detail)

    def passing(module: Any, inputs: Any, given: dict[str, Any]) -> None:
        if not given["use_cache"]:  # what it reads; where it plays, there is a cache
            passed.append(len(given["input_ids"]))

    monkeypatch.setattr(LocalTeacher, "annotate", reading)
    monkeypatch.setattr(sharing, "_can_share", lambda *_: False)  # so that rows can be counted
    bare = backbone(model_of(parts.teacher))
    args = distillation(tmp_path, max_steps=2 * iterations, per_device_train_batch_size=8)
    trainer = distill.build(parts, args, num_iterations=iterations)
    with bare.register_forward_pre_hook(passing, with_kwargs=True):
        trainer.train()
    assert len(played) == 2
    rows = [episode for episodes in played for episode in episodes if any(episode.mask)]
    assert len(rows) > 8
    assert sorted(map(id, read)) == sorted(map(id, rows))
    assert sum(passed) == len(rows)


def test_a_loss_that_asks_nobody_needs_no_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_parts(babbler(), Outcome(weight=0.0), NoLoss())
    monkeypatch.setattr(LocalTeacher, "annotate", lambda *_: pytest.fail("it was asked"))
    trainer = distill.build(parts, distillation(tmp_path))
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("loss", [JSD(0.5), TopKReverseKL(), SampledReverseKL(), NoLoss()])
def test_two_steps_with_every_loss(loss: Loss, tmp_path: Path) -> None:
    parts = make_parts(babbler(), loss=loss)
    before = weights(parts.student.model)
    trainer = distill.build(parts, distillation(tmp_path), steps_per_generation=2)
    trainer.train()
    learned = set() if isinstance(loss, NoLoss) else before.keys()
    assert changed(parts.student.model, before) == learned
    for record in steps(trainer):
        assert record["entropy"] > 0
        assert (record["divergence/turn_1"] == 0) == isinstance(loss, NoLoss)


# --- without a teacher ----------------------------------------------------------------------------


def untaught(credit: Credit, loss: Loss) -> Parts:
    return dataclasses.replace(make_parts(babbler(), credit, loss), teacher=None)


def test_reinforcement_needs_no_teacher(tmp_path: Path) -> None:
    def paid(player: Any, tasks: Sequence[TaskRef], *rest: Any) -> list[Episode]:
        found = rollout(player, tasks, *rest)
        return [dataclasses.replace(e, reward=float(i % 2)) for i, e in enumerate(found)]

    parts = dataclasses.replace(untaught(Outcome(weight=0.0), NoLoss()), rollouts=paid)
    before = weights(parts.student.model)
    trainer = distill.build(parts, distillation(tmp_path))
    trainer.train()
    assert changed(parts.student.model, before) == before.keys()
    for record in steps(trainer):
        assert record["grad_norm"] > 0
        assert record["entropy"] > 0


def test_trees_grow_without_a_teacher(tmp_path: Path) -> None:
    parts = untaught(Additive(Outcome(weight=0.0)), NoLoss())
    parts = dataclasses.replace(parts, search=TreeRollouts(rows=4, trajectories=2))
    trainer = distill.build(parts, distillation(tmp_path, max_steps=1))
    trainer.train()
    (record,) = steps(trainer)
    assert record["search/env_steps"] > 0
    assert record["search/teacher_tokens"] == 0


@pytest.mark.parametrize(
    ("credit", "loss", "options", "asks"),
    [
        (Uniform(), JSD(1.0), {}, "the loss"),
        (Uniform(), SampledReverseKL(), {}, "the loss"),
        (Trace(), NoLoss(), {}, "credit=Trace"),
        (Additive(Trace()), NoLoss(), {}, "credit=Additive"),
        (Outcome(), NoLoss(), {"lmbda": 0.5}, "trainer.lmbda=0.5"),
    ],
)
def test_what_asks_for_a_teacher_is_refused_without_one(
    credit: Credit, loss: Loss, options: dict[str, float], asks: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=f"^teacher=none: {asks} asks for a teacher") as caught:
        distill.build(untaught(credit, loss), distillation(tmp_path), **options)
    assert "loss=none credit=outcome" in str(caught.value)


class Terse(Teacher):
    """One that tells of the sampled token alone, and plays nothing."""

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        assert detail is Detail.SAMPLED
        return [Signal(torch.full((len(row.tokens),), -1.0)) for row in rows]


def test_a_teacher_tells_what_it_can(tmp_path: Path) -> None:
    parts = dataclasses.replace(make_parts(babbler(), Trace()), teacher=Terse())
    args = distillation(tmp_path)
    for loss in (JSD(), TopKReverseKL()):
        assert loss.needs is not None
        message = f"the loss needs {loss.needs.name.lower()} of the teacher, and Terse gives sam"
        with pytest.raises(SettingError, match=message):
            distill.build(dataclasses.replace(parts, loss=loss), args)
    with pytest.raises(SettingError, match=r"trainer\.lmbda=0\.0: the teacher cannot play"):
        distill.build(dataclasses.replace(parts, loss=NoLoss()), args, lmbda=0.0)
    parts = dataclasses.replace(parts, loss=SampledReverseKL())
    before = weights(parts.student.model)
    distill.build(parts, args).train()
    assert changed(parts.student.model, before) == before.keys()


def searching(folder: Path, credit: Credit, **settings: Any) -> Any:
    """A trainer of eight rows: two tasks' trees."""
    search = TreeRollouts(rows=4, trajectories=1, **settings)
    parts = dataclasses.replace(make_parts(babbler(), credit), search=search)
    args = distillation(folder, per_device_train_batch_size=8, max_steps=1)
    return distill.build(parts, args)


def test_rows_that_a_budget_saves_count_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no lost episodes: not in what is logged, and not in a mean that credit takes."""
    trainer = searching(tmp_path, Outcome(), env_steps=0)
    play = TreeRollouts.play

    def winning(*args: Any) -> Forest:
        forest = play(*args)
        return dataclasses.replace(forest, rows=[_won(row) for row in forest.rows])

    monkeypatch.setattr(TreeRollouts, "play", winning)
    trainer.model.train()
    data = trainer.train_dataset
    batch = trainer._generate_and_score_completions([data[0]] * 4 + [data[1]] * 4)
    metrics = trainer._metrics["train"]
    assert metrics["rollout/success"] == [1.0]
    assert metrics["rollout/tokens"] == [float(batch["tool_mask"].sum()) / 2]
    assert len(batch["tool_mask"]) == 8
    assert (batch["tool_mask"].sum(1) > 0).tolist() == [True] * 2 + [False] * 6
    assert not batch["advantages"].any()  # all won


def _won(row: TreeEpisode) -> TreeEpisode:
    episode = dataclasses.replace(row.episode, success=True, reward=1.0)
    return dataclasses.replace(row, episode=episode)


@pytest.mark.parametrize("search", [True, False])
def test_a_rollout_whose_environments_all_break_stops_the_run(
    search: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(self: Any, task: Any) -> None:
        raise ConnectionError("the bank is gone")

    monkeypatch.setattr(env_class("journeyman/Bank-v0"), "open_state", closed)
    plain = distill.build(make_parts(babbler()), distillation(tmp_path))
    trainer = searching(tmp_path, Additive(Trace())) if search else plain
    with pytest.raises(
        AgentError, match=r"every episode of a rollout broke .* from the last check"
    ):
        trainer.train()


@pytest.mark.parametrize("training", [True, False])
def test_rollouts_leave_the_models_mode(training: bool, tmp_path: Path) -> None:
    trainer = distill.build(make_parts(babbler()), distillation(tmp_path))
    trainer.model.train(training)
    trainer._generate_and_score_completions([trainer.train_dataset[0]])
    assert trainer.model.training == training
    mode, other = ("train", "eval") if training else ("eval", "train")
    assert trainer._metrics[mode]["rollout/success"] == [0.0]
    assert "rollout/success" not in trainer._metrics[other]


LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def test_lora_trains_the_adapter_alone(tmp_path: Path) -> None:
    parts = make_parts(llama(len(tokenizer()), seed=4))
    trainer = distill.build(parts, distillation(tmp_path), peft_config=copy.deepcopy(LORA))
    before = weights(trainer.model)
    trainer.train()
    names = changed(trainer.model, before)
    assert names
    assert all("lora_" in name for name in names)
    # What is played is what is trained.
    assert any("lora_" in name for name, _ in parts.student.model.named_parameters())


def tuning(folder: Path, **kwargs: Any) -> SFTConfig:
    arguments = COMMON | {"max_steps": 2, "per_device_train_batch_size": 4, "max_length": None}
    return SFTConfig(output_dir=str(folder), **arguments | kwargs)


def test_demonstrations_are_learnt(tmp_path: Path) -> None:
    parts = make_parts(llama(len(tokenizer()), seed=4))
    before = weights(parts.student.model)
    trainer = sft.build(parts, tuning(tmp_path, max_steps=6), error_rate=0.3)
    trainer.train()
    assert trainer.state.global_step == 6
    assert changed(parts.student.model, before) == before.keys()
    records = steps(trainer)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert {"loss", "grad_norm", "learning_rate", "mean_token_accuracy"} <= records[0].keys()


RETAINED = """
import sys
import numpy as np
from journeyman.agents.learning.trainers import parts

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024

if sys.argv[1] == "returned":
    parts._return_what_is_freed()
large = np.ones(24 << 17)  # 24 MB: once it is freed, blocks as large are kept
del large
before, kept = resident(), []
for _ in range(2):
    large = []
    for _ in range(16):
        large.append(np.ones(16 << 17))
        kept.append(np.ones(1 << 15))
    del large
print(resident() - before - sum(it.nbytes for it in kept) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such knob")
def test_blocks_between_those_that_are_kept_are_given_back() -> None:
    def retained(how: str) -> float:
        command = [sys.executable, "-P", "-c", RETAINED, how]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert retained("returned") < 16
    assert retained("kept") > 128


@pytest.mark.parametrize("checkpointing", [True, False])
def test_who_forms_activations_again_gets_their_memory_back(
    checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(trainer_parts, "_return_what_is_freed", lambda: asked.append(True))
    args = tuning(tmp_path, max_steps=1, gradient_checkpointing=checkpointing)
    sft.build(make_parts(llama(len(tokenizer()), seed=4)), args).train()
    assert bool(asked) is checkpointing


def test_loss_falls_on_right_turns_alone(tmp_path: Path) -> None:
    """The first logged loss is the mean cross-entropy of the demonstrations' own mask."""
    parts = make_parts(llama(len(tokenizer()), seed=4))
    env = make(ENV, max_turns=64)
    values = []
    for task in bank_tasks(4):
        row = demonstrate(env, task.task_id, chat(), 0.5)
        ids, mask = torch.tensor([row.tokens]), torch.tensor(row.mask)
        with torch.no_grad():
            logits = parts.student.model(ids).logits[0, :-1]
        values.append(cross_entropy(logits, ids[0, 1:], reduction="none")[mask[1:]])
    trainer = sft.build(parts, tuning(tmp_path, max_steps=1), error_rate=0.5)
    trainer.train()
    assert steps(trainer)[0]["loss"] == pytest.approx(float(torch.cat(values).mean()), rel=1e-3)


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules=["q_proj"])])
def test_supervised_rows_are_read_once_and_scored_where_there_is_loss(
    adapter: LoraConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TRL's own forward says of them, of fewer tokens, and the same gradients."""
    parts = make_parts(llama(len(tokenizer()), seed=4))
    more = {} if adapter is None else {"peft_config": adapter}
    trainer = sft.build(parts, tuning(tmp_path, max_steps=1), error_rate=0.5, **more)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    model: Any = trainer.model
    bare = model.get_base_model() if adapter is not None else model
    seen: dict[str, int] = {}
    monkeypatch.setattr(
        fused, "states_at", lambda *it: _counted(seen, "scored", sharing.states_at(*it))
    )
    bare.base_model.register_forward_pre_hook(
        lambda _, args, given: seen.update(read=given["input_ids"].numel()), with_kwargs=True
    )

    def asked() -> tuple[Any, dict[str, Tensor]]:
        model.zero_grad()
        found = model(**batch, use_cache=False, fused_lm_head=True)
        found.log_probs.sum().backward()
        return found, {
            name: it.grad for name, it in model.named_parameters() if it.grad is not None
        }

    ours, gradients = asked()
    labelled = int((batch["labels"][:, 1:] != fused.IGNORED).sum())
    assert seen["scored"] == labelled < batch["labels"].numel() / 2
    assert seen["read"] < batch["attention_mask"].sum()
    del bare.forward
    add_fused_lm_head(bare, outputs=("log_probs", "entropy", "is_top1"))
    theirs, expected = asked()
    assert seen["read"] == batch["input_ids"].numel()
    assert torch.equal(ours.label_mask, theirs.label_mask)
    assert torch.equal(ours.is_top1, theirs.is_top1)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs)
    torch.testing.assert_close(ours.entropy, theirs.entropy)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def _counted(seen: dict[str, int], name: str, states: Tensor) -> Tensor:
    seen[name] = len(states)
    return states


def test_what_else_a_model_is_asked_it_answers_as_before(tmp_path: Path) -> None:
    # Positions that are learned: `generate` makes them of the mask, of models that take them.
    model = gpt2(len(tokenizer()), seed=4).eval()
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6]])
    mask = (ids > 0).long()
    asked: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    before, written = model(ids, None, mask).logits, model.generate(ids, **asked)
    read: Any = sft.build(make_parts(model), tuning(tmp_path, max_steps=1)).model
    read.eval()
    assert "forward" in vars(read)
    assert torch.equal(read(ids, None, mask).logits, before)
    assert torch.equal(read.generate(ids, **asked), written)
    assert inspect.signature(read.forward).parameters.keys() >= {"token_type_ids", "logits_to_keep"}
    # A copy answers by its own weights.
    still = copy.deepcopy(read)
    with torch.no_grad():
        still.lm_head.weight.zero_()
    given = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    told = still(**given, use_cache=False, fused_lm_head=True).log_probs
    assert told.unique().tolist() == pytest.approx([-math.log(len(tokenizer())), 0.0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_read(side: str, tmp_path: Path) -> None:
    model = llama(len(tokenizer()), seed=4)
    read: Any = sft.build(make_parts(model), tuning(tmp_path, max_steps=1)).model
    rows = [[5, 6, 7], [5, 6, 8, 9, 10]]
    padded = [
        [0] * (5 - len(it)) + it if side == "left" else it + [0] * (5 - len(it)) for it in rows
    ]
    ids = torch.tensor(padded)
    found = read(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        labels=ids.masked_fill(ids == 0, fused.IGNORED),
        use_cache=False,
        fused_lm_head=True,
    )
    for row, mask, values in zip(rows, found.label_mask, found.log_probs, strict=True):
        one = torch.tensor([row])
        alone = read(one).logits[0, :-1].log_softmax(-1).gather(1, one[0, 1:, None])[:, 0]
        torch.testing.assert_close(values[mask], alone)


def test_routers_and_noise_are_left_to_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> Any:
        raise AssertionError("rows are read once")

    monkeypatch.setattr(fused, "states_at", read)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    routed = MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer()), **small, **heads))
    sft.build(make_parts(routed), tuning(tmp_path / "routed", max_steps=1)).train()
    noisy = tuning(tmp_path / "noisy", max_steps=1, neftune_noise_alpha=5.0)
    sft.build(make_parts(llama(len(tokenizer()), seed=4)), noisy).train()
    with pytest.raises(AssertionError, match="read once"):
        plain = tuning(tmp_path / "plain", max_steps=1)
        sft.build(make_parts(llama(len(tokenizer()), seed=4)), plain).train()


def test_demonstrations_are_played_in_the_environments_of_the_run() -> None:
    given = {"max_turns": 1}  # turns are not limited by it
    dialect = Llama3(tokenizer(), "names")
    rows = sft.demonstration_rows(bank_tasks(3), dialect, 0.3, given)
    for ids in rows["input_ids"]:
        text = chat().decode(ids)
        assert '{"name": "' in text
        assert '"parameters": ' in text
        assert "<tool_call>" not in text
        assert "Answer: " in text.rpartition("assistant")[2]


@pytest.mark.parametrize("name", ["beta", "temperature"])
def test_what_is_the_losss_is_refused_among_trls_arguments(name: str, tmp_path: Path) -> None:
    args = distillation(tmp_path, **{name: 0.5})
    jsd = "loss=jsd " if name == "beta" else ""
    with pytest.raises(
        SettingError, match=rf"^trainer\.args\.{name}=0\.5: .* write {jsd}loss\.{name}=0\.5"
    ):
        distill.build(make_parts(babbler()), args)


def test_the_trainer_stays_small() -> None:
    """What plays, judges and scores lives elsewhere: it was a class of everything once."""
    (found,) = (
        node
        for node in ast.parse(inspect.getsource(distill)).body
        if isinstance(node, ast.ClassDef) and node.name == "OnPolicyDistillation"
    )
    assert found.end_lineno is not None
    assert found.end_lineno - found.lineno + 1 <= 150
    (begin,) = (
        node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    taken = begin.args
    named = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
    names = [it.arg for it in named if it is not None]
    assert names[0] == "self"
    assert len(names) - 1 <= 6


def test_rows_of_a_run(tmp_path: Path) -> None:
    args = tuning(tmp_path, max_steps=3, gradient_accumulation_steps=2)
    assert tasks_needed(args) == 3 * 4 * 2
    with pytest.raises(ValueError, match="max_steps"):
        tasks_needed(tuning(tmp_path, max_steps=-1))
    assert tasks_needed(tuning(tmp_path, max_steps=5), steps_per_generation=4) == 8 * 4
    assert tasks_needed(tuning(tmp_path, max_steps=5), 2, num_iterations=2) == 2 * 2 * 4
