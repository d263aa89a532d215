"""Rows through a model, each token that they share once.

Rows of a tree begin alike, and so do episodes of one environment. Laid out as a trie they are one
sequence, in which a token stands at its own depth and sees its own ancestors alone: states and
gradients are those of rows read one by one, and nothing is padded. Trainers
(`learning/trainers/beginning.py`) and the teacher (`teachers/local.py`) read through `states_at`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from journeyman.agents.networks.ancestry import Ancestry, AncestryMask, Sees
from journeyman.agents.networks.batching import right_padded, similar_lengths
from journeyman.agents.networks.heads import backbone, is_sharded
from journeyman.agents.networks.tries import Layout, Row

logger = logging.getLogger(__name__)

Places = Sequence[Sequence[int]]
KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Of layers in which a token meets others by attention alone."""
CALL = 250_000
"""What it costs to begin a branch in a layer, in multiplications that a CPU does meanwhile."""
CALL_ELSEWHERE = 2_000_000_000
"""The same of a GPU, which waits some microseconds for each of a few kernels: reckoned from 10^14
multiplications a second, not measured."""


def states_at(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], places: Places, most: int | None = None
) -> Tensor:
    """Last hidden states at some places of rows.

    What rows share is read once where that is less work, by count, and the model can; otherwise
    rows of similar length are read side by side.

    Args:
        model: Adapters are read too, and gradients flow where they are enabled.
        rows: Token ids.
        places: Of each row, ascending; what follows the last of them is not read.
        most: Rows that pass through the model at once.

    Returns:
        [N, H], row after row.
    """
    asked = [i for i, own in enumerate(places) if own]
    if not asked:  # no states, and still a function of the weights
        token = next((row[0] for row in rows if row), 0)
        return _side_by_side(model, [(token,)], [()])
    read = [tuple(rows[i][: places[i][-1] + 1]) for i in asked]
    found: dict[int, Tensor] = {}
    for group, layout in plan(model, read, most):
        own = [places[asked[i]] for i in group]
        if layout is None:
            states = _side_by_side(model, [read[i] for i in group], own)
        else:
            states = _as_one(model, layout, own)
        found.update(zip(group, states.split([len(it) for it in own]), strict=True))
    return torch.cat([found[i] for i in range(len(read))])


Plan = list[tuple[list[int], Layout | None]]
"""Rows that pass through a model together, by index; side by side, or as they are laid out."""


def plan(model: PreTrainedModel, rows: Sequence[Row], most: int | None = None) -> Plan:
    """How rows are best read: laid out, or side by side in groups of similar length.

    Args:
        model: What can be done, and what it costs, hangs on it.
        rows: At least one token each.
        most: Rows of a group.
    """
    apart: Plan = [(group, None) for group in similar_lengths([len(row) for row in rows], most)]
    if is_sharded(model):
        # All processes gather its weights at once, so all make as many passes: one.
        apart, most = [(list(range(len(rows))), None)], None
    if len(rows) == 1 or not _can_share(model, max(map(len, rows))):
        return apart
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    together: Plan = []
    for start in range(0, len(rows), most or len(rows)):
        group = order[start : start + (most or len(rows))]
        together.append((group, Layout.of([rows[i] for i in group])))
    return min(apart, together, key=lambda it: _cost(model, rows, it))


def _cost(model: PreTrainedModel, rows: Sequence[Row], groups: Plan) -> float:
    """Multiplications: tokens meet every weight, and by attention one another."""
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    weights = backbone(model).num_parameters(exclude_embeddings=True)
    call = CALL if model.device.type == "cpu" else CALL_ELSEWHERE
    tokens = pairs = branches = 0
    for group, layout in groups:
        if layout is None:
            length = max(len(rows[i]) for i in group)
            tokens += len(group) * length
            pairs += len(group) * length**2
        else:
            tokens += len(layout.tokens)
            pairs += layout.pairs
            branches += len(layout.branches)
    # Twice, since a pair has a score and a share of the values.
    return float(tokens * weights + layers * (2 * heads * size * pairs + call * branches))


def _side_by_side(model: PreTrainedModel, rows: Sequence[Row], places: Places) -> Tensor:
    ids, mask = right_padded(rows, model.device)
    output = backbone(model)(input_ids=ids, attention_mask=mask, use_cache=False)
    width = ids.shape[1]
    wanted = [i * width + place for i, own in enumerate(places) for place in own]
    return _gathered(output.last_hidden_state.flatten(0, 1), torch.tensor(wanted).long())


def _as_one(model: PreTrainedModel, layout: Layout, places: Places) -> Tensor:
    output = backbone(model)(
        input_ids=torch.tensor([layout.tokens], device=model.device),
        attention_mask=_masks(model, layout),
        position_ids=layout.depths[None].to(model.device),
        use_cache=False,
    )
    paths = zip(layout.paths, places, strict=True)
    wanted = torch.cat([path[torch.tensor(own)] for path, own in paths])
    return _gathered(output.last_hidden_state[0], wanted)


def _gathered(states: Tensor, places: Tensor) -> Tensor:
    # Not by brackets: their backward pass adds up what stands at one place in any order.
    return states.index_select(0, places.to(states.device))


def _masks(model: PreTrainedModel, layout: Layout) -> Tensor | dict[str, Tensor]:
    """One mask, or where layers are of several kinds one for each."""
    config = model.config.get_text_config()
    masks: dict[str, Tensor] = {}
    for kind in sorted(_kinds(model)):
        sees: Sees | None = None
        if kind == "sliding_attention":
            window = config.sliding_window
            sees = lambda own, past, window=window: past > own - window  # noqa: E731
        elif kind == "chunked_attention":
            chunk = config.attention_chunk_size
            sees = lambda own, past, chunk=chunk: own // chunk == past // chunk  # noqa: E731
        masks[kind] = AncestryMask.of(Ancestry(layout, model.device, sees))
    return masks["full_attention"] if masks.keys() == {"full_attention"} else masks


def _kinds(model: PreTrainedModel) -> set[str]:
    """Of a model's layers; of a model that names none they are one."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])


def _can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether rows of a model may be laid out as one.

    Its attention must be torch's own; no layer may pass something on from token to token by itself,
    as recurrent ones and convolutions do; and positions must be given, not counted. No list of
    models is up to date, so two short rows are tried.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa" or not _kinds(model) <= KINDS:
        return False
    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None and window is not None and longest > window:
        return False  # which may hold for any of the layers
    bare = backbone(model)
    if bare not in _TRIED:
        _TRIED[bare] = not is_sharded(model) and _tried(model)  # not all processes come here
    return _TRIED[bare]


_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def read_like(model: PreTrainedModel, copy: PreTrainedModel) -> None:
    """Let a copy that will be cut into shards be read as the model can be, which is tried now."""
    _TRIED[backbone(copy)] = _can_share(model, 0)


@torch.no_grad()
def _tried(model: PreTrainedModel) -> bool:
    """In the model's own type: passes in a coarser one would differ by more than is told apart."""
    with torch.autocast(model.device.type, enabled=False):
        return _reads_alike(model)


def _reads_alike(model: PreTrainedModel) -> bool:
    rows = [(1, 2, 3, 4), (1, 2, 5, 6, 7)]
    places = [range(len(row)) for row in rows]
    with _evaluating(backbone(model)):
        expected = _side_by_side(model, rows, places)
        try:
            found = _as_one(model, Layout.of(rows), places)
        except Exception as error:  # whatever its code says to a mask that it does not know
            logger.info("%s reads rows one by one: %s", type(model).__name__, error)
            return False
    # Rounding is far below this, and another token's influence far above.
    bound = torch.finfo(model.dtype).eps ** 0.5 * float(expected.abs().max())
    return bool((found - expected).abs().max() <= bound)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
