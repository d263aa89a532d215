"""Players as parcels, opened in this process: what travels, what stays, and how much it is."""

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import nn

from journeyman.agents.errors import ParcelError
from journeyman.agents.networks.adapters import begin, saved_bytes
from journeyman.agents.rollouts.guidance import GuidedPlayer
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.workers.errands import EnvSource, Errand, Ledger, Pinned
from journeyman.agents.rollouts.workers.parcels import KEPT, Packer, Unpacker
from journeyman.agents.rollouts.workers.station import Station
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.students.scripted import ScriptedPlayer, load_oracle, no_op, oracle
from journeyman.agents.students.vllm import VLLMPlayer
from journeyman.envs import BranchPoint, Episode, StopReason, ToolEnv, make, register

from .tiny import chat, llama, tokenizer

URL = "http://127.0.0.1:9/v1"


def tiny_player(**config: Any) -> HFPlayer:
    model = llama(len(tokenizer()), **config)
    return HFPlayer(model, chat(), Sampling(max_tokens=8))


def sent(parcel: Any) -> Any:
    return pickle.loads(pickle.dumps(parcel))


def bits(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        (it.dtype, tuple(it.shape), it.detach().reshape(-1).view(torch.uint8).tolist())
        for it in tensors
    ]


def test_what_is_opened_has_the_same_bits() -> None:
    player = tiny_player(tie_word_embeddings=True)
    player.model.to(torch.bfloat16)
    opened = Unpacker().open(sent(Packer().pack(player)))
    assert isinstance(opened, HFPlayer)
    assert bits(opened.model) == bits(player.model)
    assert opened.model.dtype is torch.bfloat16
    assert opened.model.lm_head.weight is opened.model.model.embed_tokens.weight  # stays tied
    assert (opened.sampling, opened.max_context) == (player.sampling, player.max_context)
    assert opened.end_ids == player.end_ids
    assert not opened.model.training


def test_players_of_one_model_share_it_here_and_there() -> None:
    player, packer, unpacker = tiny_player(), Packer(), Unpacker()
    one = packer.pack(player)
    pushed = packer.pushed
    other = packer.pack(player.at(temperature=0.0))
    assert packer.pushed == pushed  # nothing goes twice
    assert (other.parts, other.layers) == (one.parts, one.layers)
    assert len(other.player) < 2000
    first = unpacker.open(sent(one))
    second = unpacker.open(sent(other.without(unpacker.parts, unpacker.layers)))
    assert second.model is first.model
    assert second.dialect.tokenizer is first.dialect.tokenizer
    assert (first.sampling.temperature, second.sampling.temperature) == (1.0, 0.0)
    assert unpacker.received == pushed
    assert unpacker.open(sent(one)) is first


@pytest.mark.parametrize("silently", [False, True])
def test_a_version_brings_what_has_changed(silently: bool) -> None:
    """A write that tells autograd nothing is found as well, as of a fused optimiser."""
    player, packer, unpacker = tiny_player(), Packer(), Unpacker()
    opened = unpacker.open(sent(packer.pack(player)))
    changed = player.model.model.norm.weight
    before = packer.pushed
    with torch.no_grad():
        (changed.data if silently else changed).mul_(2)
    old, new = sent(packer.pack(player)), packer.pack(player)
    assert old.version == new.version == 2
    assert packer.pushed - before == changed.numel() * changed.element_size()
    assert unpacker.open(sent(new.without(unpacker.parts, unpacker.layers))) is opened
    assert bits(opened.model) == bits(player.model)
    late = Unpacker()  # who comes late reads both layers
    assert bits(late.open(sent(new)).model) == bits(player.model)
    assert late.layers == {1, 2}


def test_layers_are_kept_for_as_long_as_they_are_needed() -> None:
    player, packer = tiny_player(), Packer()
    packer.pack(player)
    for _ in range(3):
        with torch.no_grad():
            for weight in player.model.parameters():
                weight.add_(1)
        parcel = packer.pack(player)
    buffers = sum(1 for _ in player.model.buffers())
    assert buffers  # never change, so the first layer stays
    assert list(parcel.layers) == [1, 4]


def test_a_layer_is_what_the_weights_were_then() -> None:
    """The trainer goes on while a worker has yet to read."""
    player, packer = tiny_player(), Packer()
    parcel, then = packer.pack(player), bits(player.model)
    with torch.no_grad():
        for weight in player.model.parameters():
            weight.add_(1)
    assert bits(Unpacker().open(parcel).model) == then


def test_weights_that_are_not_here_are_refused() -> None:
    player, packer, unpacker = tiny_player(), Packer(), Unpacker()
    first = sent(packer.pack(player))
    with pytest.raises(ParcelError, match=r"version 1 are not at this worker \(it has none\)"):
        unpacker.open(first.without(layers=[1]))
    with pytest.raises(ParcelError, match="not at this worker, and the parcel leaves it out"):
        unpacker.open(first.without(parts=list(first.parts)))
    unpacker.open(first)
    with torch.no_grad():
        player.model.lm_head.weight.add_(1)
    unpacker.open(sent(packer.pack(player)))
    with pytest.raises(ParcelError, match=r"version 1, and this worker has version 2 by now"):
        unpacker.open(first)


def test_weights_that_were_not_used_for_long_are_let_go() -> None:
    """A worker does not grow by each model that it has met; one that comes back is read again."""
    packer, unpacker = Packer(), Unpacker()
    players = [tiny_player(seed=seed) for seed in range(12)]
    for player in players:
        opened = unpacker.open(sent(packer.pack(player)))
        assert bits(opened.model) == bits(player.model)
    one = len(list(players[0].model.parameters())) + len(list(players[0].model.buffers()))
    assert len(unpacker._tensors) <= KEPT * one
    assert len(packer._parts) <= KEPT
    again = packer.pack(players[0])
    assert packer.pushed == unpacker.received  # it is not pushed again
    opened = unpacker.open(sent(again))
    assert bits(opened.model) == bits(players[0].model)


def test_another_driver_begins_anew() -> None:
    unpacker = Unpacker()
    one, other = tiny_player(seed=0), tiny_player(seed=1)
    unpacker.open(sent(Packer().pack(one)))
    opened = unpacker.open(sent(Packer().pack(other)))
    assert bits(opened.model) == bits(other.model)
    assert unpacker.layers == {1}


def test_of_an_adapted_model_the_adapter_alone_goes_again() -> None:
    model = begin(llama(len(tokenizer())), {"r": 2})
    player = HFPlayer(model, chat(), Sampling(max_tokens=8))
    packer, unpacker = Packer(), Unpacker()
    unpacker.open(sent(packer.pack(player)))
    first = packer.pushed
    assert first > 20 * saved_bytes(model)
    for step in range(2):
        for weight in model.parameters():
            if weight.requires_grad:
                weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([it for it in model.parameters() if it.requires_grad], lr=0.1).step()
        new = packer.pack(player)
        assert packer.pushed - first == (step + 1) * saved_bytes(model)
    opened = unpacker.open(sent(new.without(unpacker.parts, unpacker.layers)))
    assert unpacker.received == first + saved_bytes(model)  # the version between was not needed
    assert bits(opened.model) == bits(model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        assert opened.model(ids).logits.equal(model(ids).logits)


def test_what_a_trainer_hangs_on_a_model_stays() -> None:
    """Hooks, and methods that are replaced, as by Accelerate's mixed precision."""
    player = tiny_player()
    model = player.model
    model.forward = lambda *args, **kwargs: 1 / 0  # type: ignore[method-assign]
    model._original_forward = lambda: None
    model.get_input_embeddings().register_forward_hook(lambda *args: 1 / 0)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    opened = Unpacker().open(sent(Packer().pack(player)))
    ids = torch.tensor([[5, 6, 7]])
    del model.forward
    model.get_input_embeddings()._forward_hooks.clear()
    assert opened.model(ids).logits.equal(model(ids).logits)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_model_that_is_trained_in_mixed_precision_plays_in_it(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    monkeypatch.setattr(PartialState, "_shared_state", {})
    player, ids = tiny_player(), torch.tensor([[5, 6, 7]])
    plain = player.model(ids).logits
    Accelerator(mixed_precision=precision, cpu=True).prepare(player.model)
    here = player.model(ids).logits
    assert here.equal(plain) == (precision == "no")
    unpacker, packer = Unpacker(), Packer()
    opened = unpacker.open(sent(packer.pack(player)))
    assert opened.model(ids).logits.equal(here)
    assert opened.model(ids).logits.dtype is torch.float32


def test_what_was_read_with_the_weights_stays() -> None:
    player = tiny_player().remembering()
    assert player.prefixes is not None
    player.prefixes.keep(tuple(range(20)), [[torch.zeros(1, 20, 8)] * 2])
    packer = Packer()
    opened = Unpacker().open(sent(packer.pack(player)))
    assert packer.pushed == sum(len(it[2]) for it in bits(player.model))
    assert opened.prefixes is not None
    assert opened.prefixes is not player.prefixes
    assert len(opened.prefixes) == 0
    assert len(player.prefixes) == 1


def test_quantised_weights_are_refused() -> None:
    class Packed4bit(nn.Parameter):
        pass

    player = tiny_player()
    player.model.lm_head.weight = Packed4bit(player.model.lm_head.weight.data)
    with pytest.raises(ParcelError, match=r"type Packed4bit .* student\.quantization"):
        Packer().pack(player)


def test_players_that_cannot_travel_say_what_to_do() -> None:
    script = ScriptedPlayer(chat(), lambda env: iter(["hello"]))
    with pytest.raises(ParcelError, match=r"ScriptedPlayer cannot be sent .* top of a module"):
        Packer().pack(script)
    engine: Any = type("Engine", (), {"max_length": 64, "vocabulary": len(tokenizer())})()
    served = VLLMPlayer(engine, chat(), Sampling(max_tokens=8))
    with pytest.raises(ParcelError, match=r"vLLM's engine .* student=hf for .* \(rollouts=local\)"):
        Packer().pack(served)
    with pytest.raises(ParcelError, match=r"student\.budget=5 is counted in one process"):
        Packer().pack(OpenAIPlayer(URL, "m", budget=5))
    with pytest.raises(ParcelError, match=r"student\.requests_per_minute=60 is kept by one"):
        Packer().pack(OpenAIPlayer(URL, "m", requests_per_minute=60))


def test_a_served_player_travels_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATION_KEY", "sesame-sesame")
    player = OpenAIPlayer(URL, "m", key="STATION_KEY", temperature=0.5, prices=None)
    parcel = Packer().pack(player)
    assert (parcel.version, dict(parcel.layers)) == (0, {})
    assert b"sesame" not in pickle.dumps(parcel)
    opened = Unpacker().open(sent(parcel))
    assert isinstance(opened, OpenAIPlayer)
    assert opened.identity == player.identity
    assert opened._endpoint.connect().headers["Authorization"] == "Bearer sesame-sesame"
    monkeypatch.delenv("STATION_KEY")
    with pytest.raises(Exception, match="STATION_KEY"):
        Unpacker().open(sent(parcel))


def test_joined_players_travel_together() -> None:
    student = tiny_player()
    joined = GuidedPlayer(student, ScriptedPlayer(student.dialect, oracle), 0.5)
    packer, unpacker = Packer(), Unpacker()
    unpacker.open(sent(packer.pack(student)))
    opened = unpacker.open(sent(packer.pack(joined)))
    assert isinstance(opened, GuidedPlayer)
    inner, guide = opened.players
    assert inner.model is unpacker.open(sent(packer.pack(student))).model  # type: ignore[attr-defined]
    assert guide.dialect is inner.dialect
    assert opened.share == 0.5


def test_one_errand_at_a_time_and_it_can_be_ended() -> None:
    station = Station("one")
    tasks = [TaskRef("journeyman/Bank-v0", f"test/{i}") for i in range(3)]
    errand = Errand.of(Packer().pack(load_oracle()), tasks, batch_size=1)
    under_way = station.play(errand)
    assert next(under_way).index == 0
    with pytest.raises(ParcelError, match="one plays an errand already"):
        next(station.play(errand))
    under_way.close()
    assert [it.index for it in station.play(errand)] == [0, 1, 2]
    with pytest.raises(ParcelError, match="threads=0: expected at least 1"):
        Station("two", threads=0)


def test_an_environment_that_no_module_has_is_refused(scratch_registry: None) -> None:
    class Garden(ToolEnv):
        toolset = ()

        @classmethod
        def generate(cls, *args: Any) -> Any: ...

    register("acme/Inner-v0", Garden)
    with pytest.raises(ParcelError, match=r"Garden is defined in a function.* garden:acme/Inner"):
        Errand.of(Packer().pack(load_oracle()), [TaskRef("acme/Inner-v0", "test/0")])


def test_an_id_stands_for_the_class_that_it_stood_for(scratch_registry: None) -> None:
    """A worker that plays for long may have met another class of the same name."""
    register("acme/Office-v0", "journeyman.envs.tasks.bank:BankEnv", max_turns=7)
    source = EnvSource.of("acme/Office-v0")
    source.find()
    register_again = pytest.warns(UserWarning, match="Overriding environment acme/Office-v0")
    with register_again:
        register("acme/Office-v0", "journeyman.envs.tasks.orders:OrdersEnv")
    with register_again:
        source.find()
    assert type(make("acme/Office-v0")).__name__ == "BankEnv"
    assert make("acme/Office-v0").max_turns == 7


def test_what_is_alive_is_put_back_where_it_stayed() -> None:
    """Whoever has no more than its value goes on from that."""
    one, two = Station("one"), Station("two")
    alive, spare = object(), object()
    (parent,) = rollout(load_oracle(), [TaskRef("journeyman/Bank-v0", "test/0")], keep=True)
    point = one._stays(BranchPoint(alive, "hash"))
    assert point.snapshot.station == "one"
    assert point.state_hash == "hash"

    def at(station: Station, kept: Pinned) -> object:
        points = (BranchPoint(kept, "hash"), *parent.branch_points[1:])
        task = station._at_home(Fork(replace(parent, branch_points=points), 0, 5, (1, 2)))
        assert isinstance(task, Fork)
        assert (task.step, task.seed, task.turn) == (0, 5, (1, 2))
        return task.parent.branch_points[0].snapshot

    kept = replace(point.snapshot, spare=spare)
    assert at(one, kept) is alive
    assert at(two, kept) is spare
    one.release([kept.key])
    assert at(one, kept) is spare
    with pytest.raises(ParcelError, match="alive at one alone, and this is one: play the fork"):
        at(one, replace(kept, spare=None))


def test_what_is_kept_elsewhere_is_let_go_once_nobody_has_it() -> None:
    ledger = Ledger()

    def episode(*kept: Pinned) -> Episode:
        points = tuple(BranchPoint(it, "") for it in kept)
        return Episode(
            "acme/Env-v0", "test/0", (), (), (), (), StopReason.ANSWERED, branch_points=points
        )

    first, second = episode(Pinned("a", "1"), Pinned("b", "2")), episode(Pinned("a", "3"))
    ledger.watch(first)
    ledger.watch(second)
    assert ledger.released("a") == ()
    del first
    assert ledger.released("a") == ("1",)
    assert ledger.released("a") == ()  # it is told once
    assert ledger.released("b") == ("2",)
    del second
    assert ledger.released("a") == ("3",)


def test_the_share_of_a_rollout_is_counted() -> None:
    """What ends, ends once, and in any order; `rollout` puts it in order."""
    tasks = [TaskRef("journeyman/Bank-v0", f"test/{i}", i) for i in range(5)]
    station, player = Station("one"), ScriptedPlayer(chat(), no_op)
    found = list(station.play(Errand.of(Packer().pack(player), tasks, batch_size=2)))
    assert sorted(it.index for it in found) == list(range(5))
    assert station.occupancy.ticks > 0
    here = rollout(player, tasks)
    assert [pickle.loads(it.episode) for it in sorted(found, key=lambda it: it.index)] == here
