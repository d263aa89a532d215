"""GGUF files: found by a path, and turned into folders that every loader here reads."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journeyman.agents.errors import MissingExtraError, ModelNotFoundError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}$", re.ASCII)


def gguf_at(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one in a folder without another model.

    Raises:
        ModelNotFoundError: The folder has several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise ModelNotFoundError(
            f"{path} has {len(found)} GGUF files; expected the path of one of them: "
            f"{', '.join(map(str, found[:4]))}{', …' if len(found) > 4 else ''}"
        )
    return found[0] if found else None


def check_gguf(file: Path) -> None:
    """See what can be seen of a GGUF file at once.

    Raises:
        MissingExtraError: The package that reads it is not installed.
        ModelNotFoundError: It is none, or a part of one.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"{file} needs a reader: pip install 'journeyman[gguf]'")
    with file.open("rb") as opened:
        begins = opened.read(len(MAGIC))
    if begins != MAGIC:
        raise ModelNotFoundError(
            f"{file} is no GGUF file: it begins with {begins!r}, expected {MAGIC!r}; was the "
            f"download cut short, or is it a pointer of Git LFS?"
        )
    if _PART.search(file.stem):
        raise ModelNotFoundError(
            f"{file} is a part of a GGUF model; join the parts first: "
            f"llama-gguf-split --merge {file} whole.gguf"
        )


def convert(gguf: Path, target: Path, of_smollm: bool | None = None) -> None:
    """Write the model and its tokenizer as a plain transformers folder in float32.

    Args:
        gguf: The file.
        target: The folder.
        of_smollm: Its tokenizer is one of SmolLM's; None asks the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    config = loaded.config
    # A model read from GGUF counts as quantised and refuses to be saved; one made from the config
    # and given the same tensors does not. On "meta" it costs neither memory nor initialisation.
    del config.quantization_config
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    if of_smollm is None:
        of_smollm = _field(gguf, "tokenizer.ggml.pre") == "smollm"
    _mend_tokenizer(tokenizer, config, of_smollm)
    tokenizer.save_pretrained(target)


def float32_bytes(gguf: Path) -> int:
    """What the weights of a GGUF file take once they are no longer quantised."""
    from gguf import GGUFReader

    return 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)


def _field(gguf: Path, name: str) -> Any:
    """A value of the file's metadata; None if it has no such field."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field(name)
    return None if field is None else field.contents()


def _mend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, of_smollm: bool
) -> None:
    """Put right what transformers loses of a tokenizer on its way through GGUF.

    The ends of a turn and of a text are the config's: of SmolLM it takes the first token of a turn,
    <|im_start|>, for the last. Of SmolLM it also forgets that each digit is a word of its own, so
    that blanks before a number get other tokens than in training, and sets a decoder made for
    other tokenizers.
    """
    from tokenizers import decoders, pre_tokenizers

    end, pad = config.eos_token_id, config.pad_token_id
    if isinstance(end, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if pad is None and tokenizer.pad_token is None:
        pad = end
    if isinstance(pad, int):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.clean_up_tokenization_spaces = False
    if not of_smollm:
        return
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
