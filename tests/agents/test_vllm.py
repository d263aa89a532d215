"""The student in vLLM's engine against the one in transformers (`make test-vllm`)."""

import copy
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from journeyman.agents.credit import Uniform
from journeyman.agents.errors import (
    MissingExtraError,
    SettingError,
    UnsupportedModelError,
    VocabularyMismatchError,
)
from journeyman.agents.learning.collector import Batch, Collector
from journeyman.agents.learning.losses import JSD
from journeyman.agents.learning.trainers.parts import Parts
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students import vllm as students
from journeyman.agents.students import weights
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.agents.students.player import Conversation, Sampling
from journeyman.agents.students.vllm import VLLMPlayer
from journeyman.agents.students.vllm import load_student as load_vllm
from journeyman.agents.students.vllm_engine import Engine
from journeyman.agents.teachers import Detail
from journeyman.agents.teachers.local import LocalTeacher, load_teacher
from journeyman.envs import Episode, make

from .templates import tokenizer_of
from .tiny import BUILTIN, chat, llama, row_of, token_logprobs, tokenizer

peft = pytest.importorskip("peft")

needs_vllm = pytest.mark.vllm
# vLLM's own imports warn.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:vllm", "ignore::DeprecationWarning")

CLOSE = 1e-3
"""Most that two log-probabilities differ in float32."""
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 26,
    "block_size": 32,
}


@pytest.fixture(scope="module")
def student() -> VLLMPlayer:
    """`student=vllm`: a model that vLLM runs by transformers' class."""
    with initialize_config_module("journeyman.conf", version_base="1.3"):
        player: VLLMPlayer = instantiate(compose("eval", ["student=vllm"]).student)
    return player


@pytest.fixture(scope="module")
def twin(student: VLLMPlayer) -> HFPlayer:
    """The same model in transformers, made after vLLM has had its way with the class."""
    return load_student(
        "embedded-student", render="names", max_turn_tokens=48, max_context=640, device="cpu"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that vLLM has code of its own for; its heads are as wide as vLLM wants them."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    llama(len(tokenizer()), width=128, seed=4).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(str(folder), **SMALL)


@pytest.fixture
def native(engine: Engine) -> Iterator[VLLMPlayer]:
    yield VLLMPlayer(engine, chat(), Sampling(max_tokens=8))
    engine.__dict__.pop("model", None)  # a test may have asked for it


def engine_of(player: VLLMPlayer) -> Engine:
    assert isinstance(player.engine, Engine)
    return player.engine


def tasks(count: int) -> list[TaskRef]:
    ids = (BUILTIN[i % len(BUILTIN)] for i in range(count))
    return [TaskRef(env_id, f"test/{i}", seed=i) for i, env_id in enumerate(ids)]


def differences(model: Any, episodes: Sequence[Episode]) -> list[float]:
    """Of each chosen token: its log-probability in the episode from that of a full forward pass."""
    theirs = token_logprobs(model, [e.tokens for e in episodes])
    return [
        abs(float(expected) - found)
        for row, episode in zip(theirs, episodes, strict=True)
        for expected, found, chosen in zip(row, episode.logprobs, episode.mask, strict=True)
        if chosen
    ]


@needs_vllm
def test_greedy_episodes_are_those_of_transformers(student: VLLMPlayer, twin: HFPlayer) -> None:
    assert student.max_context == twin.max_context
    ours = rollout(student.at(temperature=0.0), tasks(24), batch_size=10)
    theirs = rollout(twin.at(temperature=0.0), tasks(24), batch_size=10)
    same = 0
    for mine, other in zip(ours, theirs, strict=True):
        pairs = zip(mine.tokens, other.tokens, strict=False)
        fork = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if fork is not None:  # rounding may break a tie
            with torch.inference_mode():
                logits = twin.model(torch.tensor([mine.tokens[:fork]])).logits[0, -1]
            assert logits.max() - logits[mine.tokens[fork]] < CLOSE
            continue
        same += 1
        assert mine.logprobs == pytest.approx(other.logprobs, abs=CLOSE)
        assert (mine.mask, mine.stop, mine.success) == (other.mask, other.stop, other.success)
        assert [s.truncated for s in mine.steps] == [s.truncated for s in other.steps]
        assert mine.state_hash == other.state_hash
    assert same >= 22
    assert len({len(e.steps) for e in ours}) > 2  # else there was little to compare
    assert {e.success for e in ours} == {True, False}


@needs_vllm
def test_sampled_tokens_have_their_logprobs_at_temperature_1(
    student: VLLMPlayer, twin: HFPlayer
) -> None:
    episodes = rollout(student.at(temperature=1.3), tasks(12))
    found = differences(twin.model, episodes)
    assert len(found) > 500
    assert max(found) < CLOSE


@needs_vllm
def test_samples_follow_the_softmax(native: VLLMPlayer, folder: Path) -> None:
    draws, temperature = 2000, 1.5
    prompt = tuple(chat().opening([], []))
    player = VLLMPlayer(native.engine, chat(), Sampling(temperature, max_tokens=1))
    stream = player.open([Conversation(prompt, seed, make(BUILTIN[0])) for seed in range(draws)])
    counts: Counter[int] = Counter()
    while not stream.idle:
        counts.update(turn.tokens[0] for turn in stream.advance())
    assert counts.total() == draws
    model = load_student(str(folder), render="names", device="cpu").model
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    expected = (logits / temperature).softmax(-1) * draws
    common = [int(token) for token in (expected > 20).nonzero()[:, 0]]
    assert len(common) > 9
    rest = draws - float(expected[common].sum())
    observed = [*(counts[token] for token in common), draws - sum(counts[t] for t in common)]
    wanted = [*expected[common].tolist(), rest]
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, wanted, strict=True))
    freedom = len(common)
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # mean and four standard deviations


@needs_vllm
def test_a_row_depends_on_its_seed_and_not_on_its_batch(native: VLLMPlayer) -> None:
    def play(refs: Sequence[TaskRef]) -> list[tuple[int, ...]]:
        return [e.tokens for e in rollout(native, refs, env_kwargs={"max_turns": 3})]

    together = play(tasks(6))
    assert [play([task])[0] for task in tasks(6)] == together
    assert play(tasks(6)[::-1])[::-1] == together
    other = TaskRef(BUILTIN[0], "test/0", seed=100)
    assert play([other])[0] != together[0]


@needs_vllm
def test_turns_of_a_row_have_dice_of_their_own(native: VLLMPlayer) -> None:
    prompt = tuple(chat().opening([], []))
    stream = native.open([Conversation(prompt, 0, make(BUILTIN[0]))])
    first = finished(stream)
    stream._tokens[0] = []  # the same prompt once more
    stream.extend(0, prompt)
    assert finished(stream).tokens != first.tokens


def finished(stream: Any) -> Any:
    while not (turns := stream.advance()):
        assert not stream.idle
    (turn,) = turns
    return turn


@needs_vllm
def test_a_turn_that_is_too_long_is_ended(native: VLLMPlayer) -> None:
    player = VLLMPlayer(native.engine, chat(), Sampling(0.0, max_tokens=4))
    stream = player.open([Conversation(tuple(chat().opening([], [])), 0, make(BUILTIN[0]))])
    turn = finished(stream)
    assert turn.truncated
    assert len(turn.tokens) == len(turn.logprobs) == 5
    assert turn.tokens[-1] == chat().eos_id not in turn.tokens[:-1]
    assert turn.logprobs[-1] == 0
    assert stream.idle and stream.advance() == []


@needs_vllm
def test_a_row_can_be_dropped_while_it_writes(native: VLLMPlayer) -> None:
    conversation = Conversation(tuple(chat().opening([], [])), 0, make(BUILTIN[0]))
    stream = native.open([conversation, conversation])
    assert stream.advance() == []
    stream.finish(0)
    assert finished(stream).row == 1
    assert stream.idle
    assert not native.engine._llm.llm_engine.has_unfinished_requests()


def compared(player: VLLMPlayer, folder: Path, **kwargs: Any) -> tuple[Any, list[float]]:
    """A trainer of two steps, and how far what it plays is from its own log-probabilities."""
    from trl import DistillationConfig  # imports vLLM if it is there, which warns

    from journeyman.agents.learning.trainers import distill

    words = player.dialect.tokenizer
    teacher = LocalTeacher(llama(len(words), width=48, seed=9), words)
    parts = Parts(player, teacher, JSD(), Uniform(), tasks, {"max_turns": 3})
    args = DistillationConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=6,
        learning_rate=1e-2,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = distill.build(parts, args, **kwargs)
    played = []

    class Comparing(Collector):
        def collect(self, *args: Any, **kwargs: Any) -> Batch:
            batch = super().collect(*args, **kwargs)
            played.append(max(differences(player.model, batch.episodes)))
            return batch

    own = trainer._collector
    parts_of_it = {it.name: getattr(own, it.name) for it in dataclasses.fields(own) if it.init}
    trainer._collector = Comparing(**parts_of_it)
    return trainer, played


@needs_vllm
def test_the_engine_plays_what_was_trained(
    native: VLLMPlayer, folder: Path, tmp_path: Path
) -> None:
    """After each optimiser step the next rollout's log-probabilities are the trained model's."""
    own = copy.deepcopy(tokenizer())  # a trainer may set its padding
    player = VLLMPlayer(native.engine, Dialect(own, "names"), Sampling(max_tokens=8))
    trainer, played = compared(player, tmp_path)
    trainer.train()
    assert len(played) == 2
    assert max(played) < CLOSE

    after = rollout(player, tasks(6), env_kwargs={"max_turns": 3})
    assert max(differences(player.model, after)) < CLOSE
    before = load_student(str(folder), render="names", device="cpu").model
    assert max(differences(before, after)) > 0.1


@needs_vllm
def test_weights_are_copied_into_a_model_of_transformers_too(
    student: VLLMPlayer, twin: HFPlayer
) -> None:
    try:
        with torch.no_grad():
            for weight in student.model.parameters():
                weight *= 1.1
        episodes = rollout(student, tasks(3), env_kwargs={"max_turns": 3})
        assert max(differences(student.model, episodes)) < CLOSE
        assert max(differences(twin.model, episodes)) > 0.1
    finally:  # the engine as it was
        student.model.load_state_dict(twin.model.state_dict())
        student.engine.sync()
        del student.engine.model


@needs_vllm
def test_a_model_that_transformers_cannot_play(tmp_path: Path) -> None:
    """A window much shorter than the episodes: it matters what is masked."""
    config = MistralConfig(
        vocab_size=len(tokenizer()),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        sliding_window=16,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    player = load_vllm(str(tmp_path), render="names", max_turn_tokens=8, engine=SMALL)
    episodes = rollout(player, tasks(3), env_kwargs={"max_turns": 3})
    assert max(differences(model, episodes)) < CLOSE
    blind = MistralForCausalLM(copy.deepcopy(config)).eval()
    blind.load_state_dict(model.state_dict())
    blind.config.sliding_window = None
    assert max(differences(blind, episodes)) > 0.1


@needs_vllm
def test_what_cannot_be_copied_is_refused(native: VLLMPlayer) -> None:
    peft.get_peft_model(native.model, peft.LoraConfig(r=9, target_modules=["q_proj"]))
    message = r"without a place for one: student\.lora=\{r: 9\}, or \+student.* its rank 9"
    with pytest.raises(UnsupportedModelError, match=message):
        native.open([])
    native.engine.model = torch.nn.Linear(1, 1, bias=False)
    native.engine.model.named_parameters = lambda: iter(())
    with pytest.raises(RuntimeError, match=r"has not, .*old ones: .*model\.embed_tokens\.weight"):
        native.open([])


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the model with code of its own."""
    place = tmp_path_factory.mktemp("models") / "adapter"
    model = load_student(str(folder), render="names", device="cpu").model
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear")
    found = peft.get_peft_model(model, config)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for name, weight in found.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.1)
    found.save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def adapted(adapter: Path) -> VLLMPlayer:
    """`student=vllm student.model=ADAPTER`."""
    return load_vllm(str(adapter), render="names", max_turn_tokens=8, engine=SMALL)


@needs_vllm
def test_an_adapters_folder_is_played_on_its_base(
    adapted: VLLMPlayer, adapter: Path, folder: Path
) -> None:
    engine = engine_of(adapted)
    engine.__dict__.pop("model", None)
    base = load_student(str(folder), render="names", device="cpu").model
    episodes = rollout(adapted, tasks(6), env_kwargs={"max_turns": 3})
    assert max(differences(base, episodes)) > 0.1
    model = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    assert max(differences(model, episodes)) < CLOSE
    assert engine.copied == 0 and "model" not in engine.__dict__


@needs_vllm
def test_an_adapter_is_swapped_after_each_step_and_nothing_else_is_copied(
    adapted: VLLMPlayer, folder: Path, tmp_path: Path
) -> None:
    engine = engine_of(adapted)
    engine.model = load_student(str(folder), render="names", device="cpu").model
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "o_proj", "up_proj"])
    began = engine.copied
    trainer, played = compared(adapted, tmp_path, peft_config=config)
    own = [it for it in trainer.model.parameters() if it.requires_grad]
    trainer.train()
    assert len(played) == 2 and max(played) < CLOSE
    after = rollout(adapted, tasks(6), env_kwargs={"max_turns": 3})
    assert max(differences(adapted.model, after)) < CLOSE
    with trainer.model.disable_adapter():
        assert max(differences(adapted.model, after)) > 0.1
    size = sum(it.numel() * 4 for it in own)
    assert size < 0.2 * sum(it.numel() * 4 for it in adapted.model.parameters())
    assert engine.copied - began == 3 * size  # before the first step, and after each
    rollout(adapted, tasks(1), env_kwargs={"max_turns": 1})
    assert engine.copied - began == 3 * size  # nothing has changed


@needs_vllm
def test_adapters_that_do_not_fit_the_engine_are_refused(adapted: VLLMPlayer, folder: Path) -> None:
    engine = engine_of(adapted)
    engine.model = load_student(str(folder), render="names", device="cpu").model
    with pytest.raises(UnsupportedModelError, match=r"enable_lora: the student has no adapter"):
        adapted.open([])
    peft.get_peft_model(engine.model, peft.LoraConfig(r=16, target_modules=["q_proj"]))
    with pytest.raises(UnsupportedModelError, match=r"vLLM refuses the student's adapter: .*rank"):
        adapted.open([])


@needs_vllm
def test_each_end_token_ends_a_turn_in_the_engine(native: VLLMPlayer) -> None:
    greedy = Sampling(0.0, max_tokens=6)
    (conversation,) = conversations(1)
    whole = finished(VLLMPlayer(native.engine, chat(), greedy).open([conversation]))
    other = whole.tokens[2]
    dialect = Dialect(tokenizer(), "names", ends=(other,))
    turn = finished(VLLMPlayer(native.engine, dialect, greedy).open([conversation]))
    assert not turn.truncated
    assert turn.tokens == whole.tokens[: whole.tokens.index(other) + 1]


@needs_vllm
def test_on_a_cpu_nothing_sleeps(native: VLLMPlayer) -> None:
    """Nor is the engine asked to: there it would only warn."""
    from vllm.platforms import current_platform

    assert not current_platform.is_sleep_mode_available()
    assert native.model is not None
    native.rest()
    assert len(rollout(native, tasks(1), env_kwargs={"max_turns": 1})) == 1


@needs_vllm
def test_ranks_are_vllms() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == weights._RANKS


@needs_vllm
def test_a_teacher_can_be_made_beside_the_engine(student: VLLMPlayer) -> None:
    teacher = load_teacher("embedded-teacher", device="cpu")
    (signal,) = teacher.annotate([row_of([1, 2, 3])], Detail.SAMPLED)
    assert signal.logprobs.isfinite().all()


@needs_vllm
def test_a_tokenizer_of_another_model_is_refused(engine: Engine) -> None:
    larger = copy.deepcopy(tokenizer())
    larger.add_tokens(["<extra>"])
    with pytest.raises(VocabularyMismatchError, match=r"the tokenizer has \d+ tokens"):
        VLLMPlayer(engine, Dialect(larger, "names"))


@needs_vllm
def test_a_turn_longer_than_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(UnsupportedModelError, match=r"max_turn_tokens=512: .*max_model_len=512"):
        VLLMPlayer(engine, chat(), Sampling(max_tokens=512))
    assert VLLMPlayer(engine, chat(), Sampling(max_tokens=500), max_context=100).max_context == 12


@needs_vllm
def test_a_context_longer_than_the_models_is_refused(folder: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"refuses .*: User-specified max_model_len \(5008\)"
    ):
        load_vllm(str(folder), render="names", max_turn_tokens=8, max_context=5000, engine=SMALL)


@needs_vllm
def test_a_model_that_vllm_does_not_know_is_refused(tmp_path: Path) -> None:
    config = OpenAIGPTConfig(
        vocab_size=len(tokenizer()), n_embd=16, n_layer=1, n_head=1, architectures=["NoSuchModel"]
    )
    OpenAIGPTLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"vLLM refuses .*OpenAIGPTLMHeadModel"):
        load_vllm(str(tmp_path), render="names", engine=SMALL)


class Recorded:
    """An engine that writes what it is told to, and remembers what it was asked."""

    vocabulary, max_length = len(tokenizer()), 512

    def __init__(self, *turns: Sequence[int]) -> None:
        self.turns = [(list(turn), [-1.0] * len(turn)) for turn in turns]
        self.asked: list[dict[str, Any]] = []

    def submit(self, tokens: Sequence[int], ends: Sequence[int], **sampling: Any) -> str:
        self.asked.append({"ends": tuple(ends)} | sampling)
        return str(len(self.asked))

    def take(self, request: str) -> tuple[list[int], list[float]] | None:
        return self.turns.pop(0)

    def sync(self) -> None: ...

    def rest(self) -> None: ...

    def step(self) -> None: ...


def recorded(engine: Any, **sampling: Any) -> VLLMPlayer:
    dialect = Dialect(tokenizer(), "names", ends=(7,))
    return VLLMPlayer(engine, dialect, Sampling(max_tokens=9, **sampling))


def conversations(count: int) -> list[Conversation]:
    prompt = tuple(chat().opening([], []))
    return [Conversation(prompt, seed, make(BUILTIN[0])) for seed in range(count)]


def test_the_engine_is_told_the_sampling() -> None:
    engine = Recorded()
    recorded(engine, temperature=0.5, top_p=0.9, top_k=4, min_p=0.1).open(conversations(1))
    (asked,) = engine.asked
    asked.pop("seed")
    told = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "max_tokens": 9}
    assert asked == told | {"ends": (chat().eos_id, 7)}


def test_turns_rows_and_seeds_have_dice_of_their_own() -> None:
    engine = Recorded(*[[5, 7]] * 30)
    for seed in range(5):
        stream = recorded(engine, seed=seed).open(conversations(6))
        for turn in stream.advance():
            stream.extend(turn.row, (1, 2))
    seeds = [asked["seed"] for asked in engine.asked]
    assert len(set(seeds)) == len(seeds) == 60


def test_any_end_token_ends_a_turn() -> None:
    eos = chat().eos_id
    stream = recorded(Recorded([5, eos], [5, 7], [5, 9])).open(conversations(3))
    by_eos, by_other, forced = stream.advance()
    assert (by_eos.tokens, by_eos.truncated) == ((5, eos), False)
    assert (by_other.tokens, by_other.truncated) == ((5, 7), False)
    assert (forced.tokens, forced.truncated) == ((5, 9, eos), True)
    assert forced.logprobs == (-1.0, -1.0, 0.0)


@pytest.mark.parametrize(
    "family", ["qwen3", "gemma3", "llama3_1", "gptoss", "glm4moe", "phi4_mini"]
)
def test_turns_end_in_vllm_as_they_do_in_transformers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the dialect's tokens, and by all of the generation config's."""
    words = tokenizer_of(family)
    words.save_pretrained(tmp_path)
    model = llama(len(words))
    other = words.convert_tokens_to_ids("z")
    model.generation_config.eos_token_id = [words.eos_token_id, other]
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(students, "Engine", lambda *args, **kwargs: Recorded())
    monkeypatch.setattr(Recorded, "vocabulary", len(words))
    place = {"model": str(tmp_path), "max_turn_tokens": 4}
    ours, theirs = load_vllm(**place), load_student(**place, device="cpu")
    assert set(ours.dialect.end_ids) == set(theirs.dialect.end_ids) >= {other, words.eos_token_id}
    own = {words.convert_ids_to_tokens(it) for it in ours.dialect.end_ids}
    expected = {"gptoss": "<|call|>", "glm4moe": "<|observation|>", "gemma3": "<end_of_turn>"}
    assert expected.get(family, "z") in own
    ours.open(conversations(1))
    engine: Any = ours.engine
    assert set(engine.asked[0]["ends"]) == set(ours.dialect.end_ids)


class Sleepy:
    """What an engine asks of vLLM as it rests and wakes."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(lora_config=None))

    def sleep(self, level: int) -> None:
        self.done.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.done.append("wake up")

    def apply_model(self, load: Any) -> list[set[str]]:
        self.done.append("weights")
        return [set()]

    def reset_prefix_cache(self, reset_running_requests: bool) -> None:
        self.done.append("forget prefixes")


@pytest.mark.parametrize("level", [1, 2])
def test_the_engine_sleeps_while_the_trainer_works(level: int) -> None:
    engine = object.__new__(Engine)
    engine._llm = llm = Sleepy()
    engine._sleep = level
    engine.sync()
    engine.rest()
    assert llm.done == []  # nobody trains
    engine.model = llama(len(tokenizer()))
    engine.sync()
    pushed = ["weights", "forget prefixes"]
    assert llm.done == pushed
    engine.rest()
    engine.rest()
    engine.sync()
    # At level 2 they were forgotten, and must be copied though nothing has changed.
    assert llm.done == [*pushed, f"sleep {level}", "wake up", *(pushed if level == 2 else [])]
    size = sum(it.numel() * 4 for it in engine.model.parameters())
    assert engine.copied == level * size


def test_it_rests_once_a_rollout_is_played() -> None:
    """Before anything is learned from it."""
    rested = []

    class Resting(HFPlayer):
        def rest(self) -> None:
            rested.append(self.model.training)

    player = Resting(llama(len(tokenizer())), chat(), Sampling(max_tokens=4))
    collector = Collector(player, Uniform(), None, None, {"max_turns": 1})
    collector.collect(tasks(2))
    assert rested == [False]


@pytest.mark.parametrize("sleep", [3, -1, True])
def test_levels_of_sleep(sleep: Any) -> None:
    with pytest.raises(SettingError, match=rf"student\.sleep={sleep}: expected 0, 1 or 2"):
        load_vllm("embedded-student", sleep=sleep)
    with pytest.raises(SettingError, match=r"student\.sleep=2: the base of an adapter"):
        load_vllm("embedded-student", sleep=2, engine={"enable_lora": True})


def test_texts_that_end_turns_are_refused() -> None:
    """Not only when a student is made: `at` may bring them too."""
    message = r"stops=\['x'\]: vLLM's engine reads tokens alone .* student=hf"
    for make_one in (
        lambda: recorded(Recorded(), stops=("x",)),
        lambda: recorded(Recorded()).at(stops=("x",)),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            make_one()


def test_without_vllm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'journeyman\[vllm\]'"):
        load_vllm("embedded-student", render="names")


def test_what_is_trained_is_in_float32_whatever_the_engine_plays_in() -> None:
    config = SimpleNamespace(dtype=torch.bfloat16)
    engine = object.__new__(Engine)
    engine._model_name = "embedded-student"
    engine._llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=config))
    assert {p.dtype for p in engine.model.parameters()} == {torch.float32}
