"""Every call form: what the prompt tells is what is read, and search sees what was played."""

import copy
import math
import random
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import pytest
import torch

import journeyman.agents.search.playing as playing
from journeyman.agents.credit import Uniform
from journeyman.agents.credit.interface import Experience
from journeyman.agents.credit.trees import PolicyTarget
from journeyman.agents.errors import SettingError
from journeyman.agents.learning.collector import Collector
from journeyman.agents.learning.losses.functions import policy_gradient
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.search.backup import Advantage
from journeyman.agents.search.estimators import Estimate
from journeyman.agents.search.evidence import Evidence
from journeyman.agents.search.language import LanguageWorld
from journeyman.agents.search.playing import SearchPlayer
from journeyman.agents.students.dialect import FAMILIES, Dialect, dialect_of
from journeyman.agents.students.hf import HFPlayer, sample
from journeyman.agents.students.player import Sampling
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.agents.students.spoken import SpokenPlayer
from journeyman.envs import Message, ToolEnv, make
from journeyman.tools import CallStatus, ToolCall, ToolSpec, get_parser
from journeyman.tools.parsing import PARSERS

from ..agents.tiny import chat, episode, llama, tokenizer

MDP = "journeyman/ExactMDP-v0"
TASKS = [TaskRef(MDP, f"test/{i}", seed=i) for i in range(3)]
FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda it: it.name)


class Chooser(SpokenPlayer):
    """Chooses at random, by number: a value that some forms write as text."""

    def __init__(self, family: type[Dialect]) -> None:
        super().__init__(family(tokenizer(), "names"), side_by_side=1)

    def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
        (spec,) = tools
        (name,) = spec.parameters["properties"]
        if sum(m.role == "tool" for m in messages) >= 3:
            return "Answer: done"
        return self.dialect.write_call(
            ToolCall(spec.name, {name: random.Random(seed).randrange(3)})
        )


def searched(family: type[Dialect], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], int, int]:
    """Calls of searched episodes, candidates of all searches, and how many of them have a value."""
    candidates = valued = 0
    run = playing.run_searches

    def spy(world: Any, searches: Any) -> None:
        nonlocal candidates, valued
        run(world, searches)
        for search in searches:
            known = search._known()[1]
            candidates, valued = candidates + len(known), valued + int(known.sum())

    monkeypatch.setattr(playing, "run_searches", spy)
    player = SearchPlayer(Chooser(family), candidates=6, simulations=8)
    played = rollout(player, TASKS, env_kwargs={"max_turns": 5})
    calls = [[(r.call.arguments, r.call.status) for r in e.calls] for e in played]
    return calls, candidates, valued


@FAMILY
def test_what_is_proposed_is_valued_in_every_form(
    family: type[Dialect], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, candidates, valued = searched(family, monkeypatch)
    assert valued >= candidates / 2 > 0
    assert {status for row in calls for _, status in row} == {CallStatus.OK}
    assert (calls, candidates, valued) == searched(FAMILIES[0], monkeypatch)


@FAMILY
def test_a_proposal_is_the_action_that_the_same_turn_is(family: type[Dialect]) -> None:
    world = LanguageWorld(ScriptedPlayer(family(tokenizer(), "names"), oracle))
    (tree,) = world.begin([TaskRef("journeyman/Bank-v0", "test/1")])
    handle = tree.nodes[tree.root].handle
    assert isinstance(handle, Fork)

    def gold(env: ToolEnv) -> Iterator[ToolCall | str]:
        yield env.oracle()[0]

    (proposed,) = world.propose(ScriptedPlayer(world._player.dialect, gold), [(tree.root, handle)])
    assert [proposed] == [*tree.nodes[tree.root].edges]
    assert "Igor Berger" in str(proposed)


# The prompt names the form that is read


TEMPLATES = ("qwen2_5", "qwen3_5_think", "llama3_1", "lfm2_v2")


@pytest.mark.parametrize("render", ["full", "signature"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("form", PARSERS)
def test_the_prompt_names_the_form_that_is_read(template: str, form: str, render: Any) -> None:
    words = copy.deepcopy(tokenizer())
    words.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    words.chat_template = (files("trl") / "chat_templates" / f"{template}.jinja").read_text("utf-8")
    spoken = dialect_of(words, form, render)
    pay = ToolSpec("pay", "Pay.", {"type": "object", "properties": {"n": {"type": "integer"}}})
    text = spoken.decode(spoken.opening([Message("user", "hi")], [pay]))
    own = dialect_of(words, None, render).form.name == form
    assert text.count(spoken.how_to_call) == (0 if own and render == "full" else 1)
    call = spoken.write_call(ToolCall("pay", {"n": 3}))
    (read,) = spoken.read(spoken.spoken(call), [pay]).calls
    assert (read.name, read.arguments, read.error) == ("pay", {"n": 3}, None)


# What is an answer


ANSWERS = (
    '{"name": "Ann", "total": 3}',
    '{"name": "Ann"}',
    '[{"name": "Ann", "arguments": 3}]',
    '{"total": 3}',
    '```json\n{"name": "Ann", "total": 3}\n```',
    'Answer: {"name": "Ann", "total": 3}',
    '{"name": "pay", "arguments": {}}',
)


@pytest.mark.parametrize("text", ANSWERS)
def test_json_without_markers_is_an_answer(text: str) -> None:
    """Of Hermes; Llama has no markers, so that there it may be a call."""
    for name in ("hermes", "qwen3_coder", "glm45", "harmony", "pythonic", "mistral"):
        assert get_parser(name)(text) == []
    assert chat().read(text).answer == text
    env = make("journeyman/Bank-v0")
    env.reset(options={"task_id": "test/0"})
    _, _, terminated, _, info = env.step(text)
    assert (terminated, info["calls"]) == (True, ())


# Temperatures at their edges


def evidence(q: float, *others: float) -> Evidence:
    choices = tuple((1 / (1 + len(others)), value) for value in (q, *others))
    mean = sum(p * value for p, value in choices)
    return Evidence(0.0, Estimate(mean, 0.1), Advantage(q - mean, 0.0, 1), choices, None)


def advantage(temperature: float, q: float, *others: float) -> float:
    credit = PolicyTarget(Uniform(), temperature=temperature)
    played = episode(random.Random(0), turns=1)
    experience = Experience([played], [(evidence(q, *others),)])
    (found,) = credit.assign(experience)
    return float(found.advantages[played.steps[0].span[0]])


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-17, 1e-9])
def test_a_cold_target_is_the_best_choice(temperature: float, scale: float) -> None:
    best, worse = 0.9 * scale, 0.1 * scale
    assert advantage(temperature, best, worse, worse) == pytest.approx(2)  # 1 / p - 1
    assert advantage(temperature, worse, best, worse) == -1
    assert advantage(temperature, best, best, worse) == pytest.approx(0.5)
    assert advantage(temperature, best, best) == 0


@pytest.mark.parametrize("temperature", [1e6, 1e300, 1.7e308])
def test_a_hot_target_is_the_student(temperature: float) -> None:
    assert advantage(temperature, 1.0, 0.0) == pytest.approx(0, abs=1e-5)


def test_between_them_it_is_its_definition() -> None:
    for temperature in (0.01, 0.1, 1.0, 3.0):
        weights = [math.exp((q - 0.5) / temperature) for q in (0.7, 0.2, 0.6)]
        expected = weights[0] / (sum(weights) / 3) - 1
        assert advantage(temperature, 0.7, 0.2, 0.6) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, -math.inf])
def test_no_target_of_no_temperature(temperature: float) -> None:
    with pytest.raises(SettingError, match=rf"^temperature={temperature}: expected above 0"):
        PolicyTarget(Uniform(), temperature=temperature)


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -1e-9, True, None])
def test_no_sampling_of_no_temperature(temperature: Any) -> None:
    with pytest.raises(SettingError, match=rf"^temperature={temperature}: expected a number"):
        Sampling(temperature)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e4, 1e30])
def test_samples_at_the_edges(spread: float) -> None:
    """Cold: the most probable. Hot: any that is possible, and none that is not."""
    logits = torch.tensor([[0.0, spread, -spread, -math.inf]]).expand(1000, 4)
    uniforms = torch.linspace(0, 1 - 1e-6, 1000)
    for temperature in (0.0, 5e-324, 1e-300, 1e-40):
        tokens, logprobs = sample(logits, Sampling(temperature), uniforms)
        assert set(tokens.tolist()) == {1}
        assert torch.isfinite(logprobs).all()
    for temperature in (1e38, 1e39, 1e300):
        tokens, _ = sample(logits, Sampling(temperature), uniforms)
        assert tokens.bincount(minlength=4).tolist() == pytest.approx([333, 333, 333, 0], abs=2)


def test_rare_tokens_are_drawn_by_their_chances() -> None:
    """Behind one of 99.98%, 200,000 of 1e-9: near 1, float32 counts 60 of them as one."""
    count = 200_000
    logits = torch.full((1, count + 1), math.log(1e-9))
    logits[0, 0] = math.log1p(-2e-4)
    uniforms = 1 - 2e-4 * torch.linspace(0.995, 0.005, 100, dtype=torch.float64)
    tokens, _ = sample(logits.expand(100, -1), Sampling(), uniforms)
    expected = torch.linspace(0.005, 0.995, 100) * count
    assert tokens.tolist() == pytest.approx(expected.tolist(), abs=5)


def test_equal_rewards_move_nothing() -> None:
    """At the one temperature that students learn at, the expected gradient is none."""
    scores = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    count = 200_000
    dice = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, sampled = sample(scores.expand(count, 3), Sampling(), dice)
    learned = scores.clone().requires_grad_()
    policy_gradient(learned.log_softmax(-1)[tokens], sampled, torch.ones(count)).mean().backward()
    assert learned.grad is not None
    assert learned.grad.abs().max() < 5e-3


@pytest.mark.parametrize("temperature", [0.0, 0.5, 0.999, 2.0])
def test_no_other_temperature_is_learned_at(temperature: float) -> None:
    """Losses and importance weights take a token's probability at 1."""
    student = HFPlayer(llama(len(tokenizer())), chat(), Sampling(temperature, max_tokens=8))
    with pytest.raises(SettingError, match=rf"^student.temperature={temperature:g}: expected 1"):
        Collector(student, Uniform())
    assert Collector(student.at(temperature=1.0), Uniform()).rows_a_task == 1
