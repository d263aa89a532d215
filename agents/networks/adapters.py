"""Adapters (LoRA) on a model's weights: how one begins or goes on, and copies that share the base.

Which base a saved one is of is looked up in `catalogue.py`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from journeyman.agents.errors import MissingExtraError, SettingError
from journeyman.agents.networks.catalogue import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BEGUN: dict[str, Any] = {"r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
"""What a LoRA is where nobody says otherwise; its alpha is then twice its rank."""
UNTOUCHED = (True, "gaussian")
"""Ways to begin LoRA adapters (`init_lora_weights`) that leave the weights below as they are."""


def begin(model: PreTrainedModel, lora: Mapping[str, Any] | bool) -> Any:
    """A `peft.PeftModel` around a model, whose new adapter alone is trained; it adds nothing yet.

    Args:
        model: A model of its own; its weights get frozen.
        lora: Fields of `peft.LoraConfig`, and `alpha` and `dropout` for its `lora_alpha` and
            `lora_dropout`; True, or none of them, is `BEGUN`.

    Raises:
        MissingExtraError: PEFT is not installed.
        SettingError: A field is unknown or out of its range, or fits no layer of the model; or the
            model has an adapter already.
    """
    peft = _peft("student.lora")
    if isinstance(model, peft.PeftModel):
        raise SettingError(
            "student.lora: student.model is an adapter, and goes on learning as it is: leave "
            "student.lora out; or merge it first: journeyman models merge DIR OUT"
        )
    config = _lora_config(peft.LoraConfig, lora)
    try:
        return peft.get_peft_model(model, config).eval()
    except (TypeError, ValueError) as error:
        raise SettingError(f"student.lora: {_first_line(error)}") from error


def _lora_config(kind: Any, lora: Mapping[str, Any] | bool) -> Any:
    given = {} if isinstance(lora, bool) else dict(lora)
    for short in ("alpha", "dropout"):
        if short in given:
            given[f"lora_{short}"] = given.pop(short)
    known = set(inspect.signature(kind).parameters)
    if strange := sorted(given.keys() - known):
        raise SettingError(
            f"student.lora has no {', '.join(strange)}; it takes r, alpha, dropout, target_modules "
            f"and the other fields of peft.LoraConfig: {', '.join(sorted(known))}"
        )
    fields = BEGUN | given
    for name, least in (("r", 1), ("lora_alpha", 0), ("lora_dropout", 0)):
        value = fields.get(name, least)
        number = type(value) is int if name == "r" else type(value) in (int, float)
        if not number or value < least or (name == "lora_dropout" and value >= 1):
            wanted = {"r": "a whole number, 1 or more", "lora_dropout": "0 or more, below 1"}
            expected = wanted.get(name, "a number, 0 or more")
            raise SettingError(f"student.lora.{name}={value}: expected {expected}")
    fields.setdefault("lora_alpha", 2 * fields["r"])
    if (way := fields.get("init_lora_weights", True)) not in UNTOUCHED:
        raise SettingError(
            f"student.lora.init_lora_weights={way}: expected {' or '.join(map(str, UNTOUCHED))}: "
            f"others change the base, on which the saved adapter would then not fit"
        )
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise SettingError(f"student.lora: {_first_line(error)}") from error


def attach(model: PreTrainedModel, name: str, trainable: bool) -> Any:
    """A `peft.PeftModel`: the base with a saved adapter on it.

    Args:
        model: The base.
        name: Of the adapter.
        trainable: Its weights are to be trained.

    Raises:
        MissingExtraError: PEFT is not installed.
        SettingError: It does not fit the base, or is of a kind that cannot be played here.
    """
    peft = _peft(f"the adapter {name}")
    try:
        found = peft.PeftModel.from_pretrained(model, resolve(name), is_trainable=trainable)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SettingError(
            f"model: the adapter {name} does not fit {model.name_or_path}: {_first_line(error)}"
        ) from error
    if found.active_peft_config.is_prompt_learning:
        raise SettingError(
            f"model: the adapter {name} is {found.active_peft_config.peft_type.value}, which "
            f"writes into the prompt; expected one that changes layers, such as LoRA"
        )
    return found.eval()


def is_adapted(model: Any) -> bool:
    """True of a `peft.PeftModel`."""
    from accelerate.utils import is_peft_model

    return bool(is_peft_model(model))


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that stays as it is; of a model with an adapter, the frozen base is shared.

    So a copy of an adapted model takes the memory of its adapter alone.
    """
    shared = {id(it): it for it in model.parameters() if not it.requires_grad}
    return copy.deepcopy(model, shared if is_adapted(model) else {})


def saved_bytes(model: PreTrainedModel) -> int:
    """What a checkpoint's weights take: of a model with an adapter, those of the adapter alone."""
    # An adapter that a trainer adds (`trainer.peft_config`) is in the layers of the bare model.
    adapted = is_adapted(model) or any("lora_" in name for name, _ in model.named_parameters())
    kept = (it for it in model.parameters() if it.requires_grad or not adapted)
    return sum(it.numel() * it.element_size() for it in kept)


def _peft(place: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            f"{place} needs PEFT, which is not installed; install it with: "
            f"pip install 'journeyman[peft]'"
        ) from error
    return peft


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
