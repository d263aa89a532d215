"""A model's tokenizer and the tokens that end its turns, from its folder: no weights are read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from journeyman.agents.errors import ModelNotFoundError, SettingError
from journeyman.agents.networks.catalogue import resolve, whole
from journeyman.agents.networks.loading import TOKENIZER, load_tokenizer
from journeyman.agents.students.dialect.checking import DialectCheck, check
from journeyman.agents.students.player import end_ids


def end_ids_at(path: str) -> tuple[int, ...]:
    """The tokens that end a turn by a model's generation config; without one, by its config.

    Args:
        path: What `from_pretrained` takes; a folder with a tokenizer alone names none.
    """
    with contextlib.suppress(ModelNotFoundError):
        path = resolve(whole(path))  # an adapter's folder has neither
    try:
        return end_ids(GenerationConfig.from_pretrained(path))
    except OSError:
        pass
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):
        return ()
    return end_ids(GenerationConfig.from_model_config(config))


def tokenizer_at(model: str) -> tuple[str, PreTrainedTokenizerBase]:
    """Where a model is, and its tokenizer.

    Args:
        model: Its name, or a folder with at least a tokenizer.

    Raises:
        ModelNotFoundError: No such model here, or no tokenizer that can be read.
    """
    folder = Path(model)
    alone = model != "" and any((folder / name).is_file() for name in TOKENIZER)
    path = model if alone else resolve(model)
    try:
        return path, AutoTokenizer.from_pretrained(path) if alone else load_tokenizer(model)
    except (OSError, ValueError, KeyError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ModelNotFoundError(
            f"no tokenizer of the model {model!r} can be read: {why}"
        ) from None


def checked(
    model: str,
    dialect: str | None = None,
    calls: int = 500,
    template_kwargs: Mapping[str, Any] | None = None,
) -> DialectCheck:
    """What `journeyman models check` finds out about a model.

    Args:
        model: Its name, or a folder with at least a tokenizer.
        dialect: As `student.dialect`; None asks the tokenizer.
        calls: How many random calls are tried.
        template_kwargs: For the chat template.

    Raises:
        ModelNotFoundError: No such model here, or no tokenizer that can be read.
        DialectError: No dialect of that name.
        SettingError: Fewer than no calls.
    """
    if calls < 0:
        raise SettingError(f"--calls {calls}: expected a whole number, 0 or more")
    path, tokenizer = tokenizer_at(model)
    return check(tokenizer, dialect, template_kwargs, end_ids_at(path), calls)
