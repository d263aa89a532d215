"""Adapters as students: begun, gone on with, copied, kept, found again and merged."""

import copy
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from journeyman.agents.cli import main
from journeyman.agents.errors import ModelNotFoundError, SettingError, UnsupportedModelError
from journeyman.agents.learning.losses import JSD
from journeyman.agents.learning.trainers import distill, sft
from journeyman.agents.learning.trainers.beginning import Beginning
from journeyman.agents.learning.trainers.parts import Parts
from journeyman.agents.networks import catalogue
from journeyman.agents.networks.adapters import saved_bytes, twin
from journeyman.agents.networks.heads import Head, backbone
from journeyman.agents.networks.loading import load_model
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.runs import train as runs_train
from journeyman.agents.runs.config import make
from journeyman.agents.students.exporting import export, merge
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.agents.students.tokenizers import checked, end_ids_at
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.agents.teachers.privileged import SelfTeacher

from .test_gradients import batch_of, ragged, random_credit
from .test_resume import KILL, figures, newest, overrides
from .test_trainers import bank_tasks, changed, distillation, make_parts, tuning, weights
from .tiny import llama, tokenizer

WIDTH, LAYERS = 32, 2
ROWS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
OUTPUTS = {"q": WIDTH, "k": WIDTH // 2, "v": WIDTH // 2, "o": WIDTH, "up": 64, "gate": 64}
"""Of the layers that read hidden states; `down` reads 64 and writes 32."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of its own, which converses in its own way."""
    folder = tmp_path_factory.mktemp("models") / "base"
    llama(len(tokenizer()), WIDTH, seed=7).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    ways = {"render": "names", "max_turn_tokens": 12, "max_context": 300}
    (folder / "journeyman.json").write_text(json.dumps(ways))
    return folder


def stirred(model: Any, seed: int = 0) -> Any:
    """As if its adapter had learned."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=noise))
    return model


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved by PEFT alone, without a tokenizer."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    stirred(load_student(str(base), lora={"r": 4}).model).save_pretrained(folder)
    return folder


@pytest.fixture
def moved(adapter: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """The adapter elsewhere, and told another base."""

    def move(named: Any) -> Path:
        folder = tmp_path / "here" / "adapter"
        shutil.copytree(adapter, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = named
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return move


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=ROWS).logits
    return found


# --- begun ----------------------------------------------------------------------------------------


def test_a_new_adapter_adds_nothing_and_is_all_that_is_trained(base: Path) -> None:
    student = load_student(str(base), lora={"r": 3, "alpha": 7, "dropout": 0.5})
    assert torch.equal(logits(student.model), logits(load_model(str(base))))
    trained = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    # r times (inputs + outputs) of each linear layer but the head.
    a_layer = sum(3 * (WIDTH + size) for size in OUTPUTS.values()) + 3 * (64 + WIDTH)
    assert sum(p.numel() for p in trained.values()) == LAYERS * a_layer
    assert saved_bytes(student.model) == 4 * LAYERS * a_layer
    known = student.model.peft_config["default"]
    assert (known.lora_alpha, known.lora_dropout) == (7, 0.5)
    assert known.base_model_name_or_path == str(base)
    assert student.sampling.max_tokens == 12
    assert student.max_context == 300


@pytest.mark.parametrize("lora", [True, {}])
def test_an_adapter_of_which_nothing_is_said(base: Path, lora: Any) -> None:
    known = load_student(str(base), lora=lora).model.peft_config["default"]
    assert (known.r, known.lora_alpha, known.lora_dropout) == (16, 32, 0)


@pytest.mark.parametrize("lora", [None, False])
def test_no_adapter_is_asked_for(base: Path, lora: Any) -> None:
    assert not hasattr(load_student(str(base), lora=lora).model, "peft_config")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 8}, r"student\.lora has no rank; it takes r, alpha, dropout, target_modules"),
        ({"r": 0}, r"student\.lora\.r=0: expected a whole number, 1 or more"),
        ({"r": 1.5}, r"student\.lora\.r=1\.5: expected a whole number"),
        ({"alpha": "x"}, r"student\.lora\.lora_alpha=x: expected a number, 0 or more"),
        ({"dropout": 1}, r"student\.lora\.lora_dropout=1: expected 0 or more, below 1"),
        ({"target_modules": ["nothing"]}, r"student\.lora: .*nothing.* not found in the base"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights=pissa: expected True or gaussian: "),
    ],
)
def test_what_is_no_adapter_is_refused(base: Path, lora: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_student(str(base), lora=lora)


@pytest.mark.parametrize(
    ("setting", "begins"),
    [
        ({"lora": {"r": 0}}, "student.lora.r=0: expected"),
        ({"max_turn_tokens": 0}, "student.max_turn_tokens=0: expected"),
    ],
)
def test_a_run_names_the_setting_once(base: Path, setting: dict[str, Any], begins: str) -> None:
    target = "journeyman.agents.students.hf.load_student"
    node = OmegaConf.create({"_target_": target, "model": str(base), **setting})
    with pytest.raises(SettingError) as caught:
        make(node, "student")
    assert str(caught.value).startswith(begins)


def test_half_precision_stays_below_an_adapter(base: Path) -> None:
    model = load_student(str(base), dtype="bfloat16", lora=True).model
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


# --- gone on with ---------------------------------------------------------------------------------


def test_a_saved_adapter_goes_on_learning(adapter: Path, base: Path) -> None:
    student = load_student(str(adapter))
    expected = stirred(load_student(str(base), lora={"r": 4}).model)
    assert torch.equal(logits(student.model), logits(expected))
    assert not torch.equal(logits(student.model), logits(load_model(str(base))))
    assert all(p.requires_grad == ("lora_" in n) for n, p in student.model.named_parameters())
    # Nothing is said beside it: it converses as its base.
    assert (student.sampling.max_tokens, student.max_context) == (12, 300)
    assert student.end_ids[-1] == 0
    assert end_ids_at(str(adapter)) == (0,)
    assert checked(str(adapter), calls=1).playable
    with pytest.raises(SettingError, match="is an adapter, and goes on learning as it is"):
        load_student(str(adapter), lora={"r": 4})


def test_a_teacher_may_be_an_adapter(adapter: Path) -> None:
    model = load_model(str(adapter))
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model), logits(load_student(str(adapter)).model))


@pytest.mark.parametrize("kind", ["distill", "sft"])
def test_training_changes_the_adapter_and_saves_it_alone(
    kind: str, adapter: Path, tmp_path: Path
) -> None:
    parts = make_parts(load_student(str(adapter)).model)
    few: dict[str, Any] = {"per_device_train_batch_size": 2}
    trainer: Any = (
        sft.build(parts, tuning(tmp_path, **few))
        if kind == "sft"
        else distill.build(parts, distillation(tmp_path, **few), kl=0.1)
    )
    before = weights(parts.student.model)
    trainer.train()
    names = changed(parts.student.model, before)
    assert names
    assert all("lora_" in name for name in names)
    trainer.save_model(str(tmp_path / "model"))
    saved = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert sum(it.numel() for it in saved.values()) * 4 == saved_bytes(parts.student.model)
    assert torch.equal(
        logits(load_model(str(tmp_path / "model"))), logits(parts.student.model.eval())
    )


def test_a_teacher_with_an_adapter_on_the_output_layer_is_refused(base: Path) -> None:
    """The weight below it says nothing of it: distributions would be another model's."""
    lora: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "lm_head"]}
    model = load_student(str(base), lora=lora).model
    with pytest.raises(UnsupportedModelError, match="adapter on its output layer"):
        LocalTeacher(model, tokenizer())
    # Trained whole its weight is all that there is to it.
    lora = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    model = stirred(load_student(str(base), lora=lora).model)
    states = backbone(model)(input_ids=ROWS).last_hidden_state
    weight = Head.of(model).projection.weight
    assert weight.requires_grad
    torch.testing.assert_close(states @ weight.T, model(input_ids=ROWS).logits)


# --- copies ---------------------------------------------------------------------------------------


def test_a_copy_shares_the_base_and_stays_as_it_is(adapter: Path) -> None:
    model = load_student(str(adapter)).model
    before = logits(model)
    still = twin(model)
    places = {p.data_ptr() for p in model.parameters()}
    own = [p for p in still.parameters() if p.data_ptr() not in places]
    assert sum(p.numel() * p.element_size() for p in own) == saved_bytes(model)
    stirred(model, seed=1)
    assert torch.equal(logits(still), before)
    assert not torch.equal(logits(model), before)


def test_a_copy_of_whole_weights_shares_nothing() -> None:
    model = llama(40)
    places = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in places for p in twin(model).parameters())
    assert saved_bytes(model) == sum(4 * p.numel() for p in model.parameters())


def test_what_holds_a_run_is_the_adapter_it_began_with(adapter: Path) -> None:
    episodes = ragged(seed=3, count=4)
    rows = batch_of(episodes, random_credit(episodes, seed=4))
    model = load_student(str(adapter)).model
    expected = Beginning(copy.deepcopy(model)).logprobs(rows)
    kept = Beginning(model)
    stirred(model, seed=1)
    assert torch.equal(kept.logprobs(rows), expected)
    assert not torch.allclose(Beginning(model).logprobs(rows), expected)
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)


def test_a_student_with_an_adapter_is_its_own_teacher(adapter: Path) -> None:
    student = load_student(str(adapter))
    frozen, moving = SelfTeacher(), SelfTeacher(weights="average", rate=0.25)
    for teacher in (frozen, moving):
        teacher.check(student)
    first = weights(student.model)
    stirred(student.model, seed=1)
    moving.advance()
    assert frozen.state_dict() == {}
    assert changed(frozen._known().model, first) == set()
    state = moving.state_dict()
    assert state.keys() == {name for name in first if "lora_" in name}
    for name, parameter in student.model.named_parameters():
        if name in state:
            torch.testing.assert_close(state[name], 0.75 * first[name] + 0.25 * parameter)
    anew = SelfTeacher(weights="average")
    anew.check(student)
    anew.load_state_dict({name: it.clone() for name, it in state.items()})
    assert all(torch.equal(it, state[name]) for name, it in anew.state_dict().items())
    assert len(weights(student.model)) == len(first)


def test_an_average_teaches_a_student_with_an_adapter(base: Path, tmp_path: Path) -> None:
    model = load_student(str(base), lora={"r": 4}).model
    own = make_parts(model)
    teacher = SelfTeacher(weights="average", rate=0.5)
    teacher.check(own.student)
    parts = Parts(
        own.student, teacher, JSD(0.0), own.credit, lambda n: bank_tasks(n), {"max_turns": 2}
    )
    before = weights(teacher._known().model)
    distill.build(parts, distillation(tmp_path, per_device_train_batch_size=2)).train()
    names = changed(teacher._known().model, before)
    assert names
    assert all("lora_" in name for name in names)


# --- found again ----------------------------------------------------------------------------------


def test_a_base_is_found_from_any_folder(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    begun = load_student("base", lora=True).model
    begun.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert catalogue.base_of("adapter") == str(base)
    assert catalogue.base_of(str(adapter)) == str(base)
    assert catalogue.base_of(str(base)) is None
    assert catalogue.whole("adapter") == catalogue.whole(str(base)) == str(base)
    catalogue.check("adapter")


def test_a_relative_base_lies_beside_its_adapter(moved: Any, base: Path) -> None:
    folder = moved("../base")
    (folder.parent / "base").symlink_to(base)
    assert catalogue.base_of(str(folder)) == str(base)
    catalogue.check(str(folder))


@pytest.mark.parametrize(
    "named", ["embedded-student", "/another/venv/journeyman/agents/embedded/student"]
)
def test_a_base_of_the_catalogue_is_found_wherever_that_is(moved: Any, named: str) -> None:
    assert catalogue.base_of(str(moved(named))) == "embedded-student"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            "/not/there",
            r"the base of the adapter '.*adapter' is not there: .*'/not/there'.* if it ",
        ),
        (None, r"does not say what it is an adapter of; expected its base's folder"),
        ("no/model", r"the base of the adapter '.*adapter': no folder and no model 'no/model'"),
    ],
)
def test_a_base_that_is_gone_is_named(
    moved: Any, named: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue.hub, "objection", lambda name: "nobody has it")
    with pytest.raises(ModelNotFoundError, match=message):
        catalogue.check(str(moved(named)))


def test_an_adapter_on_an_adapter_is_refused(moved: Any, adapter: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"is one of another adapter, .*models merge"):
        catalogue.check(str(moved(str(adapter))))


def test_an_adapter_that_cannot_be_read(moved: Any) -> None:
    folder = moved("x")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match="cannot be read: Expecting"):
        catalogue.check(str(folder))


def test_an_adapter_of_another_base_is_refused(moved: Any, tmp_path: Path) -> None:
    llama(40, width=48).save_pretrained(tmp_path / "other")
    with pytest.raises(SettingError, match=r"the adapter .* does not fit .*other: "):
        load_model(str(moved(str(tmp_path / "other"))))


# --- merged and exported --------------------------------------------------------------------------


def test_merged_it_is_one_model_of_the_same_answers(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert main(["models", "merge", str(adapter), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    merged = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(merged), logits(load_model(str(adapter))), atol=1e-4, rtol=0)
    assert not list(out.glob("adapter*"))
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer().chat_template
    # The template ends turns by <|im_end|> (2), the model's config by another.
    assert GenerationConfig.from_pretrained(out).eos_token_id == [0, 2]
    student = load_student(str(out))
    assert (student.sampling.max_tokens, student.max_context) == (12, 300)
    with pytest.raises(SettingError, match="is there already"):
        merge(str(adapter), out)
    with pytest.raises(SettingError, match="is no adapter but a model of its own"):
        merge(str(out), tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_a_merged_model_has_its_base_s_type(base: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    load_model(str(base), "bfloat16").save_pretrained(small)
    tokenizer().save_pretrained(small)
    student = load_student(str(small), lora={"r": 4})
    stirred(student.model).save_pretrained(tmp_path / "adapter")
    export(str(tmp_path / "adapter"), tmp_path / "out")
    assert {it.dtype for it in load_file(tmp_path / "out/model.safetensors").values()} == {
        torch.bfloat16
    }


def test_gguf_is_written_where_llama_cpp_is(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin" / "convert_hf_to_gguf.py"
    monkeypatch.setenv("PATH", str(program.parent))
    out = tmp_path / "out"
    assert main(["export", str(base), str(out), "--gguf"]) == 2
    assert "llama.cpp/convert_hf_to_gguf.py OUT --outfile" in capsys.readouterr().err
    assert not out.exists()
    program.parent.mkdir()
    program.write_text("import sys; open(sys.argv[3], 'w').write(sys.argv[1])\n")
    program.chmod(0o755)
    assert main(["export", str(base), str(out), "--gguf"]) == 0
    assert capsys.readouterr().out == f"{out / 'out.gguf'}\n"
    assert (out / "out.gguf").read_text() == str(out)


def test_trained_adapters_are_listed(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in (
        ("a/model", adapter),
        ("a/best", base),
        ("b/model", adapter),
        ("staged/on-policy/model", adapter),
    ):
        shutil.copytree(source, tmp_path / "runs" / name)
    config = tmp_path / "runs/b/model/adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "/gone"}))
    rows = dict(catalogue.trained())
    assert rows["runs/a/model"] == rows["runs/staged/on-policy/model"] == f"an adapter on {base}"
    assert rows["runs/a/best"] == "trained here"
    assert rows["runs/b/model"].startswith("an adapter, but the base of the adapter")


# --- quantised ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"load_in_4bits": True}, r"student\.quantization=\{load_in_4bits: True\}: expected load"),
        ({"quant_method": "none"}, r"student\.quantization=\{quant_method: none\}: expected load"),
        ({"load_in_4bit": True, "bits": 4}, r"BitsAndBytesConfig has no bits; it takes load_in_8"),
    ],
)
def test_what_is_no_quantisation_is_refused(base: Path, quantization: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        load_model(str(base), quantization=quantization)


def test_a_quantisation_whose_package_is_missing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        assert kwargs["quantization_config"].load_in_4bit
        raise ImportError("needs bitsandbytes: `pip install bitsandbytes`\nand more")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", missing)
    told = r"load_in_4bit: True\}: it cannot be had here: needs bitsandbytes: `pip install .*`$"
    with pytest.raises(SettingError, match=told):
        load_model(str(base), quantization={"load_in_4bit": True})


def test_quantised_weights_are_trained_with_an_adapter_only(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load_student(str(base))
    student.model.is_quantized = True
    made = {"credit": SimpleNamespace(needs_search=False), "loss": None, "student": student}
    monkeypatch.setattr(runs_train, "_part", lambda node, place, *kinds: made[place])
    monkeypatch.setattr(runs_train, "make", lambda node, place: made.get(place))
    config: Any = SimpleNamespace(credit=None, search=None, loss=None, student=None)
    with pytest.raises(SettingError, match=r"quantised.*add student\.lora=\{r: 16\}"):
        runs_train._parts(config, lambda step, episodes, scores: None, rollout)


def test_a_quantised_base_is_trained_by_an_adapter(base: Path, tmp_path: Path) -> None:
    """Where bitsandbytes is; it quantises on a CPU too."""
    pytest.importorskip("bitsandbytes")
    model = load_student(str(base), quantization={"load_in_4bit": True}, lora={"r": 4}).model
    parts = make_parts(model)
    before = weights(model)
    trainer = distill.build(parts, distillation(tmp_path, learning_rate=0.1), kl=0.1)
    trainer.train()
    names = changed(model, before)
    assert names
    assert all("lora_" in name for name in names)


# --- the whole way --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_resumed_gone_on_with_evaluated_and_merged(
    tmp_path: Path, journeyman: Any, other_model: Path
) -> None:
    trainer = "distill"
    unbroken, run, further = (tmp_path / name for name in ("unbroken", "run", "further"))
    options = ("student.lora={r: 4}", "steps=4", "trainer.args.learning_rate=0.01")
    whole = journeyman("train", *overrides(trainer, other_model, unbroken), *options)
    assert whole.status == 0, whole.stderr
    command = ("train", *overrides(trainer, other_model, run), *options)
    kill = KILL.format(module="transformers", name="Trainer.training_step", call=4)
    assert journeyman(*command, before=kill).status == -signal.SIGKILL
    assert newest(run) == 2
    ended = journeyman(*command)
    assert ended.status == 0, ended.stderr
    written, expected = (it / "model" / "adapter_model.safetensors" for it in (run, unbroken))
    assert written.read_bytes() == expected.read_bytes()
    assert figures(run) == figures(unbroken)

    # Of the embedded student's 2.6 MB nothing is copied: float32 of the adapter, and its moments.
    model = load_student(str(run / "model")).model
    size = saved_bytes(model)
    assert size == 4 * sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert size <= written.stat().st_size <= size + 8192
    checkpoint = run / "checkpoints" / "checkpoint-4"
    assert 2 * size <= (checkpoint / "optimizer.pt").stat().st_size <= 2 * size + 60_000
    assert not list(run.rglob("model.safetensors"))
    assert not list(run.rglob("pytorch_model*"))

    # What is given goes on learning: at rate 0 it comes out as it went in.
    on = (*overrides(trainer, other_model, further), f"student.model={run / 'model'}", "steps=2")
    still = journeyman("train", *on, "trainer.args.learning_rate=0")
    assert still.status == 0, still.stderr
    kept = load_file(further / "model" / "adapter_model.safetensors")
    known = load_file(written)
    assert all(torch.equal(kept[name], it) for name, it in known.items())
    assert kept.keys() == known.keys()
    assert any(float(it.abs().max()) > 0 for name, it in known.items() if "lora_B" in name)

    merged = tmp_path / "merged"
    assert journeyman("models", "merge", str(further / "model"), str(merged)).status == 0
    answers = {}
    for name in (run / "model", merged):
        out = tmp_path / f"eval-{name.name}"
        options = (f"student.model={name}", f"run_dir={out}", "evaluation.tasks=6", "threads=1")
        played = journeyman("eval", "student=hf", *options)
        assert played.status == 0, played.stderr
        lines = map(json.loads, (out / "episodes.jsonl").read_text().splitlines())
        answers[name] = [it["tokens"] for it in lines if it["row"] == "student"]
    assert len(answers[merged]) == 6
    assert answers[run / "model"] == answers[merged]


def test_the_player_of_an_adapter_is_the_one_of_all_models(adapter: Path) -> None:
    student = load_student(str(adapter))
    assert isinstance(student, HFPlayer)
    assert student.at(temperature=0.0).model is student.model
