"""What the trainer descends is what the paper says: float64 against a reference without tricks.

The reference knows no padding, no batches, no microbatches, no cache and no kernel: one episode at
a time, one token at a time.
"""

import copy
import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import DistillationConfig

from journeyman.agents.credit import TokenCredit, Uniform
from journeyman.agents.errors import SettingError
from journeyman.agents.learning.collector import Collector
from journeyman.agents.learning.losses import (
    JSD,
    EntropyAwareKL,
    ImportantTokens,
    Loss,
    NoLoss,
    SampledReverseKL,
    SkewedKL,
    TeacherView,
    TopKReverseKL,
)
from journeyman.agents.learning.samples import to_batch
from journeyman.agents.learning.trainers.distill import OnPolicyDistillation, Schedule
from journeyman.agents.networks import sharing
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.teachers import Annotations, Detail
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.envs import Episode, StopReason

from .tiny import broken, chat, episode, gpt2, tokenizer

VOCABULARY = 40
PAD = 0
Gradients = dict[str, Tensor]


class Setting:
    """A trainer whose episodes are given, not played."""

    def __init__(
        self,
        folder: Path,
        loss: float | Loss,
        batch: int,
        accumulation: int,
        steps: int = 1,
        top_k: int = 64,
    ) -> None:
        """`loss` is one, or the beta of the divergence."""
        self.student = gpt2(VOCABULARY, width=16, seed=1).double()
        self.teacher = gpt2(VOCABULARY, width=24, seed=2).double()
        args = DistillationConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,  # no clipping
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
        )
        descent = torch.optim.SGD(self.student.parameters(), lr=1.0)
        constant = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: 1.0)
        loss = loss if isinstance(loss, Loss) else JSD(loss)
        self.collector = Collector(
            HFPlayer(self.student, chat(), Sampling(max_tokens=8)),
            Uniform(),
            LocalTeacher(self.teacher, tokenizer(), top_k=top_k),
            loss.needs,
        )
        self.trainer = OnPolicyDistillation(
            self.collector,
            loss,
            args,
            [TaskRef("acme/Env-v0", f"train/{i}") for i in range(batch * accumulation * steps)],
            Schedule(steps_per_generation=steps),
            optimizers=(descent, constant),
        )

    def views(self, batch: dict[str, Tensor]) -> list[TeacherView]:
        """What the teacher says of the tokens that are in a batch, asked as a rollout asks it."""
        annotations = Annotations(self.collector.teacher, self.collector.detail or Detail.SAMPLED)
        return self.collector._views(rows_of(batch), annotations)

    def train(self, monkeypatch: pytest.MonkeyPatch, batch: dict[str, Tensor]) -> Gradients:
        """The sum of the steps' gradients, read off the weights: descent at rate 1."""
        rollouts: list[int] = []

        def play(inputs: Sequence[Any]) -> dict[str, Tensor]:
            rollouts.append(len(inputs))
            self.trainer._views = self.views(batch)
            return dict(batch)

        monkeypatch.setattr(self.trainer, "_generate_and_score_completions", play)
        before = {n: p.detach().clone() for n, p in self.student.named_parameters()}
        self.trainer.train()
        assert self.trainer.state.global_step == self.trainer.args.max_steps
        assert rollouts == [len(batch["prompt_ids"])]
        return {n: before[n] - p.detach() for n, p in self.student.named_parameters()}

    def gradient(self, batch: dict[str, Tensor]) -> Gradients:
        """Of the loss alone."""
        self.trainer._views = self.views(batch)
        self.student.zero_grad()
        loss, _, _ = self.trainer._compute_loss(self.student, batch, batch["num_items_in_batch"])
        loss.backward()
        return {n: p.grad.clone() for n, p in self.student.named_parameters() if p.grad is not None}


def rows_of(batch: dict[str, Tensor]) -> list[Episode]:
    """The episodes that are in a batch, by its own tensors: whatever a test changed there."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    real = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1).bool()
    chosen = torch.cat([torch.zeros_like(batch["prompt_mask"]), batch["tool_mask"]], 1).bool()
    rows = []
    for i, there in enumerate(real):
        tokens, mask = ids[i][there].tolist(), chosen[i][there].tolist()
        stop = StopReason.ANSWERED if any(mask) else StopReason.INFRA_ERROR
        logprobs = (0.0,) * len(tokens)
        rows.append(Episode("acme/Env-v0", f"{i}", tuple(tokens), logprobs, tuple(mask), (), stop))
    return rows


def batch_of(episodes: Sequence[Episode], credit: Sequence[TokenCredit]) -> dict[str, Tensor]:
    """A rollout's rows as the collector hands them out."""
    return to_batch(episodes, credit, PAD) | {"row": torch.arange(len(episodes))}


def random_credit(episodes: Sequence[Episode], seed: int) -> list[TokenCredit]:
    noise = torch.Generator().manual_seed(seed)
    return [
        TokenCredit(
            torch.rand(len(e.tokens), generator=noise) * 2,
            torch.randn(len(e.tokens), generator=noise),
        )
        for e in episodes
    ]


def ragged(seed: int, count: int) -> list[Episode]:
    """Episodes of one to four turns; among them two that broke, one of them before its prompt."""
    rng = random.Random(seed)
    played = [episode(rng, VOCABULARY, turns=1 + i % 4) for i in range(count - 2)]
    halfway = episode(rng, VOCABULARY, stop=StopReason.INFRA_ERROR)
    return [*played[:1], broken(reset=True), *played[1:], halfway]


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Of two distributions [V], by definition."""
    if beta == 0:
        return (teacher * (teacher / student).log()).sum()
    if beta == 1:
        return (student * (student / teacher).log()).sum()
    mean = beta * teacher + (1 - beta) * student
    return (
        beta * (teacher * (teacher / mean).log()).sum()
        + (1 - beta) * (student * (student / mean).log()).sum()
    )


Measure = Callable[[Tensor, Tensor, int, float], Tensor]
"""Of student and teacher [V], of the token that was chosen and its log-probability then: a loss."""


def with_bucket(student: Tensor, teacher: Tensor, token: int, then: float) -> Tensor:
    """Reverse KL over the teacher's five most probable tokens and all others as one."""
    best = teacher.argsort(descending=True)[:5].tolist()
    pairs = [(student[i], teacher[i]) for i in best]
    pairs.append((1 - sum(p for p, _ in pairs), 1 - sum(q for _, q in pairs)))
    return sum((p * (p / q).log() for p, q in pairs), torch.zeros((), dtype=torch.float64))


def clipped(student: Tensor, teacher: Tensor, token: int, then: float) -> Tensor:
    """PPO's loss of one token, whose advantage is the log-ratio it had, within 3 nats."""
    advantage = max(-3.0, min(3.0, math.log(float(teacher[token])) - then))
    ratio = student[token] / math.exp(then)
    bounded = ratio if 0.8 < ratio.item() < 1.2 else ratio.detach().clamp(0.8, 1.2)
    return -min(ratio * advantage, bounded * advantage, key=Tensor.item)


def nothing(student: Tensor, teacher: Tensor, token: int, then: float) -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def reference(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    episodes: Sequence[Episode],
    credit: Sequence[TokenCredit],
    loss: float | Measure,
    clip: float = math.inf,
) -> Gradients:
    """Of the loss, or of the divergence with that beta, and of the policy gradient."""
    measure = loss if callable(loss) else lambda s, t, *_: divergence(s, t, loss)
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for played, share in zip(episodes, credit, strict=True):
        if played.stop is StopReason.INFRA_ERROR:
            continue
        ids = torch.tensor([played.tokens])
        ours = student(ids).logits[0].softmax(-1)
        theirs = teacher(ids).logits[0].softmax(-1).detach()
        for i, token in enumerate(played.tokens):
            if played.mask[i]:
                count += 1
                value = measure(ours[i - 1], theirs[i - 1], token, played.logprobs[i])
                total = total + share.weights[i] * value
                ratio = ours[i - 1, token] / math.exp(played.logprobs[i])
                bounded = ratio if abs(ratio.item() - 1) < clip else ratio.detach()
                bounded = bounded.clamp(1 - clip, 1 + clip)
                gains = (ratio * share.advantages[i], bounded * share.advantages[i])
                total = total - min(gains, key=Tensor.item)
    names, parameters = zip(*student.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total / count, parameters), strict=True))


def assert_equal(ours: Gradients, theirs: Gradients, atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name], gradient, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)], ids=["whole", "in parts"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_step_of_the_trainer_is_the_reference(
    beta: float,
    batch: int,
    accumulation: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = Setting(tmp_path, beta, batch, accumulation)
    episodes = ragged(seed=3, count=8)
    credit = random_credit(episodes, seed=4)
    expected = reference(setting.student, setting.teacher, episodes, credit, beta)
    assert max(float(g.abs().max()) for g in expected.values()) > 0.1
    found = setting.train(monkeypatch, batch_of(episodes, credit))
    assert_equal(found, expected, atol=1e-8)


def test_steps_that_share_a_rollout_each_descend_on_their_own_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, 0.5, batch=2, accumulation=2, steps=2)
    episodes = ragged(seed=5, count=8)
    credit = random_credit(episodes, seed=6)
    monkeypatch.setattr(Schedule, "dealt", lambda self, rows, first, key: list(range(rows)))
    student, expected = copy.deepcopy(setting.student), Counter[str]()
    for share in (slice(0, 4), slice(4, 8)):
        step = reference(student, setting.teacher, episodes[share], credit[share], 0.5)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                parameter -= step[name]
        expected.update(step)
    found = setting.train(monkeypatch, batch_of(episodes, credit))
    assert_equal(found, dict(expected), atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_loss_on_many_layouts(seed: int, beta: float, tmp_path: Path) -> None:
    setting = Setting(tmp_path, beta, 6, 1)
    episodes = ragged(seed, count=6)
    credit = random_credit(episodes, seed)
    expected = reference(setting.student, setting.teacher, episodes, credit, beta)
    assert_equal(setting.gradient(batch_of(episodes, credit)), expected, atol=1e-8)


def test_the_teacher_reads_the_batch_it_is_asked_about() -> None:
    episodes = ragged(3, count=8)
    found = rows_of(batch_of(episodes, random_credit(episodes, 4)))
    for ours, theirs in zip(found, episodes, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.mask == theirs.mask or theirs.stop is StopReason.INFRA_ERROR
        assert (ours.stop is StopReason.INFRA_ERROR) == (theirs.stop is StopReason.INFRA_ERROR)


def skewed(student: Tensor, teacher: Tensor, token: int, then: float) -> Tensor:
    """The teacher against nine parts of the student and one of its own."""
    return (teacher * (teacher / (0.1 * teacher + 0.9 * student)).log()).sum()


def skewed_back(student: Tensor, teacher: Tensor, token: int, then: float) -> Tensor:
    return skewed(teacher, student, token, then)


UNSURE = 2.8
"""Entropy, in nats; about half of the teacher's are above it."""


def entropy_aware(student: Tensor, teacher: Tensor, token: int, then: float) -> Tensor:
    """Both divergences where the teacher is unsure."""
    unsure = -(teacher * teacher.log()).sum().item() > UNSURE
    reverse = divergence(student, teacher, 1.0)
    return reverse + 2 * divergence(student, teacher, 0.0) if unsure else reverse


OTHERS: dict[str, tuple[Loss, Measure]] = {
    "skewed": (SkewedKL(), skewed),
    "skewed reverse": (SkewedKL(reverse=True), skewed_back),
    "entropy aware": (EntropyAwareKL(UNSURE, 2.0), entropy_aware),
    "top_k": (TopKReverseKL(), with_bucket),
    "sampled": (SampledReverseKL(clip=0.2, most=3.0), clipped),
    "none": (NoLoss(), nothing),
}


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)], ids=["whole", "in parts"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_step_with_another_loss_is_the_reference(
    name: str,
    batch: int,
    accumulation: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss, measure = OTHERS[name]
    setting = Setting(tmp_path, loss, batch, accumulation, top_k=5)
    episodes = ragged(seed=3, count=8)
    credit = random_credit(episodes, seed=4)
    expected = reference(setting.student, setting.teacher, episodes, credit, measure)
    plain = reference(setting.student, setting.teacher, episodes, credit, 1.0)
    for other in (plain, {n: torch.zeros_like(g) for n, g in plain.items()}):
        assert max(float((expected[n] - other[n]).abs().max()) for n in expected) > 0.1
    found = setting.train(monkeypatch, batch_of(episodes, credit))
    assert_equal(found, expected, atol=1e-8)


def test_a_step_with_important_tokens_is_the_mean_over_them(tmp_path: Path) -> None:
    setting = Setting(tmp_path, ImportantTokens(0.3), 6, 1)
    episodes = ragged(seed=3, count=6)
    # All have a weight: one without is not chosen among (`test_distillation_losses.py`).
    credit = [TokenCredit(c.weights + 0.1, c.advantages * 0) for c in random_credit(episodes, 4)]
    found: list[tuple[float, float]] = []

    def noted(student: Tensor, teacher: Tensor, token: int, then: float) -> Tensor:
        value = divergence(student, teacher, 1.0)
        found.append((-(student * student.log()).sum().item(), value.item()))
        return value

    reference(setting.student, setting.teacher, episodes, credit, noted)
    least, most = ([f(column) for column in zip(*found, strict=True)] for f in (min, max))
    scores = [
        1
        - (1 - (h - least[0]) / (most[0] - least[0])) * (1 - (d - least[1]) / (most[1] - least[1]))
        for h, d in found
    ]
    count = math.ceil(0.3 * len(scores))
    bar = sorted(scores, reverse=True)[count - 1]
    turn = iter(scores)

    def kept(student: Tensor, teacher: Tensor, token: int, then: float) -> Tensor:
        value = divergence(student, teacher, 1.0)
        return value * (len(scores) / count) * (next(turn) >= bar)

    expected = reference(setting.student, setting.teacher, episodes, credit, kept)
    assert max(float(g.abs().max()) for g in expected.values()) > 0.1
    assert_equal(setting.gradient(batch_of(episodes, credit)), expected, atol=1e-8)


def test_a_policy_gradient_can_be_clipped(tmp_path: Path) -> None:
    setting = Setting(tmp_path, NoLoss(), 6, 1)
    episodes = ragged(seed=3, count=6)
    # As they were sampled by a policy that was nearly this one.
    noise = random.Random(0)
    with torch.no_grad():
        for i, played in enumerate(episodes):
            if not any(played.mask):
                continue
            logp = setting.student(torch.tensor([played.tokens])).logits[0].log_softmax(-1)
            then = [0.0, *logp[:-1].gather(1, torch.tensor(played.tokens)[1:, None])[:, 0].tolist()]
            then = [it + noise.gauss(0, 0.3) for it in then]
            episodes[i] = dataclasses.replace(played, logprobs=tuple(then))
    credit = random_credit(episodes, seed=4)
    rows = batch_of(episodes, credit)
    rows["sampled_logprobs"] = rows["sampled_logprobs"].double()
    before: Gradients = {}
    for clip in (0.0, 0.2):
        expected = reference(
            *(setting.student, setting.teacher, episodes, credit, nothing), clip or math.inf
        )
        setting.trainer._schedule = Schedule(clip=clip)
        assert_equal(setting.gradient(rows), expected, atol=1e-6)  # ratios are float32's
        if clip:
            with pytest.raises(AssertionError):
                assert_equal(before, expected, atol=1e-3)
        before = expected


@pytest.mark.parametrize("clip", [-0.1, 1.5, True])
def test_a_clip_out_of_its_range_is_refused(clip: float) -> None:
    with pytest.raises(SettingError, match=rf"^trainer\.clip={clip}: expected 0 to 1"):
        Schedule(clip=clip)


def test_without_advantages_there_is_distillation_alone(tmp_path: Path) -> None:
    setting = Setting(tmp_path, 1.0, 6, 1)
    episodes = ragged(7, count=6)
    credit = [TokenCredit(c.weights, c.advantages * 0) for c in random_credit(episodes, 7)]
    expected = reference(setting.student, setting.teacher, episodes, credit, 1.0)
    assert_equal(setting.gradient(batch_of(episodes, credit)), expected, atol=1e-8)


EVERY: dict[str, Loss] = {
    "jsd": JSD(0.5),
    "important": ImportantTokens(0.5),
    **{name: loss for name, (loss, _) in OTHERS.items() if name != "none"},
}


@pytest.fixture(params=EVERY)
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Setting:
    return Setting(tmp_path, EVERY[request.param], 6, 1)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    episodes = ragged(11, count=6)
    return batch_of(episodes, random_credit(episodes, 12))


def unchosen(batch: dict[str, Tensor]) -> Tensor:
    return batch["tool_mask"] == 0


def changed(name: str, value: Callable[[Tensor], Tensor]) -> Any:
    return pytest.param(name, value, id=name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        changed("weights", lambda t: t + 1e6),
        changed("advantages", lambda t: t - 1e6),
        changed("sampled_logprobs", lambda t: t - 50),
        changed("turns", lambda t: t + 1),
    ],
)
def test_credit_of_other_tokens_has_no_effect(
    setting: Setting, batch: dict[str, Tensor], name: str, value: Callable[[Tensor], Tensor]
) -> None:
    elsewhere = unchosen(batch)
    assert elsewhere.any()
    before = setting.gradient(batch)
    other = batch | {name: torch.where(elsewhere, value(batch[name]), batch[name])}
    assert_equal(setting.gradient(other), before, atol=0)
    here = batch | {name: torch.where(elsewhere, batch[name], value(batch[name]))}
    if name != "turns":  # which is for the log alone
        with pytest.raises(AssertionError):
            assert_equal(setting.gradient(here), before, atol=0)


def test_the_divergence_at_other_tokens_has_no_effect(
    setting: Setting, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts and results are context: what either model would say there is never compared."""
    # All rows side by side, so that the hooks below know which is which.
    monkeypatch.setattr(
        sharing, "plan", lambda _model, rows, _most: [(list(range(len(rows))), None)]
    )
    before = setting.gradient(batch)
    # Both read rows with chosen tokens only, and each up to what its last one is predicted from.
    sent = [row.mask for row in rows_of(batch) if any(row.mask)]
    assert len(sent) < len(batch["row"])
    asked = [torch.tensor(mask[1:]).nonzero()[:, 0] for mask in sent]
    predicting = torch.zeros(len(sent), 1 + max(int(own[-1]) for own in asked)).bool()
    for i, own in enumerate(asked):
        predicting[i, own] = True
    assert not predicting.all()
    assert predicting.sum() == (~unchosen(batch)).sum()

    def shout(where: Tensor, loudness: float) -> Callable[..., Any]:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            states = output.last_hidden_state
            noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
            output.last_hidden_state = states + loudness * noise * where[..., None]
            return output

        return hook

    for model in (setting.teacher, setting.student):
        with model.base_model.register_forward_hook(shout(~predicting, 1e3)):
            assert_equal(setting.gradient(batch), before, atol=0)
        with (
            model.base_model.register_forward_hook(shout(predicting, 1.0)),
            pytest.raises(AssertionError),
        ):
            assert_equal(setting.gradient(batch), before, atol=0)


def test_what_follows_the_last_chosen_token_has_no_effect(
    setting: Setting, batch: dict[str, Tensor]
) -> None:
    """A forced end, a last result and padding are in no one's context: any token will do."""
    before = setting.gradient(batch)
    chosen = ~unchosen(batch)
    after = chosen.flip(1).cumsum(1).flip(1) == 0
    ids = torch.where(after, (batch["completion_ids"] + 1) % VOCABULARY, batch["completion_ids"])
    assert ((ids != batch["completion_ids"]) & (batch["completion_mask"] == 1)).any()
    assert_equal(setting.gradient(batch | {"completion_ids": ids}), before, atol=0)


def test_padding_has_no_effect(setting: Setting, batch: dict[str, Tensor]) -> None:
    before = setting.gradient(batch)
    other = dict(batch)
    for part in ("prompt", "completion"):
        ids, mask = batch[f"{part}_ids"], batch[f"{part}_mask"]
        assert (mask == 0).any()
        other[f"{part}_ids"] = torch.where(mask == 0, 17, ids)
    assert_equal(setting.gradient(other), before, atol=0)


def test_rows_of_a_tree_are_read_once_and_learned_from_alike(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every loss: what rows share is read once by student and teacher, and changes nothing."""
    rng = random.Random(7)
    first = episode(rng, VOCABULARY, turns=4)
    rows = [first, first]  # one is there twice
    for kept in (20, 15, 15, 12):
        other = tuple(rng.randrange(VOCABULARY) for _ in first.tokens[kept:])
        rows.append(dataclasses.replace(first, tokens=first.tokens[:kept] + other))
    batch = batch_of([*rows, broken(reset=True)], random_credit([*rows, broken()], 8))
    passed: list[int] = []

    def count(module: Any, given: Any, named: dict[str, Any]) -> None:
        passed.append(named["input_ids"].numel())

    found: dict[bool, Gradients] = {}
    tokens: dict[bool, int] = {}
    for shares in (False, True):
        with monkeypatch.context() as patch:
            if shares:
                patch.setattr(sharing, "CALL", 0)  # rows are so short that it would not be worth it
            else:
                patch.setattr(sharing, "_can_share", lambda *_: False)
            setting.gradient(batch)  # models are tried
            passed.clear()
            with (
                setting.student.base_model.register_forward_pre_hook(count, with_kwargs=True),
                setting.teacher.base_model.register_forward_pre_hook(count, with_kwargs=True),
            ):
                found[shares] = setting.gradient(batch)
        tokens[shares] = sum(passed)
    assert_equal(found[True], found[False], atol=1e-8)
    last = max(i for i, chosen in enumerate(first.mask) if chosen)
    unique = {row.tokens[: end + 1] for row in rows for end in range(last)}
    readers = tokens[False] // (len(rows) * last)
    assert readers in (1, 2)  # a loss may ask no teacher
    assert tokens[False] == readers * len(rows) * last
    assert tokens[True] == readers * len(unique) < tokens[False] / 1.8


def test_other_prompts_do_have_an_effect(setting: Setting, batch: dict[str, Tensor]) -> None:
    """Or the tests above would hold of a loss that reads nothing."""
    before = setting.gradient(batch)
    ids = (batch["prompt_ids"] + batch["prompt_mask"]) % VOCABULARY
    with pytest.raises(AssertionError):
        assert_equal(setting.gradient(batch | {"prompt_ids": ids}), before, atol=1e-8)


def test_a_batch_of_broken_episodes_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, 1.0, 2, 2)
    rng = random.Random(0)
    halfway = [episode(rng, VOCABULARY, stop=StopReason.INFRA_ERROR) for _ in range(2)]
    episodes = [broken(reset=True), *halfway, broken(reset=False)]
    found = setting.train(monkeypatch, batch_of(episodes, random_credit(episodes, 0)))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found.values())
    assert setting.trainer.state.log_history[0]["loss"] == 0


def test_a_step_weighs_in_proportion(setting: Setting) -> None:
    (played,) = [episode(random.Random(2), VOCABULARY, turns=3)]
    start, end = played.steps[1].span

    def gradient(weight: float) -> Gradients:
        weights = torch.ones(len(played.tokens))
        weights[start:end] = weight
        credit = [TokenCredit(weights, torch.zeros(len(played.tokens)))]
        return setting.gradient(batch_of([played], credit))

    # Where a weight is zero, tokens with a weight are chosen among others.
    least = 1 if isinstance(setting.trainer._loss, ImportantTokens) else 0
    without, once, thrice = (gradient(least + more) for more in (0, 1, 3))
    assert any((once[n] - without[n]).abs().max() > 1e-3 for n in once)
    expected = {n: without[n] + 3 * (once[n] - without[n]) for n in once}
    assert_equal(thrice, expected, atol=1e-12)
