"""A model as a folder for others: adapters merged, all files that transformers and vLLM serve by.

`journeyman models merge` and `journeyman export` come here. The folder is complete or absent: it is
built beside its place and moved there by one rename.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from journeyman.agents.errors import DialectError, ModelExportError, SettingError
from journeyman.agents.networks.catalogue import base_of, check, resolve
from journeyman.agents.networks.loading import load_model, load_tokenizer
from journeyman.agents.students.dialect import dialect_of
from journeyman.agents.students.player import end_ids
from journeyman.agents.students.settings import FILE, NAMES, recall

CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's: it knows each family's tensors, and comes with llama.cpp alone."""


def merge(name: str, out: Path) -> Path:
    """Write an adapter and its base as one model.

    Args:
        name: Of the adapter.
        out: The new folder.

    Raises:
        ModelNotFoundError: No such adapter, or its base is not there.
        SettingError: It is no adapter, there is something at `out`, or its base is quantised.
    """
    check(name)
    if base_of(name) is None:
        raise SettingError(
            f"{name} is no adapter but a model of its own: there is nothing to merge "
            f"(journeyman export writes it for others as it is)"
        )
    return export(name, out)


def export(name: str, out: Path) -> Path:
    """Write a model for transformers, vLLM and other servers.

    What was an adapter is merged into its base, in float32 and then in the base's own type. The
    generation config names all tokens that end a turn, by which servers stop.

    Args:
        name: Of the model (see `journeyman.agents.networks.catalogue`).
        out: The new folder.

    Returns:
        `out`.

    Raises:
        ModelNotFoundError: No such model.
        SettingError: There is something at `out`, or an adapter's base is quantised.
    """
    check(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingError(f"{out} is there already: choose another folder, or delete it")
    model = _merged(name)
    tokenizer = load_tokenizer(name)
    ways = recall(name, dict.fromkeys(NAMES))
    own = end_ids(model.generation_config)
    ends = [*own]
    with contextlib.suppress(DialectError):  # what cannot be played can be exported all the same
        spoken = dialect_of(
            tokenizer, ways["dialect"], ways["render"], ways["template_kwargs"], own
        )
        ends += spoken.end_ids
    config: Any = model.generation_config
    config._from_model_config = False  # what is said here holds, whatever config.json says
    if ends:
        config.eos_token_id = list(dict.fromkeys(ends))
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if any(value is not None for value in ways.values()):
        (partial / FILE).write_text(f"{json.dumps(ways, indent=2)}\n")
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out


def _merged(name: str) -> PreTrainedModel:
    base = base_of(name)
    if base is None:
        return load_model(name, None, "cpu")
    model: Any = load_model(name, "float32", "cpu")
    if getattr(model, "is_quantized", False):
        raise SettingError(
            f"{name}: the weights of its base {base} are quantised; expected an adapter on a base "
            f"whose weights are whole: write the base's unquantised original into "
            f"{name}/adapter_config.json"
        )
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    saved = AutoConfig.from_pretrained(resolve(base)).dtype  # None where it does not say
    return merged.to(saved or torch.float32)


def converter() -> str:
    """llama.cpp's converter, if it is on the PATH.

    Raises:
        ModelExportError: It is not; the message says what to run instead.
    """
    found = shutil.which(CONVERTER)
    if found is None:
        raise ModelExportError(
            f"--gguf needs llama.cpp's {CONVERTER}, which is not on the PATH (no package of pip's "
            f"keeps step with it). Export without --gguf to OUT, then: git clone --depth 1 "
            f"https://github.com/ggml-org/llama.cpp && pip install -r "
            f"llama.cpp/requirements/requirements-convert_hf_to_gguf.txt && python "
            f"llama.cpp/{CONVERTER} OUT --outfile OUT/model.gguf --outtype bf16"
        )
    return found


def to_gguf(folder: Path, program: str) -> Path:
    """Have an exported folder converted; returns the file, which lies in it.

    Raises:
        ModelExportError: The converter failed.
    """
    target = folder / f"{folder.name}.gguf"
    command = [program, str(folder), "--outfile", str(target), "--outtype", "auto"]
    if program.endswith(".py"):
        command = [sys.executable, *command]
    status = subprocess.run(command, stdout=2, check=False).returncode  # ours is the caller's
    if status != 0 or not target.is_file():
        raise ModelExportError(
            f"{CONVERTER} failed (status {status}, see above); {folder} is whole without it"
        )
    return target
