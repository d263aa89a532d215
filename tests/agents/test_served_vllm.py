"""A teacher on vLLM's own server against the same weights in this process (`make test-vllm`)."""

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from journeyman.agents.errors import TeacherServerError, VocabularyMismatchError
from journeyman.agents.learning.losses.functions import top_k_reverse_kl
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.agents.students.player import Sampling
from journeyman.agents.teachers import Detail
from journeyman.agents.teachers.local import load_teacher
from journeyman.agents.teachers.served import ROUNDING, ServedTeacher
from journeyman.envs import Episode

from .tiny import BUILTIN, chat, llama, tokenizer
from .vllm_serving import CACHE, COMMAND, OPTIONS, serving

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

K = 16
CLOSE = 1e-2
"""Nats between two engines, both in float32."""
ENGINE = " ".join((*OPTIONS, CACHE))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`journeyman teacher serve embedded-teacher`, until the tests are done."""
    serve = (*COMMAND, "teacher", "serve", "embedded-teacher", f"--engine={ENGINE}")
    with serving(serve, tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module")
def student() -> HFPlayer:
    return load_student(
        "embedded-student", render="names", max_turn_tokens=48, max_context=640, device="cpu"
    )


@pytest.fixture(scope="module")
def rows(student: HFPlayer) -> list[Episode]:
    ids = (BUILTIN[i % len(BUILTIN)] for i in range(12))
    tasks = [TaskRef(env_id, f"test/{i}", seed=i) for i, env_id in enumerate(ids)]
    return rollout(student, tasks, batch_size=12)


def teacher(url: str, student: HFPlayer, **changes: Any) -> ServedTeacher:
    made = ServedTeacher(url, **{"top_k": K, "concurrency": 4, **changes})
    made.check(student)
    return made


def test_it_tells_what_the_same_weights_tell_here(
    url: str, student: HFPlayer, rows: list[Episode]
) -> None:
    ours = teacher(url, student).annotate(rows, Detail.TOP_K)
    local = load_teacher("embedded-teacher", top_k=K, device="cpu").annotate(rows, Detail.TOP_K)
    assert sum(sum(row.mask) for row in rows) > 400
    for mine, other in zip(ours, local, strict=True):
        torch.testing.assert_close(mine.logprobs, other.logprobs, atol=CLOSE, rtol=0)
        assert mine.top is not None and other.top is not None
        # Two tokens as likely as one another may stand in either order.
        ranks = (mine.top.logprobs, other.top.logprobs)
        likely = ranks[1] > -10
        torch.testing.assert_close(ranks[0][likely], ranks[1][likely], atol=CLOSE, rtol=0)
        assert (mine.top.ids == other.top.ids)[likely].float().mean() > 0.99


def test_its_gradient_is_that_of_the_local_one(
    url: str, student: HFPlayer, rows: list[Episode]
) -> None:
    """What the loss makes of it, for some student; what float32 hides is taken as the least."""
    tops = [
        signal.top
        for it in (teacher(url, student), load_teacher("embedded-teacher", top_k=K, device="cpu"))
        for signal in it.annotate(rows[:2], Detail.TOP_K)
    ]
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for top in tops:
        assert top is not None
        shape = (len(top.ids), len(tokenizer()))
        logits = torch.randn(shape, generator=generator.manual_seed(0)).requires_grad_()
        ours = logits.log_softmax(-1).gather(1, top.ids)
        tail = top.tail.clamp(min=math.log(ROUNDING))
        top_k_reverse_kl(ours, top.logprobs, tail).sum().backward()
        gradients.append(logits.grad)
    for mine, other in zip(gradients[:2], gradients[2:], strict=True):
        assert mine is not None and other is not None
        assert torch.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.999


def test_wrong_names_and_too_few_tokens_are_refused(url: str, student: HFPlayer) -> None:
    with pytest.raises(TeacherServerError, match="it serves embedded-teacher"):
        teacher(url, student, model="embedded-student")
    with pytest.raises(TeacherServerError, match=r"max.logprobs|greater than max"):
        teacher(url, student, top_k=K + 1)


def test_another_tokenizer_is_refused(url: str) -> None:
    """The same words under other ids."""
    words = tokenizer()
    vocabulary = words.get_vocab()
    other = type(words).from_pretrained(words.name_or_path)
    model = json.loads(other.backend_tokenizer.to_str())
    names = sorted(model["model"]["vocab"], key=lambda name: model["model"]["vocab"][name])
    taken = [model["model"]["vocab"][name] for name in names]
    model["model"]["vocab"] = dict(zip(names, taken[1:] + taken[:1], strict=True))
    other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(model))
    assert other.get_vocab() != vocabulary
    dialect = type(chat())(other, "names")
    moved = HFPlayer(llama(len(vocabulary), seed=4), dialect, Sampling(max_tokens=48))
    with pytest.raises(VocabularyMismatchError, match="to the student and"):
        teacher(url, moved)


def test_it_teaches_as_well_as_the_local_one(url: str, tmp_path: Path) -> None:
    """20 steps, 320 episodes: success after them lies within the other's interval."""
    settings = (
        "steps=20",
        "loss=top_k",
        "credit=trace",
        "evaluation.tasks=150",
        "log_episodes=0",
        "threads=1",
        "env.kwargs.max_turns=8",
        "trainer.steps_per_generation=4",
        "trainer.args.per_device_train_batch_size=16",
        "trainer.args.learning_rate=2e-3",
        f"teacher.top_k={K}",
    )
    rows = {}
    for name, choice in {
        "local": ("teacher=embedded",),
        "served": ("teacher=served", f"teacher.base_url={url}"),
    }.items():
        command = [*COMMAND, "train", *settings, *choice, f"run_dir={tmp_path / name}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        rows[name] = json.loads((tmp_path / name / "summary.json").read_text())["rows"]
        # A teacher on a server does not play.
        assert ("teacher" in rows[name]) is (name == "local")
    before, local, served = (
        row["success"]
        for row in (
            rows["served"]["student before"],
            rows["local"]["student after"],
            rows["served"]["student after"],
        )
    )
    print(f"before {before['rate']:.3f}, local {local['rate']:.3f}, served {served['rate']:.3f}")
    assert served["low"] <= local["high"] and local["low"] <= served["high"]
    assert served["rate"] > before["rate"]
