"""The student as a run began with it: what a run is held to by `trainer.kl`.

`distill.py` asks it once a rollout for the log-probabilities of the chosen tokens; `schedule.py`
makes a penalty of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from journeyman.agents.learning.losses import Predictions
from journeyman.agents.networks.adapters import UNTOUCHED, twin
from journeyman.agents.networks.heads import Head
from journeyman.agents.networks.sharing import states_at
from journeyman.agents.networks.tries import Distinct


class Beginning:
    """Reads rows with the weights that the run began with, whatever a resumed run goes on from."""

    def __init__(self, model: PreTrainedModel, adapters: Any = None) -> None:
        """Keep them.

        Args:
            model: The student's, before the trainer adds adapters to it.
            adapters: Their `peft.LoraConfig`; without them the student is what it was, and no copy
                is made. Of other kinds, and of None, it is; a model that has an adapter already
                shares its base with the copy.
        """
        bare = getattr(adapters, "init_lora_weights", None) in UNTOUCHED
        bare = bare and not getattr(adapters, "modules_to_save", None)
        self._copy = None if bare else _still(model)
        self._model = model

    @torch.no_grad()
    def logprobs(self, rows: dict[str, Tensor]) -> Tensor:
        """[B, C] of the chosen tokens of `to_batch`'s rows, 0 elsewhere; where the rows are."""
        chosen = (rows["tool_mask"] * rows["completion_mask"]).bool()
        found = torch.zeros_like(rows["sampled_logprobs"])
        if not chosen.any():
            return found
        with self._as_it_was() as model:
            states, distinct = hidden_states(model, rows, chosen)
            targets = rows["completion_ids"][chosen]
            known = Predictions(states, Head.of(model), targets, distinct=distinct).logprobs
        return found.masked_scatter(chosen, known.to(found.dtype))

    @contextmanager
    def _as_it_was(self) -> Iterator[PreTrainedModel]:
        if self._copy is not None:
            yield self._copy.to(self._model.device)
            return
        from peft.tuners.tuners_utils import BaseTunerLayer  # an optional package

        layers = [it for it in self._model.modules() if isinstance(it, BaseTunerLayer)]
        training = self._model.training
        self._model.eval()
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield self._model
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            self._model.train(training)


def _still(model: PreTrainedModel) -> Any:
    return twin(model).eval().requires_grad_(False)


def hidden_states(
    model: PreTrainedModel, inputs: dict[str, Tensor], chosen: Tensor
) -> tuple[Tensor, Distinct]:
    """Last hidden states [N, H] from which the chosen tokens are predicted, and which are one.

    TRL's own counts positions from the left edge of the padding. Here a token has the position it
    was sampled at, without which learned position embeddings would see another text; and what rows
    have in common is read once.

    Args:
        model: The student.
        inputs: Rows of `to_batch`.
        chosen: [B, C], true on the N tokens of completions that are to be predicted.

    Returns:
        States in the order of the tokens; and of the tokens those that follow the same ones.
    """
    before = inputs["prompt_ids"].shape[1]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1).bool()
    predicted = torch.nn.functional.pad(chosen, (before, 0))
    rows = [own[real].tolist() for own, real in zip(ids, there, strict=True)]
    ends = [own[real].nonzero()[:, 0] for own, real in zip(predicted, there, strict=True)]
    states = states_at(model, rows, [(own - 1).tolist() for own in ends])
    distinct = Distinct.of(rows, [(own + 1).tolist() for own in ends])
    return states, distinct.to(states.device)
