"""A model without what this process hung on it: hooks, and methods that a trainer replaced."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils.operations import convert_to_fp32
from torch import nn

_LOCAL = ("_original_forward", "_old_forward", "_hf_hook")
"""What Accelerate leaves on a module that it trains."""
_BARE = {key: it for key, it in vars(nn.Module()).items() if "hook" in key}
"""What a module without hooks has in place of them."""
_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedForward:
    """A module's forward pass in mixed precision, as Accelerate's `prepare` has it."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Compute with `module`, in `dtype` where autocast does."""
        self._module = module
        self._dtype = dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What comes of it, in float32."""
        module = self._module
        device = next(module.parameters()).device.type
        with torch.autocast(device, self._dtype):
            return convert_to_fp32(type(module).forward(module, *args, **kwargs))


def skeleton(module: nn.Module) -> dict[str, Any]:
    """The state of a module to be pickled: as it computes, without what hangs on this process."""
    kind = type(module)
    state = {
        key: it
        for key, it in vars(module).items()
        if key not in _LOCAL
        and "hook" not in key
        and not (callable(it) and callable(getattr(kind, key, None)))
    }
    if "_original_forward" in vars(module) and AcceleratorState._shared_state:
        dtype = _MIXED.get(AcceleratorState().mixed_precision)
        if dtype is not None:
            state["forward"] = MixedForward(module, dtype)
    return state | {key: type(it)() for key, it in _BARE.items()}
