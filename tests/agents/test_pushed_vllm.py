"""vLLM's own server with weights pushed to it, against transformers (`make test-vllm`)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.students.hf import load_student
from journeyman.agents.students.vllm import VLLMPlayer
from journeyman.agents.students.vllm_server import ServerEngine
from journeyman.agents.students.vllm_server import load_student as load_pushed

from .test_vllm import CLOSE, compared, differences, tasks
from .vllm_serving import CACHE, COMMAND, OPTIONS, serving

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    # vLLM's own imports warn.
    pytest.mark.filterwarnings("ignore::FutureWarning:vllm", "ignore::DeprecationWarning"),
]
peft = pytest.importorskip("peft")

TURN, CONTEXT = 24, 640
KWARGS = {"max_turns": 3}


@pytest.fixture(scope="module", params=[False, True], ids=["weights", "adapter"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """`journeyman student serve embedded-student`, for all weights and for adapters."""
    engine = " ".join((*OPTIONS, CACHE, f"--max-model-len={CONTEXT + TURN}"))
    rank: Sequence[str] = ("--lora-rank=4",) if request.param else ()
    serve = (*COMMAND, "student", "serve", "embedded-student", f"--engine={engine}", *rank)
    with serving(serve, tmp_path_factory.mktemp("server")) as url:
        yield url, bool(request.param)


def test_what_it_plays_is_what_was_trained(served: tuple[str, bool], tmp_path: Path) -> None:
    url, adapts = served
    ways: dict[str, Any] = {"render": "names", "max_turn_tokens": TURN, "max_context": CONTEXT}
    player: VLLMPlayer = load_pushed(url, "embedded-student", **ways)
    engine = player.engine
    assert isinstance(engine, ServerEngine)
    twin = load_student("embedded-student", **ways, device="cpu")

    greedy = rollout(player.at(temperature=0.0), tasks(6), env_kwargs=KWARGS)
    theirs = rollout(twin.at(temperature=0.0), tasks(6), env_kwargs=KWARGS)
    assert [it.tokens for it in greedy] == [it.tokens for it in theirs]
    assert engine.copied == 0  # it serves these weights itself

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]) if adapts else None
    trainer, played = compared(player, tmp_path, **({"peft_config": config} if adapts else {}))
    own = [it for it in trainer.model.parameters() if it.requires_grad]
    trainer.train()
    assert len(played) == 2 and max(played) < CLOSE
    after = rollout(player, tasks(6), env_kwargs=KWARGS)
    assert max(differences(player.model, after)) < CLOSE
    assert max(differences(twin.model, after)) > 0.1
    assert engine.copied == 3 * sum(it.numel() * 4 for it in own)
    player.rest()  # on a CPU it is not asked to sleep


def test_sleeping_hinders_no_turn(served: tuple[str, bool]) -> None:
    """A CPU cannot; the doors are there."""
    url, adapts = served
    if adapts:
        pytest.skip("once is enough")
    player = load_pushed(
        url, "embedded-student", render="names", max_turn_tokens=TURN, max_context=CONTEXT, sleep=1
    )
    with torch.no_grad():
        for weight in player.model.parameters():
            weight *= 1.01
    for _ in range(2):
        episodes = rollout(player, tasks(2), env_kwargs={"max_turns": 1})
        assert max(differences(player.model, episodes)) < CLOSE
        player.rest()
