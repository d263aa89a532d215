"""The student on a vLLM server that weights are pushed to; vLLM's own: `test_pushed_vllm.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from journeyman.agents.errors import SettingError, StudentServerError, UnsupportedModelError
from journeyman.agents.students.player import Conversation, Turn
from journeyman.agents.students.vllm import VLLMPlayer
from journeyman.agents.students.vllm_server import ServerEngine, load_student
from journeyman.envs import make

from .pushed_server import PushedServer, mark, pushed
from .tiny import BUILTIN, chat, llama, tokenizer

peft = pytest.importorskip("peft")

LOOKS = ("/v1/models", "/weight_info", "/is_sleeping")
"""Doors that change nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    llama(len(tokenizer()), seed=4).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "adapter"
    model = llama(len(tokenizer()), seed=4)
    model.name_or_path = str(folder)
    adapted(model).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def server(folder: Path) -> Iterator[PushedServer]:
    with pushed(str(folder), chat().eos_id) as server:
        yield server


def student(server: PushedServer, model: Path, **changes: Any) -> VLLMPlayer:
    fields = {"render": "names", "max_turn_tokens": 8, "patience": 5.0, **changes}
    return load_student(server.url, str(model), **fields)


def engine_of(player: VLLMPlayer) -> ServerEngine:
    assert isinstance(player.engine, ServerEngine)
    return player.engine


def adapted(model: Any) -> Any:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def play(player: VLLMPlayer, count: int = 1) -> list[Turn]:
    """A turn of each of so many conversations."""
    prompt = tuple(chat().opening([], []))[:20]
    rows = [Conversation(prompt, seed, make(BUILTIN[0])) for seed in range(count)]
    stream, turns = player.open(rows), []
    while not stream.idle:
        turns += stream.advance()
    return sorted(turns, key=lambda turn: turn.row)


def weights(player: VLLMPlayer) -> float:
    return mark(dict(player.model.named_parameters()))


def change(player: VLLMPlayer) -> None:
    with torch.no_grad():
        player.model.model.norm.weight += 1


def test_a_turn_is_tokens_in_and_tokens_out(server: PushedServer, folder: Path) -> None:
    player = student(server, folder).at(temperature=0.5, top_p=0.9, top_k=4, min_p=0.1)
    first, second = play(player, 2)
    assert first.tokens == (5, chat().eos_id) and not first.truncated
    assert first.logprobs == (-0.5, -0.25)  # the weights that it was started with
    asked = sorted(server.turns, key=lambda it: it["seed"])
    assert len({it.pop("seed") for it in asked}) == 2
    assert asked[0] == asked[1]
    assert asked[0] == {
        "model": "served",
        "prompt": list(chat().opening([], []))[:20],
        "stop_token_ids": list(player.dialect.end_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "repetition_penalty": 1.0,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "max_tokens": 8,
    }
    assert second.logprobs == first.logprobs
    assert engine_of(player).copied == 0 and server.version == "default"


def test_weights_are_pushed_when_they_have_changed(server: PushedServer, folder: Path) -> None:
    player = student(server, folder)
    size = sum(it.numel() * 4 for it in player.model.parameters())
    before = weights(player)
    for _ in range(2):  # the second time there is nothing new
        (turn,) = play(player)
        assert turn.logprobs[0] == pytest.approx(before)
        assert engine_of(player).copied == size
    change(player)
    (turn,) = play(player)
    assert turn.logprobs[0] == pytest.approx(weights(player)) != before
    assert engine_of(player).copied == 2 * size
    doors = [it for it in server.doors if it not in LOOKS]
    push = ["/collective_rpc", "/reset_prefix_cache?reset_running_requests=true"]
    push += ["/update_weight_version", "/v1/completions"]
    assert doors == [*push, "/v1/completions", *push]
    assert list(engine_of(player)._folder.iterdir()) == []  # weights are large


def test_an_adapter_alone_is_pushed(server: PushedServer, folder: Path) -> None:
    player = student(server, folder)
    model = adapted(player.model)
    own = {n: it for n, it in model.named_parameters() if "lora_" in n}
    size = sum(it.numel() * 4 for it in own.values())
    for times in (1, 2, 3):
        (turn,) = play(player)
        assert turn.logprobs[0] == pytest.approx(mark(own))
        assert engine_of(player).copied == times * size
        assert len(server.adapters) == 1 and server.weights is None
        with torch.no_grad():
            next(iter(own.values())).add_(1)
    assert len({it["model"] for it in server.turns}) == 3  # or old prefixes would be found


def test_a_folder_with_an_adapter_is_played_on_its_base(
    server: PushedServer, folder: Path, adapter: Path
) -> None:
    from safetensors.torch import load_file

    player = student(server, adapter)
    (turn,) = play(player)
    own = load_file(adapter / "adapter_model.safetensors")
    assert turn.logprobs[0] == pytest.approx(mark(own))
    assert "model" not in player.engine.__dict__  # nobody has to load it
    server.root = "elsewhere"
    with pytest.raises(StudentServerError, match=r"is an adapter of .*student\.served=served"):
        student(server, adapter)
    assert student(server, adapter, served="served").max_context == 56


def test_another_model_than_the_servers_is_pushed(
    server: PushedServer, folder: Path, tmp_path: Path
) -> None:
    """Else `journeyman eval` would measure whatever is there."""
    other = tmp_path / "other"
    llama(len(tokenizer()), seed=5).save_pretrained(other)
    tokenizer().save_pretrained(other)
    (turn,) = play(student(server, other))
    assert turn.logprobs[0] == pytest.approx(
        mark(dict(llama(len(tokenizer()), seed=5).named_parameters()))
    )
    (turn,) = play(again := student(server, folder))  # it has another's now
    assert turn.logprobs[0] == pytest.approx(weights(again))


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_server_that_was_started_anew_gets_the_weights_again(
    server: PushedServer, folder: Path, with_adapter: bool
) -> None:
    """Whatever it wrote with those it was started with is written again."""
    player = student(server, folder)
    if with_adapter:
        adapted(player.model)
    else:
        change(player)
    (expected,) = play(player)
    left = [2]

    def killed(handler: Any) -> bool:
        if handler.path == "/v1/completions" and left[0]:
            left[0] -= 1
            server.start_anew()
        return False

    server.faults.append(killed)
    found = play(player, 3)
    assert [turn.logprobs for turn in found] == [expected.logprobs] * 3
    assert left == [0] and len(server.turns) > 4


def test_weights_of_another_run_are_not_played(server: PushedServer, folder: Path) -> None:
    player = student(server, folder)
    assert player.model is not None

    def robbed(handler: Any) -> bool:
        if handler.path == "/v1/completions":
            server.version = "another's"
        return False

    server.faults.append(robbed)
    with pytest.raises(StudentServerError, match="another run has pushed"):
        play(player)
    server.faults.clear()
    assert play(student(server, folder))  # whoever comes next pushes its own


def test_what_is_down_for_a_moment_is_waited_for(server: PushedServer, folder: Path) -> None:
    player = student(server, folder)
    left = [1, 1]

    def busy(handler: Any) -> bool:
        if handler.path == "/v1/completions" and left:
            left.pop()
            handler.send(503, {"error": {"message": "busy"}}, retry_after="0.01")
            return True
        return False

    server.faults.append(busy)
    assert len(play(player)) == 1 and not left


def test_a_server_that_is_gone_ends_the_run(folder: Path) -> None:
    with pushed(str(folder), chat().eos_id) as server:
        player = student(server, folder, patience=0.2)
        assert play(player)

        def gone(handler: Any) -> bool:
            handler.close_connection = True  # without a word
            return True

        server.faults.append(gone)
    with pytest.raises(StudentServerError, match=r"has not answered for .*start it again"):
        play(player)
    with pytest.raises(StudentServerError, match="has not answered for"):
        student(server, folder, patience=0.2)


def test_a_server_without_doors_for_trainers_is_refused(server: PushedServer, folder: Path) -> None:
    def closed(handler: Any) -> bool:
        if handler.path == "/weight_info":
            handler.send(404, {"detail": "Not Found"})
            return True
        return False

    server.faults.append(closed)
    with pytest.raises(StudentServerError, match=r"takes no weights \(404: .*student serve"):
        student(server, folder)


def test_what_it_refuses_is_told(server: PushedServer, folder: Path) -> None:
    player = student(server, folder)

    def refusing(handler: Any) -> bool:
        if handler.path in ("/v1/completions", "/v1/load_lora_adapter"):
            handler.send(400, {"error": {"message": "too long for me"}})
            return True
        return False

    server.faults.append(refusing)
    with pytest.raises(StudentServerError, match=r"refuses \(400\): 'too long for me'"):
        play(player)
    adapted(player.model)
    with pytest.raises(UnsupportedModelError, match=r"400: 'too long for me'\); .*--lora-rank N"):
        play(player)


def test_answers_that_are_no_turns(server: PushedServer, folder: Path) -> None:
    player = student(server, folder)

    def strange(handler: Any) -> bool:
        if handler.path == "/v1/completions":
            handler.send(200, {"choices": [{"text": "hello"}]})
            return True
        return False

    server.faults.append(strange)
    with pytest.raises(StudentServerError, match="no token ids with their log-probabilities"):
        play(player)


def test_weights_that_it_does_not_know_are_told(server: PushedServer, folder: Path) -> None:
    player = student(server, folder)
    change(player)

    def partly(handler: Any) -> bool:
        if handler.path == "/collective_rpc":
            handler.send(200, {"results": [["visual.proj"]]})
            return True
        return False

    server.faults.append(partly)
    with pytest.raises(StudentServerError, match=r"play with old ones: visual\.proj; .*student=hf"):
        play(player)


def test_names_of_what_is_served(server: PushedServer, folder: Path) -> None:
    assert student(server, folder, served="served")
    with pytest.raises(StudentServerError, match=r"does not serve 'other'; it serves served"):
        student(server, folder, served="other")


def test_it_sleeps_while_the_trainer_works(server: PushedServer, folder: Path) -> None:
    for level, pushes in ((1, 1), (2, 2)):
        server.start_anew()
        player = student(server, folder, sleep=level)
        server.doors.clear()
        player.rest()  # nobody trains
        assert player.model is not None
        play(player)
        player.rest()
        player.rest()
        play(player)
        doors = [it for it in server.doors if it != "/weight_info"]
        assert doors.count(f"/sleep?level={level}") == doors.count("/wake_up") == 1
        assert doors.index(f"/sleep?level={level}") < doors.index("/wake_up")
        assert doors.count("/collective_rpc") == pushes
    adapted(player.model)
    play(player)
    with pytest.raises(SettingError, match=r"student\.sleep=2: the base of an adapter"):
        player.rest()
    with pytest.raises(SettingError, match=r"student\.sleep=3: expected 0, 1 or 2"):
        student(server, folder, sleep=3)


@pytest.mark.parametrize("level", [1, 2])
def test_a_server_that_a_killed_run_left_asleep_is_woken(
    server: PushedServer, folder: Path, level: int
) -> None:
    """And gets the weights again, whatever it had: at level 2 they are forgotten."""
    gone = student(server, folder, sleep=level)
    change(gone)
    play(gone)
    gone.rest()
    assert server.sleeps
    server.version, server.weights = "default", {}
    again = student(server, folder)
    (turn,) = play(again)
    assert turn.logprobs[0] == pytest.approx(weights(again))


def test_a_row_can_be_dropped_while_it_writes(server: PushedServer, folder: Path) -> None:
    player = student(server, folder, concurrency=1)
    prompt = tuple(chat().opening([], []))[:20]
    rows = [Conversation(prompt, seed, make(BUILTIN[0])) for seed in range(4)]
    stream = player.open(rows)
    stream.finish(2)
    turns = []
    while not stream.idle:
        turns += stream.advance()
    assert sorted(turn.row for turn in turns) == [0, 1, 3]
