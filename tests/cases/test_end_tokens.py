"""A turn ends by any end token that its model knows, and nothing stands behind it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from journeyman.agents.credit import Uniform
from journeyman.agents.credit.interface import Experience
from journeyman.agents.learning.samples import to_batch
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import HFPlayer, alike, load_student
from journeyman.agents.students.player import Conversation, Sampling
from journeyman.agents.students.tokenizers import end_ids_at
from journeyman.agents.students.vllm import VLLMPlayer
from journeyman.envs import Message, make

from ..agents.tiny import chat, llama, tokenizer

BANK = "journeyman/Bank-v0"
THIRD = 40
END, OTHER = (tokenizer().convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Biased(torch.nn.Module):
    """A head that finds some tokens far likelier than others, in their order."""

    def __init__(self, head: torch.nn.Module, *wanted: int) -> None:
        super().__init__()
        self.head = head
        self.wanted = wanted
        self.calls = 0

    @property
    def weight(self) -> Any:
        return self.head.weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(states).clone()
        logits[..., self.wanted[min(self.calls, len(self.wanted) - 1)]] += 1e4
        self.calls += 1
        return logits


def writing(*wanted: int, ends: Any = None) -> PreTrainedModel:
    """A model that writes these tokens, the last of them for ever."""
    model = llama(len(tokenizer()))
    model.config.max_position_embeddings = 4096
    model.generation_config = GenerationConfig(eos_token_id=ends)
    model.set_output_embeddings(Biased(model.get_output_embeddings(), *wanted))
    return model


def one_turn(player: HFPlayer) -> Any:
    stream = player.open([Conversation((5, 6, 7), 0, make(BANK))])
    turns: list[Any] = []
    while not turns:
        turns = stream.advance()
    return turns[0]


@pytest.mark.parametrize("end", [OTHER, END, THIRD])
@pytest.mark.parametrize("named", ["by the model", "by the dialect"])
def test_every_end_token_of_the_generation_config_ends_a_turn(end: int, named: str) -> None:
    known = [OTHER, THIRD]
    model = writing(9, 9, end, ends=known if named == "by the model" else None)
    ends = known if named == "by the dialect" else []
    turn = one_turn(HFPlayer(model, Dialect(tokenizer(), "names", ends=ends), Sampling(0.0)))
    assert (turn.tokens, turn.truncated) == ((9, 9, end), False)


def test_as_transformers_itself() -> None:
    theirs = writing(9, OTHER, ends=[END, OTHER]).generate(
        torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=24, pad_token_id=0
    )
    turn = one_turn(HFPlayer(writing(9, OTHER, ends=[END, OTHER]), chat(), Sampling(0.0)))
    assert theirs[0, 3:].tolist() == list(turn.tokens) == [9, OTHER]


def test_another_model_in_the_same_dialect_keeps_its_own_ends() -> None:
    student = HFPlayer(writing(9, ends=END), chat(), Sampling(0.0))
    assert one_turn(alike(student, writing(9, OTHER, ends=[OTHER]))).tokens == (9, OTHER)


def test_nothing_behind_an_end_is_kept_or_trained() -> None:
    """The end that was chosen stays, is counted, and the reply follows it at once."""
    model = writing(9, OTHER, 9, 9, OTHER, ends=[END, OTHER])
    env_kwargs = {"max_turns": 2}
    player = HFPlayer(model, chat(), Sampling(0.0, max_tokens=24))
    (episode,) = rollout(player, [TaskRef(BANK, "test/0")], env_kwargs=env_kwargs)
    (step,) = episode.steps
    start, end = step.span
    assert episode.tokens[start:end] == (9, OTHER)
    assert episode.mask[start:end] == (True, True)
    assert (step.text, step.truncated) == (chat().decode([9]), False)
    assert step.parts["stop"] == ((end - 1, end),)
    rows = to_batch([episode], Uniform().assign(Experience([episode])), 0)
    trained = rows["completion_ids"][rows["tool_mask"].bool()]
    assert trained.tolist() == [9, OTHER]


def test_the_end_that_the_template_writes_is_trusted() -> None:
    """A converted file may name another; both end turns, and what is written ends by the first."""
    converted = copy.deepcopy(tokenizer())
    converted.chat_template = CHATML
    converted.eos_token = "<|endoftext|>"
    dialect = Dialect(converted, "names", ends=[THIRD])
    assert (dialect.eos_id, dialect.end_ids) == (END, (END, OTHER, THIRD))
    assert dialect.turn("hi")[-1] == END
    assert dialect.reply([Message("tool", "1")]) == chat().reply([Message("tool", "1")])
    player = HFPlayer(writing(9, END), dialect, Sampling(0.0))
    assert one_turn(player).tokens == (9, END)


@pytest.mark.parametrize("mark", ["<end_of_turn>", "<|eot_id|>", "</s>", "<|end|>"])
def test_ends_of_other_families(mark: str) -> None:
    words = copy.deepcopy(tokenizer())
    words.add_tokens([mark], special_tokens=True)
    words.chat_template = CHATML.replace("<|im_end|>", mark)
    dialect = Dialect(words, "names")
    assert words.convert_ids_to_tokens(list(dialect.end_ids)) == [mark, "<|im_end|>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = llama(len(tokenizer()))
    model.config.eos_token_id = [END, THIRD]
    model.generation_config = GenerationConfig(eos_token_id=[END, OTHER])
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("config", ["generation_config.json", "config.json"])
def test_loaded_students_know_all_ends(folder: Path, config: str) -> None:
    """By the generation config, and by the model's where there is none; in both engines."""
    second = OTHER
    if config == "config.json":
        (folder / "generation_config.json").unlink()
        second = THIRD
    assert load_student(str(folder), render="names").dialect.end_ids == (END, second)
    assert end_ids_at(str(folder)) == (END, second)


class Recorded:
    """An engine that writes what it is told to, and keeps what it was asked."""

    max_length = 512
    vocabulary = 1 << 12

    def __init__(self, *turns: list[int]) -> None:
        self.turns = list(turns)
        self.ends: list[tuple[int, ...]] = []

    def submit(self, tokens: Any, ends: Any, **sampling: Any) -> str:
        self.ends.append(tuple(ends))
        return str(len(self.ends))

    def take(self, request: str) -> tuple[list[int], list[float]] | None:
        tokens = self.turns.pop(0)
        return tokens, [-1.0] * len(tokens)

    def sync(self) -> None: ...

    def step(self) -> None: ...


@pytest.mark.parametrize("end", [END, OTHER, THIRD])
def test_vllm_is_told_all_ends(end: int) -> None:
    engine: Any = Recorded([9, end])
    dialect = Dialect(tokenizer(), "names", ends=[OTHER, THIRD])
    player = VLLMPlayer(engine, dialect, Sampling(max_tokens=9))
    stream = player.open([Conversation((5, 6), 0, make(BANK))])
    (turn,) = stream.advance()
    assert engine.ends == [(END, OTHER, THIRD)]
    assert (turn.tokens, turn.truncated) == ((9, end), False)
