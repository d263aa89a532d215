"""What of an episode the student plays: teacher turns, turn limits, beginnings in the middle."""

import copy
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer

from journeyman.agents.credit import (
    Annealed,
    Credit,
    Experience,
    Outcome,
    ProgressAdvantage,
    TokenCredit,
    Uniform,
)
from journeyman.agents.credit.trees import Additive
from journeyman.agents.errors import SettingError, VocabularyMismatchError
from journeyman.agents.learning.curriculum import Curriculum
from journeyman.agents.learning.losses import JSD, Loss, NoLoss, SampledReverseKL
from journeyman.agents.learning.trainers import distill
from journeyman.agents.rollouts.guidance import GuidedPlayer
from journeyman.agents.rollouts.prefixes import Prefixes
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.search.evidence import TreeRollouts
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.students.scripted import ScriptedPlayer
from journeyman.agents.students.spoken import SpokenPlayer
from journeyman.agents.teachers import Annotations
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.envs import Episode, Message, StopReason, ToolEnv
from journeyman.tools import ToolSpec

from .test_gradients import assert_equal, clipped, reference
from .test_trainers import (
    ENV,
    Terse,
    babbler,
    bank_tasks,
    distillation,
    make_parts,
    model_of,
    steps,
    weights,
)
from .tiny import broken, chat, gpt2, llama, token_logprobs, tokenizer

TASKS = bank_tasks(8)
CALL = '<tool_call>\n{"name": "list_accounts", "arguments": {}}\n</tool_call>'


def guides(seed: int, share: float, turns: int) -> list[bool]:
    """Which turns of a conversation are the guide's, by its own dice."""
    coin = np.random.default_rng((seed, 2))
    return [bool(coin.random() < share) for _ in range(turns)]


# Schedules: functions of the optimiser step, and of nothing else


def test_guidance_fades_in_a_straight_line_and_stays_away() -> None:
    plan = Curriculum(guidance=0.8, guidance_steps=4)
    found = [plan.guided(step) for step in range(7)]
    assert found == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0])
    assert Curriculum().guided(0) == 0


def test_an_episode_may_have_a_turn_more_after_so_many_steps() -> None:
    plan = Curriculum(turns=2, turns_every=3)
    assert [plan.most_turns(step) for step in range(7)] == [2, 2, 2, 3, 3, 3, 4]
    assert Curriculum().most_turns(5) is None


def test_the_share_of_rows_that_begin_inside() -> None:
    for chance in (0.0, 0.3, 1.0):
        plan = Curriculum(replay=chance)
        count = sum(plan.replays(seed) for seed in range(2000))
        assert abs(count / 2000 - chance) <= 3 * math.sqrt(chance * (1 - chance) / 2000)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance": 1.5}, r"guidance=1\.5: expected 0 to 1"),
        ({"guidance": -0.1}, r"guidance=-0\.1: expected 0 to 1"),
        ({"guidance": float("nan")}, "guidance=nan: expected 0 to 1"),
        ({"guidance_steps": 0}, "guidance_steps=0: expected a whole number, 1 or more"),
        ({"turns": -1}, "turns=-1: expected a whole number, 0 or more"),
        ({"turns": 1.5}, r"turns=1\.5: expected a whole number, 0 or more"),
        ({"turns_every": 0}, "turns_every=0: expected a whole number, 1 or more"),
        ({"replay": 2}, "replay=2: expected 0 to 1"),
        ({"replay_kept": True}, "replay_kept=True: expected a whole number, 1 or more"),
    ],
)
def test_what_is_out_of_its_range_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=rf"^{said}$"):
        Curriculum(**settings)


# Teacher turns


def says(*turns: str) -> Any:
    """The same turns in every episode."""

    def script(env: ToolEnv) -> Iterator[str]:
        return iter(turns)

    return script


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_dice_says_whose_turn_it_is_and_the_guides_are_context(share: float) -> None:
    student = ScriptedPlayer(chat(), says(*[f"s{i} {CALL}" for i in range(9)]))
    guide = ScriptedPlayer(chat(), says(*[f"g{i} {CALL}" for i in range(9)]))
    played = rollout(GuidedPlayer(student, guide, share), TASKS, env_kwargs={"max_turns": 6})
    for task, episode in zip(TASKS, played, strict=True):
        assert len(episode.steps) == 6
        expected = guides(task.seed, share, 6)
        told = {False: 0, True: 0}
        for step, given in zip(episode.steps, expected, strict=True):
            assert step.text.startswith(f"{'g' if given else 's'}{told[given]} ")
            told[given] += 1
            assert set(episode.mask[slice(*step.span)]) == {not given}
        rest = set(range(len(episode.tokens)))
        for step in episode.steps:
            rest -= set(range(*step.span))
        assert not any(episode.mask[i] for i in rest)


class Listener(SpokenPlayer):
    """Says how many words it has heard, and whose were last."""

    def __init__(self, name: str) -> None:
        super().__init__(chat())
        self.name = name
        self.heard: list[tuple[Message, ...]] = []

    def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
        self.heard.append(tuple(messages))
        return f"{self.name}{len(messages)} {CALL}"


def test_those_that_read_text_hear_all_of_it() -> None:
    student, guide = Listener("s"), Listener("g")
    (episode,) = rollout(GuidedPlayer(student, guide, 0.5), TASKS[3:4], env_kwargs={"max_turns": 6})
    who = guides(TASKS[3].seed, 0.5, 6)
    assert 0 < sum(who) < 6
    said = episode.messages
    for player, given in ((student, False), (guide, True)):
        turns = [k for k, it in enumerate(who) if it is given]
        assert player.heard == [said[: 2 + 2 * k] for k in turns]


def players() -> tuple[HFPlayer, HFPlayer]:
    """Rotary positions and learned ones: a token that is fed at another place reads otherwise."""
    guide = llama(len(tokenizer()), seed=5)
    (opener,) = tokenizer().encode("<tool_call>")
    with torch.no_grad():
        guide.get_output_embeddings().weight[opener] += 0.05
    return (
        HFPlayer(babbler(), chat(), Sampling(max_tokens=6)),
        HFPlayer(guide, chat(), Sampling(max_tokens=6, temperature=0.0)),
    )


def test_each_has_read_what_the_other_wrote() -> None:
    tasks = bank_tasks(14)
    student, guide = players()
    player = GuidedPlayer(student, guide, 0.5)
    played = rollout(player, tasks, 5, env_kwargs={"max_turns": 4})
    rows = [e.tokens for e in played]
    both = 0
    for task, episode, ours, ids in zip(
        tasks, played, token_logprobs(student.model, rows), rows, strict=True
    ):
        who = guides(task.seed, 0.5, len(episode.steps))
        both += len(set(who)) == 2
        with torch.no_grad():
            logits = guide.model(torch.tensor([ids])).logits[0]
        for step, given in zip(episode.steps, who, strict=True):
            start, end = step.span
            written = range(start, end - step.truncated)
            if given:  # greedy, so that each token follows from all that stands before it
                # (but for rounding, which may turn what is as good as equal)
                assert all(logits[i - 1, ids[i]] > logits[i - 1].max() - 1e-4 for i in written)
                assert not any(episode.logprobs[start:end])
            else:
                told = torch.tensor([episode.logprobs[i] for i in written])
                torch.testing.assert_close(told, ours[start : written.stop], atol=1e-4, rtol=0)
    assert both >= 3


def test_without_a_share_the_student_plays_as_ever_and_batches_do_not_matter() -> None:
    student, guide = players()
    kwargs = {"max_turns": 4}
    alone = rollout(student, TASKS, env_kwargs=kwargs)
    assert rollout(GuidedPlayer(student, guide, 0.0), TASKS, env_kwargs=kwargs) == alone
    mixed = GuidedPlayer(student, guide, 0.5)
    wide, narrow = (rollout(mixed, TASKS, size, env_kwargs=kwargs) for size in (8, 1))
    assert [e.tokens for e in wide] == [e.tokens for e in narrow]


def test_the_guide_throws_other_dice_than_the_student() -> None:
    """Or what the student says would hang on dice that its own prompt already shows."""
    student, _ = players()
    kwargs = {"max_turns": 1}
    own = rollout(student, TASKS, env_kwargs=kwargs)
    theirs = rollout(GuidedPlayer(student, student, 1.0), TASKS, env_kwargs=kwargs)
    assert all(a.tokens != b.tokens for a, b in zip(own, theirs, strict=True))


# Turn limits


@pytest.mark.parametrize("most", [1, 2, 9])
def test_an_episode_ends_after_so_many_turns(most: int) -> None:
    player = ScriptedPlayer(chat(), says(*[CALL] * 9))
    (whole,) = rollout(player, TASKS[:1], env_kwargs={"max_turns": 4}, keep=True)
    (episode,) = rollout(player, TASKS[:1], env_kwargs={"max_turns": 4}, most_turns=most)
    count = min(most, 4)
    assert len(episode.steps) == count
    assert (episode.stop, episode.reward) == (StopReason.MAX_TURNS, 0)
    assert episode.tokens == whole.tokens[: whole.steps[count - 1].span[1]]


def test_an_answer_in_the_last_turn_is_an_answer() -> None:
    (episode,) = rollout(ScriptedPlayer(chat(), says("No.")), TASKS[:1], most_turns=1)
    assert episode.stop is StopReason.ANSWERED


# Beginnings in the middle


def remembered(kept: int = 16) -> tuple[Prefixes, list[Episode]]:
    student, _ = players()
    played = rollout(student, TASKS, env_kwargs={"max_turns": 3}, keep=True)
    found = Prefixes(chat(), {"max_turns": 3}, kept)
    found.add(played)
    return found, [e for e in played if len(e.steps) > 1]


def test_the_latest_episodes_of_several_turns_are_kept() -> None:
    assert Prefixes(chat(), {}, 3).draw(0) is None
    found, several = remembered()
    assert 3 < len(found) == len(several) < len(TASKS)
    drawn = [found.draw(seed) for seed in range(200)]
    places = {(it.parent.task_id, it.step) for it in drawn if it is not None}
    assert places == {(e.task_id, k) for e in several for k in range(1, len(e.steps))}
    found.add([broken(), dataclasses.replace(several[0], first_step=1)])
    assert len(found) == len(several)
    few, _ = remembered(kept=2)
    parents = {it.parent.task_id for s in range(50) if (it := few.draw(s)) is not None}
    assert parents == {e.task_id for e in several[-2:]}


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """By way of a file, as a checkpoint is."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file)
    return loaded


def test_a_checkpoint_brings_the_same_places_back() -> None:
    found, _ = remembered()
    again = Prefixes(chat(), {"max_turns": 3}, 16)
    again.load_state_dict(saved(found.state_dict()))
    student, _ = players()
    for seed in range(20):
        old, new = found.draw(seed), again.draw(seed)
        assert old is not None
        assert new is not None
        assert (old.prefix, old.step, old.seed) == (new.prefix, new.step, new.seed)
        hashes = [[point.state_hash for point in it.parent.branch_points] for it in (old, new)]
        assert hashes[0] == hashes[1]
    forks = [it for seed in range(4) if (it := again.draw(seed)) is not None]
    old_forks = [it for seed in range(4) if (it := found.draw(seed)) is not None]
    kwargs = {"max_turns": 3}
    assert rollout(student, forks, env_kwargs=kwargs) == rollout(
        student, old_forks, env_kwargs=kwargs
    )


def test_turns_that_lead_elsewhere_are_noticed() -> None:
    found, _ = remembered()
    state = found.state_dict()
    episode, hashes = state["episodes"][0]
    state["episodes"][0] = episode, [hashes[0], "0" * 32, *hashes[2:]]
    with pytest.raises(
        SettingError, match=r"lead to another state .*trainer\.curriculum\.replay=0"
    ):
        Prefixes(chat(), {"max_turns": 3}, 16).load_state_dict(state)


# What is learned


def exact(loss: Loss, credit: Credit, folder: Path, plan: Curriculum) -> Any:
    """A trainer whose student and teacher compute in float64."""
    parts = make_parts(babbler().double(), credit, loss)
    own = copy.deepcopy(tokenizer())
    teacher = LocalTeacher(gpt2(len(own), width=48, seed=9).double(), own)
    return distill.build(
        dataclasses.replace(parts, teacher=teacher), distillation(folder), curriculum=plan
    )


def by_hand(step: int, seed: int, episode: Episode, plan: Curriculum) -> tuple[bool, ...]:
    """The tokens that the student chose: not the prompt, nor forced ends, nor what others said."""
    mask = [False] * len(episode.tokens)
    new = episode.steps[episode.first_step :]
    for it, given in zip(new, guides(seed, plan.guided(step), len(new)), strict=True):
        for i in range(it.span[0], it.span[1] - it.truncated):
            mask[i] = not given
    return tuple(mask)


GUIDED = Curriculum(guidance=0.5, guidance_steps=9)


@pytest.mark.parametrize(
    ("plan", "beta"),
    [(GUIDED, 1.0), (GUIDED, None), (Curriculum(replay=0.6), None), (Curriculum(turns=1), 1.0)],
    ids=["guided", "guided, sampled", "replayed, sampled", "short"],
)
def test_forced_tokens_and_prefixes_teach_nothing(
    plan: Curriculum, beta: float | None, tmp_path: Path
) -> None:
    loss: Loss = SampledReverseKL(clip=0.2, most=3.0) if beta is None else JSD(beta)
    trainer = exact(loss, Outcome(), tmp_path, plan)
    rows = [trainer.train_dataset[i] for i in range(8)]
    first = trainer._collector.collect([TaskRef(ENV, "train/9", i) for i in range(8)], step=0)
    tasks = [TaskRef(ENV, row["task_id"], seed=100 + i) for i, row in enumerate(rows)]
    batch = trainer._collector.collect(tasks, step=1)
    masks = [by_hand(1, t.seed, e, plan) for t, e in zip(tasks, batch.episodes, strict=True)]
    assert [e.mask for e in batch.episodes] == masks
    figures = batch.figures
    if plan.guidance:
        turns = [not any(e.mask[slice(*s.span)]) for e in batch.episodes for s in e.steps]
        assert 0 < figures["rollout/guided_turns"] == sum(turns) / len(turns) < 1
        assert figures["rollout/teacher_tokens"] > 0
    if plan.replay:
        assert "rollout/replayed" in first.figures and first.figures["rollout/replayed"] == 0
        begun = sum(e.first_step > 0 for e in batch.episodes)
        assert 2 <= figures["rollout/replayed"] == begun < 8
    if plan.turns:
        assert figures["rollout/most_turns"] == 1 == max(len(e.steps) for e in batch.episodes)

    trainer._views = batch.views
    student = trainer._collector.student.model

    def gradient(inputs: dict[str, Any]) -> dict[str, Any]:
        student.zero_grad()
        found, _, _ = trainer._compute_loss(student, inputs, inputs["num_items_in_batch"])
        found.backward()
        return {n: p.grad.clone() for n, p in student.named_parameters()}

    # Weights of 1 and advantages of any size, also where nothing may be learned.
    noise = torch.Generator().manual_seed(1)
    inputs = dict(batch.rows)
    inputs["weights"] = torch.ones_like(inputs["weights"])
    inputs["advantages"] = torch.randn(inputs["advantages"].shape, generator=noise)
    found = gradient(inputs)
    credit = credit_of(inputs, batch.episodes)
    right = [dataclasses.replace(e, mask=m) for e, m in zip(batch.episodes, masks, strict=True)]
    teacher = model_of(trainer.teacher)
    measure = clipped if beta is None else beta
    expected = reference(student, teacher, right, credit, measure)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    assert_equal(found, expected, atol=1e-6)  # log-probabilities of rollouts are float32
    loud = dict(inputs)
    for name, value in (("weights", 1e6), ("advantages", -1e6), ("sampled_logprobs", -50.0)):
        loud[name] = torch.where(inputs["tool_mask"].bool(), inputs[name], value)
    again = gradient(loud)
    assert all(torch.equal(again[name], found[name]) for name in found)


def credit_of(inputs: dict[str, Any], episodes: Sequence[Episode]) -> list[TokenCredit]:
    """What was given to each token, at the episode's own places."""
    credit = []
    for i, e in enumerate(episodes):
        before = e.steps[0].span[0]
        size = len(e.tokens) - before
        parts = [
            torch.cat([torch.zeros(before), inputs[name][i, :size]])
            for name in ("weights", "advantages")
        ]
        credit.append(TokenCredit(*parts))
    return credit


# From distillation to reward


@pytest.mark.parametrize(("step", "share"), [(0, 0.1), (2, 0.3), (4, 0.5), (8, 0.9), (20, 0.9)])
def test_the_weight_moves_to_the_reward(step: int, share: float) -> None:
    (played,) = rollout(ScriptedPlayer(chat(), says("No.")), TASKS[:1])
    won = dataclasses.replace(played, reward=1.0)
    credit = Annealed(Outcome(scale=2.0, weight=3.0), first=0.1, last=0.9, steps=8)
    experience = Experience([won, played], step=step)
    start, end = played.steps[0].span
    for it, advantage in zip(credit.assign(experience), (0.5, -0.5), strict=True):
        assert it.weights[start:end].tolist() == pytest.approx([3 * (1 - share)] * (end - start))
        expected = [2 * advantage * share] * (end - start)
        assert it.advantages[start:end].tolist() == pytest.approx(expected)
        assert not it.weights[:start].any()
        assert not it.advantages[:start].any()
    assert experience.figures["reward_share"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": -1}, "first=-1: expected 0 to 1"),
        ({"last": 1.1}, r"last=1\.1: expected 0 to 1"),
        ({"steps": 0}, "steps=0: expected a whole number"),
    ],
)
def test_annealing_refuses(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Annealed(Outcome(), **settings)


def test_annealing_needs_what_its_base_needs() -> None:
    credit = Annealed(Additive(Uniform()))
    assert (credit.needs_search, credit.needs_teacher) == (True, False)


# A reinforced teacher and its base


def test_the_advantage_of_a_turn_is_the_log_ratio_of_the_two_models() -> None:
    student, _ = players()
    own = copy.deepcopy(tokenizer())
    reinforced, before = (gpt2(len(own), width=24, seed=seed).double() for seed in (6, 7))
    played = rollout(student, TASKS[:3], env_kwargs={"max_turns": 3})
    ratios = []
    for e in played:
        ids = torch.tensor([e.tokens])
        ours, theirs = (m(ids).logits[0].log_softmax(-1).detach() for m in (reinforced, before))
        ratios.append(
            [
                sum(
                    float(ours[i - 1, e.tokens[i]] - theirs[i - 1, e.tokens[i]])
                    for i in range(*step.span)
                    if e.mask[i]
                )
                for step in e.steps
            ]
        )
    most = sorted(abs(it) for steps_ in ratios for it in steps_)[-2] * 0.5  # cuts the largest
    credit = ProgressAdvantage(LocalTeacher(before, own), scale=0.5, most=most)
    annotations = Annotations(LocalTeacher(reinforced, own))
    given = credit.assign(Experience([*played, broken()], annotations=annotations))
    assert not given[-1].advantages.any()
    cut = 0
    for e, it, expected in zip(played, given[:-1], ratios, strict=True):
        assert not it.weights.any()
        for step, ratio in zip(e.steps, expected, strict=True):
            value = max(-most, min(most, 0.5 * ratio))
            cut += value != 0.5 * ratio
            here = it.advantages[slice(*step.span)].tolist()
            assert here == pytest.approx([value] * len(here), abs=1e-5)
    assert 0 < cut < sum(map(len, ratios))


@pytest.mark.parametrize("settings", [{"scale": 0}, {"most": -1.0}, {"scale": float("nan")}])
def test_progress_refuses(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(SettingError, match=f"{name}=.*: expected a number above 0"):
        ProgressAdvantage(Terse(), **settings)


def test_the_reference_must_share_the_students_vocabulary() -> None:
    student, _ = players()
    own = copy.deepcopy(tokenizer())
    own.add_tokens(["<shifted>"])
    other = LocalTeacher(gpt2(len(own) - 2, seed=6), own)
    for credit in (
        ProgressAdvantage(other),
        Annealed(ProgressAdvantage(other)),
        Additive(ProgressAdvantage(other)),
    ):
        with pytest.raises(VocabularyMismatchError):
            credit.check(student)


# Runs


def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(tmp_path: Path) -> None:
    plan = Curriculum(0.5, guidance_steps=8, turns=2, turns_every=2, replay=0.5)
    args = distillation(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)

    def trainer() -> Any:
        credit = Annealed(Uniform(advantage=0.3), steps=8)
        return distill.build(make_parts(babbler(), credit), args, curriculum=plan)

    whole, rest = trainer(), trainer()
    whole.train()
    logged = steps(whole)
    assert [it["reward_share"] for it in logged] == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8])
    assert [it["rollout/most_turns"] for it in logged] == [2, 2, 3, 3]
    assert any(0 < it["rollout/guided_turns"] < 1 for it in logged[2:])
    assert any(it["rollout/replayed"] for it in logged[2:])
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert rest.state.global_step == 4
    ended, same = weights(whole.model), weights(rest.model)
    assert all(torch.equal(ended[name], same[name]) for name in ended)

    # A process that the job did not have then: it begins with its tasks.
    (tmp_path / "checkpoint-2" / "prefixes_0.pt").rename(tmp_path / "another's.pt")
    more = trainer()
    more.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert more.state.global_step == 4
    assert steps(more)[-2]["rollout/replayed"] == 0


def test_what_the_curriculum_cannot_have_is_refused(tmp_path: Path) -> None:
    args, parts = distillation(tmp_path), make_parts(babbler())
    guided = Curriculum(guidance=0.5)

    def refused(given: Any, plan: Curriculum, said: str) -> None:
        with pytest.raises(SettingError, match=said):
            distill.build(given, args, curriculum=plan)

    untaught = dataclasses.replace(parts, teacher=None, loss=SampledReverseKL())
    refused(untaught, guided, "^teacher=none: the loss asks for a teacher")
    rewards = dataclasses.replace(untaught, loss=NoLoss())
    refused(
        rewards, guided, r"^teacher=none: trainer\.curriculum\.guidance=0\.5 asks for a teacher"
    )
    terse = dataclasses.replace(parts, teacher=Terse(), loss=SampledReverseKL())
    refused(terse, guided, r"curriculum\.guidance=0\.5: the teacher cannot play; expected 0$")
    searching = dataclasses.replace(parts, search=TreeRollouts(rows=4))
    for plan, name in (
        (guided, r"guidance=0\.5"),
        (Curriculum(turns=2), "turns=2"),
        (Curriculum(replay=0.5), r"replay=0\.5"),
    ):
        refused(searching, plan, rf"^trainer\.curriculum\.{name}: a search grows")
    coding = dataclasses.replace(
        parts, tasks=lambda count: [TaskRef("journeyman/Python-v0", "train/0")] * count
    )
    said = r"curriculum\.replay keeps .* tools of journeyman/Python-v0 run code"
    refused(coding, Curriculum(replay=0.5), said)


def test_a_process_that_is_ahead_of_the_main_one_saves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process makes a checkpoint's folder, and may come to it later."""
    parts = make_parts(babbler(), Uniform())
    trainer = distill.build(parts, distillation(tmp_path), curriculum=Curriculum(replay=0.5))
    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", lambda self, folder: None)
    folder = tmp_path / "checkpoint-1"
    trainer._save_optimizer_and_scheduler(str(folder))
    assert sorted(file.name for file in folder.iterdir()) == ["prefixes_0.pt", "rows.json"]
