"""A teacher of another family: what is cut into spans, what they are worth, what they teach."""

import copy
import dataclasses
import functools
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from journeyman.agents.credit import Credit, Outcome, StepDecay, Trace
from journeyman.agents.errors import SettingError, VocabularyMismatchError
from journeyman.agents.learning.losses import (
    JSD,
    Loss,
    SampledReverseKL,
    SpanReverseKL,
    TeacherView,
    TopKReverseKL,
)
from journeyman.agents.learning.trainers import distill
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.dialect import FAMILIES, Dialect
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.agents.teachers import Annotations, Detail, Signal, Teacher
from journeyman.agents.teachers.cross_tokenizer import CrossTokenizerTeacher
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.agents.teachers.spans import char_spans, number_spans, token_edges
from journeyman.envs import Episode, Step
from journeyman.tools import ToolCall, ToolResult

from .test_trainers import babbler, changed, distillation, make_parts, weights
from .tiny import BUILTIN, chat, gpt2, tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}<eot>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CORPUS = [
    "The quick brown fox transfers 250 coins from savings to checking.",
    "accounts account balance order calendar meeting Answer: done name arguments source target",
    '<tool_call>\n{"name": "get_event", "arguments": {"event": "E12"}}\n</tool_call> {"day": 3}',
    "Use the tools. End with one line: Answer: value [system] [user] [assistant] [tool] Tools: ",
    "Grüße aus Zürich, prix 12 €",
] * 4


@functools.cache
def other(kind: str = "bytes") -> PreTrainedTokenizerFast:
    """A tokenizer of another family, trained on a few lines: of bytes, or of whole characters."""
    special = ["<pad>", "<eot>", "<unk>"]
    if kind == "bytes":
        built = Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=560, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:  # as SentencePiece does it: a space begins a word, and the first is not written
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        built = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        built.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        built.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=special + bytes_, show_progress=False
        )
    built.train_from_iterator(CORPUS, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=built, eos_token="<eot>", pad_token="<pad>", unk_token="<unk>"
    )
    found.chat_template = TEMPLATE
    return found


def played(count: int = 6, logprobs: bool = True) -> list[Episode]:
    """Gold episodes, with made-up log-probabilities of whoever played them."""
    tasks = [TaskRef(BUILTIN[i % 3], f"train/{i}", seed=i) for i in range(count)]
    rows = rollout(ScriptedPlayer(chat(), oracle), tasks)
    rng = random.Random(7)
    return [
        dataclasses.replace(
            row, logprobs=tuple(-rng.randint(1, 400) / 128 if it else 0.0 for it in row.mask)
        )
        for row in rows
    ]


def student(model: Any = None) -> HFPlayer:
    own = Dialect(copy.deepcopy(tokenizer()), "names")
    return HFPlayer(model or gpt2(len(tokenizer())), own, Sampling(max_tokens=6))


def foreign(kind: str = "bytes", longest: int = 512, **kwargs: Any) -> CrossTokenizerTeacher:
    model = gpt2(len(other(kind)), seed=3).double()
    reader = LocalTeacher(model, other(kind))
    return CrossTokenizerTeacher(reader, other(kind), longest, render="names", **kwargs)


def step_of(text: str, calls: Sequence[ToolCall] = (), tokens: int = 1) -> Step:
    return Step((0, tokens + 1), text, tuple(ToolResult(call, "") for call in calls))


# What is cut


@pytest.mark.parametrize("family", FAMILIES, ids=lambda it: it.name)
def test_a_turn_is_cut_at_calls_and_arguments_in_every_form(family: Any) -> None:
    # in the alphabet's order, in which some forms write them
    arguments = {"note": "name: to = “to”", "sum": 250, "to": "Ann"}
    calls = [ToolCall("send_to", arguments), ToolCall("stop", {})]
    said = "I look.\nThen I pay.\n" + "".join(map(family.form.render, calls))
    spans = char_spans(step_of(said, family.form(said, ())), range(len(said) + 1))
    texts = [said[start:end] for start, end in spans]
    assert "".join(texts) == said
    assert texts[:2] == ["I look.\n", "Then I pay.\n"]
    body = texts[2:]
    bare = [it.lstrip("\"'") for it in body]
    begun = [i for name in arguments for i, it in enumerate(bare) if it.startswith(name)]
    assert len(begun) == 3 and begun == sorted(begun), body
    assert "send_to" in "".join(body[: begun[0]])
    assert "250" in body[begun[1]] and "Ann" in body[begun[2]]
    assert "stop" in "".join(body[begun[2] + 1 :])


def test_a_cut_inside_a_token_moves_to_where_none_is_cut() -> None:
    step = step_of("one\ntwo\nthree", ())
    assert char_spans(step, range(14)) == [(0, 4), (4, 8), (8, 13)]
    assert char_spans(step, [0, 3, 6, 13]) == [(0, 6), (6, 13)]
    assert char_spans(step, [0, 13]) == [(0, 13)]
    assert char_spans(step, []) == []
    assert char_spans(step_of(""), [0]) == []


@pytest.mark.parametrize("kind", ["bytes", "characters"])
@pytest.mark.parametrize(
    "text", ["plain text", " two  spaces ", "Zürich €12\n\n日本 🙂🙂", "\ttab\n", "a", "é"]
)
def test_edges_are_where_prefixes_are_whole(kind: str, text: str) -> None:
    """Against decoding every prefix anew."""
    own = Dialect(other(kind), "names")
    ids = own.turn(text)[:-1]
    edges = token_edges(ids, own.decode, text)
    prefixes = [own.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert prefixes[-1] == text
    whole = {len(p): prefixes.index(p) for p in prefixes if not p.endswith("\ufffd")}
    assert edges == whole | {len(text): len(ids)}
    assert token_edges(ids, own.decode, text + "!") == {}


# What spans are worth


def test_a_span_is_the_sum_over_the_teachers_own_tokens() -> None:
    """By hand: its template, the tokenizer's own offsets, a plain pass in float64."""
    rows, teacher = played(), foreign()
    teacher.check(student())
    model, own = teacher._reader._model, other()  # type: ignore[attr-defined]
    signals = teacher.annotate(rows, Detail.SPANS)
    compared = 0
    for row, signal in zip(rows, signals, strict=True):
        assert signal.spans is not None
        system, *rest = row.opening
        names = "Tools: " + " ".join(tool.name for tool in row.tools)
        text = f"[system]{system.content}\n{names}\n"
        text += "".join(f"[{m.role}]{m.content}\n" for m in rest) + "[assistant]"
        ids, first = own.encode(text), []
        offsets: list[list[tuple[int, int]]] = []
        for step in row.steps:
            told = own(step.text, return_offsets_mapping=True)
            first.append(len(ids))
            offsets.append([*told["offset_mapping"], (len(step.text), len(step.text) + 1)])
            said = "".join(f"[{m.role}]{m.content}\n" for m in step.reply)
            ids += [*told["input_ids"], own.eos_token_id, *own.encode(f"\n{said}[assistant]")]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for step, begin, places in zip(row.steps, first, offsets, strict=True):
            start, end = step.span
            known = signal.spans[start:end].tolist()
            assert -1 not in known and known == sorted(known)
            seen = 0
            for number in sorted(set(known)):
                inside = [start + i for i, it in enumerate(known) if it == number]
                size = len(chat().decode([row.tokens[i] for i in inside]))
                size = 1 if inside == [end - 1] else size
                theirs = [
                    begin + i for i, (a, b) in enumerate(places) if seen <= a and b <= seen + size
                ]
                expected = sum(float(logp[i - 1, ids[i]]) for i in theirs)
                expected -= sum(row.logprobs[i] for i in inside)
                ratio = signal.logprobs[inside] - torch.tensor(row.logprobs).double()[inside]
                assert float(ratio.sum()) == pytest.approx(expected, abs=1e-6)
                seen += size
                compared += 1
            assert seen == len(step.text) + 1
        plain = [i for i, chosen in enumerate(row.mask) if not chosen]
        assert not signal.logprobs[plain].any() and set(signal.spans[plain].tolist()) <= {-1}
    assert compared > 6 * 6


def test_with_the_students_tokenizer_a_span_is_the_sum_over_its_tokens() -> None:
    rows = played()
    model = gpt2(len(tokenizer()), seed=6).double()
    own = copy.deepcopy(tokenizer())
    local = LocalTeacher(model, own)
    same = CrossTokenizerTeacher(local, own, 512, render="names")
    same.check(student())
    by_token = Annotations(local, Detail.SPANS, chat()).of(rows)
    for row, spans, tokens in zip(rows, same.annotate(rows, Detail.SPANS), by_token, strict=True):
        assert spans.spans is not None and tokens.spans is not None
        assert torch.equal(spans.spans, tokens.spans)
        assert int(spans.spans.max()) + 1 > len(row.steps) * 2
        ours = torch.tensor(row.logprobs).double()
        for number in range(int(spans.spans.max()) + 1):
            inside = spans.spans == number
            expected = (tokens.logprobs - ours)[inside].sum()
            found = (spans.logprobs - ours)[inside].sum()
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


class Listening(Teacher):
    """Finds nothing, and remembers what it was given to read."""

    def __init__(self) -> None:
        self.rows: list[Episode] = []

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        self.rows += rows
        return [Signal(torch.zeros(len(row.tokens))) for row in rows]


def test_what_it_reads() -> None:
    """Its own template, and the student's calls as they were written: it is told their form."""
    reader, own = Listening(), copy.deepcopy(other())
    teacher = CrossTokenizerTeacher(reader, own, 4096)
    teacher.check(student())
    (row,) = played(1)
    teacher.annotate([row], Detail.SPANS)
    text = own.decode(reader.rows[0].tokens)
    assert "<tool_call>" in text.partition("[user]")[0], "how to call"
    assert all(tool.signature() in text for tool in row.tools)
    for step in row.steps:
        assert f"[assistant]{step.text}<eot>" in text
    heard = [m.content for step in row.steps[:-1] for m in step.reply]
    assert heard and all(f"[tool]{content}" in text for content in heard)
    assert text.endswith(f"{row.steps[-1].text}<eot>")


ALTERNATING = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + ' ' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "[{{ 'model' if m.role == 'assistant' else m.role }}]"
    "{{ (first if loop.first else '') + m.content }}<eot>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)


def test_a_template_without_tools_has_a_user_say_what_they_said() -> None:
    """As Gemma's: no system, no tools, and roles that must alternate."""
    reader, own = Listening(), copy.deepcopy(other())
    own.chat_template = ALTERNATING
    teacher = CrossTokenizerTeacher(reader, own, 4096)
    teacher.check(student())
    (row,) = played(1)
    twice = dataclasses.replace(row.steps[0], reply=row.steps[0].reply * 2)
    row = dataclasses.replace(row, steps=(twice, *row.steps[1:]))
    (signal,) = teacher.annotate([row], Detail.SPANS)
    text = own.decode(reader.rows[0].tokens)
    said = twice.reply[0].content
    assert f"[model]{twice.text}<eot>\n[user]{said}\n{said}<eot>\n[model]" in text
    assert text.startswith(f"[user]{row.opening[0].content}")
    assert signal.spans is not None
    assert torch.equal(signal.spans >= 0, torch.tensor(row.mask))


def test_what_cannot_be_compared_teaches_nothing() -> None:
    """A turn that was played elsewhere, one with half a character, one beyond the context."""
    (row,) = played(1)
    assert len(row.steps) >= 3
    teacher = foreign()
    teacher.check(student())
    (whole,) = teacher.annotate([row], Detail.SPANS)
    first, second = row.steps[0].span, row.steps[1].span
    masked = dataclasses.replace(
        row, mask=tuple(it and not first[0] <= i < first[1] for i, it in enumerate(row.mask))
    )
    broken = dataclasses.replace(
        row,
        steps=tuple(
            dataclasses.replace(step, text=step.text + "\ufffd") if i == 1 else step
            for i, step in enumerate(row.steps)
        ),
    )
    for changed_row, (start, end) in ((masked, first), (broken, second)):
        (found,) = teacher.annotate([changed_row], Detail.SPANS)
        assert found.spans is not None and whole.spans is not None
        assert set(found.spans[start:end].tolist()) == {-1}
        own = torch.tensor(changed_row.logprobs).double()
        assert torch.equal(found.logprobs[start:end], own[start:end])
        last = slice(*row.steps[-1].span)
        assert (found.spans[last] >= 0).all()
        if changed_row is masked:  # nobody chose it
            assert found.spoken is None
        else:
            assert found.spoken is not None and found.spoken[last].all()
            assert not found.spoken[start:end].any()
    short = foreign(longest=40)
    short.check(student())
    (nothing,) = short.annotate([row], Detail.SPANS)
    assert nothing.spans is not None and set(nothing.spans.tolist()) == {-1}
    assert whole.spoken is None and nothing.spoken is not None and not nothing.spoken.any()


def test_an_end_that_was_forced_is_not_compared() -> None:
    (row,) = played(1)
    end = row.steps[0].span[1]
    row = dataclasses.replace(row, mask=tuple(it and i != end - 1 for i, it in enumerate(row.mask)))
    teacher = foreign()
    teacher.check(student())
    (found,) = teacher.annotate([row], Detail.SPANS)
    assert found.spans is not None
    assert found.spans[end - 1] == -1 and found.spans[end - 2] >= 0
    assert number_spans(row, chat().decode)[end - 1] == -1


# What is refused


def test_a_teacher_that_reads_other_texts_is_refused() -> None:
    lossy = copy.deepcopy(other())
    lossy.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(VocabularyMismatchError, match=r"gives 'first.* for 'First"):
        CrossTokenizerTeacher(Listening(), lossy, 512, "names").check(student())
    thinking = copy.deepcopy(other())
    thinking.chat_template = TEMPLATE.replace("[assistant]{%", "[assistant]<think>\n{%")
    with pytest.raises(SettingError, match=r"template of the teacher begins reasoning.*_kwargs"):
        CrossTokenizerTeacher(Listening(), thinking, 512, "names").check(student())


@pytest.mark.parametrize("loss", [JSD(), TopKReverseKL(), SampledReverseKL()])
def test_a_loss_on_tokens_is_refused(loss: Loss, tmp_path: Path) -> None:
    parts = dataclasses.replace(make_parts(babbler(), loss=loss), teacher=foreign())
    with pytest.raises(SettingError, match=r"the loss needs \w+ of .* gives spans: choose another"):
        distill.build(parts, distillation(tmp_path))


@pytest.mark.parametrize("credit", [Trace(), StepDecay()])
def test_a_credit_on_tokens_is_refused(credit: Credit, tmp_path: Path) -> None:
    parts = make_parts(babbler(), credit, SpanReverseKL())
    parts = dataclasses.replace(parts, teacher=foreign())
    with pytest.raises(SettingError, match=r"reads the log-ratio of each token, and .* gives span"):
        distill.build(parts, distillation(tmp_path))
    plays = make_parts(babbler(), Outcome(), SpanReverseKL())
    plays = dataclasses.replace(plays, teacher=foreign())
    with pytest.raises(SettingError, match=r"lmbda=0\.5"):
        distill.build(plays, distillation(tmp_path), lmbda=0.5)


# What is learned


@pytest.mark.parametrize("kind", ["bytes", "characters", "the student's"])
def test_two_steps(kind: str, tmp_path: Path) -> None:
    parts = make_parts(babbler(), Outcome(), SpanReverseKL())
    teacher = parts.teacher if kind == "the student's" else foreign(kind)
    assert teacher is not None
    teacher.check(parts.student)
    before = weights(parts.student.model)
    trainer = distill.build(
        dataclasses.replace(parts, teacher=teacher),
        distillation(tmp_path),
        steps_per_generation=2,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert changed(parts.student.model, before) == before.keys()
    assert all(p.isfinite().all() for p in parts.student.model.parameters())


def lost(loss: Loss, ours: Tensor, sampled: Tensor, theirs: Tensor, spans: Tensor) -> Tensor:
    predictions: Any = SimpleNamespace(logprobs=ours)
    return loss(predictions, TeacherView(theirs, spans=spans), {"sampled_logprobs": sampled})


def test_its_gradient_is_that_of_the_reverse_kl_of_spans() -> None:
    """Exactly: all spans of two tokens out of three, each as often as the student writes it."""
    noise = torch.Generator().manual_seed(1)
    first = torch.randn(3, generator=noise, dtype=torch.float64).requires_grad_()
    second = torch.randn(3, 3, generator=noise, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(9, generator=noise, dtype=torch.float64).log_softmax(0)
    one, two = first.log_softmax(0), second.log_softmax(1)
    whole = (one[:, None] + two).flatten()
    kl = (whole.exp() * (whole - teacher)).sum()
    wanted = torch.autograd.grad(kl, (first, second), retain_graph=True)
    total = torch.zeros((), dtype=torch.float64)
    for a, b in product(range(3), range(3)):
        ours = torch.stack([one[a], two[a, b]])
        sampled = ours.detach()
        theirs = sampled + (teacher[3 * a + b] - sampled.sum()) / 2
        found = lost(SpanReverseKL(0, 1e6), ours, sampled, theirs, torch.tensor([0, 0]))
        total = total + sampled.sum().exp() * found.sum()
    for mine, reference in zip(torch.autograd.grad(total, (first, second)), wanted, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("clip", "most"), [(0.2, 10.0), (0.0, 0.5)])
def test_its_values_span_by_span(clip: float, most: float) -> None:
    noise = torch.Generator().manual_seed(2)
    ours, sampled, theirs = torch.randn(3, 8, generator=noise, dtype=torch.float64)
    numbers = [0, 0, -1, 1, 1, 1, 2, -1]
    found = lost(SpanReverseKL(clip, most), ours, sampled, theirs, torch.tensor(numbers))
    for i, number in enumerate(numbers):
        inside = [j for j, it in enumerate(numbers) if it == number and number >= 0]
        advantage = sum(float(theirs[j] - sampled[j]) for j in inside)
        advantage = min(most, max(-most, advantage))
        ratio = float((ours[i] - sampled[i]).exp())
        kept = min(1 + clip, max(1 - clip, ratio)) if clip else ratio
        expected = max(-ratio * advantage, -kept * advantage)
        assert float(found[i]) == pytest.approx(expected, abs=1e-12)
    alone = lost(SpanReverseKL(clip, most), ours, sampled, theirs, torch.arange(8))
    by_token = lost(SampledReverseKL(clip, most), ours, sampled, theirs, torch.arange(8))
    assert torch.equal(alone, by_token)


def test_spans_of_several_rows_stay_apart() -> None:
    rows = [[0, -1, 0], [-1], [0, 1, 1]]
    views = [TeacherView(torch.zeros(len(it)), spans=torch.tensor(it)) for it in rows]
    views.insert(1, TeacherView.nothing())
    joined = TeacherView.join(views, torch.device("cpu")).spans
    assert joined is not None and joined.tolist() == [0, -1, 0, -1, 1, 2, 2]
