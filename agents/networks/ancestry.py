"""Attention along the branches of a trie, as an attention mask that does the work itself.

Like torch's own `torch.nn.attention.bias.CausalBias` the mask is a tensor that answers for
`scaled_dot_product_attention`: each branch attends to its own past, and no table of all tokens
against all is formed. A model takes it for the boolean [1, 1, U, U] mask that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from journeyman.agents.networks.tries import Layout, Stretch

Sees = Callable[[Tensor, Tensor], Tensor]
"""From depths of tokens [N, 1] and of those before them [1, M] to [N, M], true where they see."""


@dataclass(frozen=True)
class Ancestry:
    """Who sees whom in a layout."""

    layout: Layout
    device: torch.device
    sees: Sees | None = None
    """Which of its ancestors a token sees; None is all of them."""

    @cached_property
    def tables(self) -> list[Tensor | None]:
        """Of each branch [N, depth + N], true where a token sees another; None is plain causal."""
        return [self._table(it) for it in self.layout.branches]

    def _table(self, branch: Stretch) -> Tensor | None:
        if self.sees is None and not branch.depth:
            return None
        past = torch.arange(branch.depth + branch.size, device=self.device)
        own = past[branch.depth :, None]
        seen = past <= own
        return seen if self.sees is None else seen & self.sees(own, past)

    def dense(self) -> Tensor:
        """[1, 1, U, U], true where a token sees another."""
        size = len(self.layout.tokens)
        table = torch.zeros(size, size, dtype=torch.bool, device=self.device)
        for branch, seen in zip(self.layout.branches, self.tables, strict=True):
            if seen is None:
                seen = torch.ones(branch.size, branch.size, device=self.device).tril().bool()
            place = 0
            for start, end in (*branch.past, branch.own):
                table[slice(*branch.own), start:end] = seen[:, place : place + end - start]
                place += end - start
        return table[None, None]


class AncestryMask(Tensor):
    """[1, 1, U, U], true where a token sees another; it holds no such table until asked for one."""

    ancestry: Ancestry

    @staticmethod
    def of(ancestry: Ancestry) -> AncestryMask:
        """The mask of a layout."""
        size = len(ancestry.layout.tokens)
        empty = torch.zeros(1, dtype=torch.bool, device=ancestry.device)
        mask = empty.expand(1, 1, size, size).as_subclass(AncestryMask)
        mask.ancestry = ancestry
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer for attention and for questions of shape; all else gets the table."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func in _ASKS or getattr(func, "__name__", "") == "__get__":
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        dense = [it.ancestry.dense() if isinstance(it, cls) else it for it in args]
        named = {
            name: it.ancestry.dense() if isinstance(it, cls) else it for name, it in kwargs.items()
        }
        return func(*dense, **named)


_ASKS = (Tensor.size, Tensor.dim, Tensor.stride, Tensor.numel)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: AncestryMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Each branch's own queries meet the keys and values of all that they may see."""
    ancestry = attn_mask.ancestry
    layout = ancestry.layout
    # Cut once, wherever a branch begins or ends: the gradients of all pieces are then put together
    # once, and not as many times as there are branches.
    keys, values = key.split(layout.pieces, dim=2), value.split(layout.pieces, dim=2)
    queries = query.split([branch.size for branch in layout.branches], dim=2)
    found = []
    for own, seen, table in zip(queries, layout.seen, ancestry.tables, strict=True):
        found.append(
            F.scaled_dot_product_attention(
                own,
                _joined([keys[i] for i in seen]),
                _joined([values[i] for i in seen]),
                attn_mask=table,
                dropout_p=dropout_p,
                is_causal=table is None,
                **options,
            )
        )
    return torch.cat(found, dim=2)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=2)
