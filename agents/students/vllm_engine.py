"""vLLM's engine in this process, which `journeyman.agents.students.vllm` writes turns with.

It steps only when it is told to, so a run is as deterministic as its arithmetic; and the weights in
it can be replaced while it runs: all of them, or those of an adapter alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedModel

from journeyman.agents.errors import MissingExtraError, SettingError, UnsupportedModelError
from journeyman.agents.networks.catalogue import resolve, whole
from journeyman.agents.students.weights import (
    Adapter,
    begun_rank,
    fingerprint,
    lora_rank,
    rank_at,
    size,
    tmpfs,
    to_train,
)


class Engine:
    """vLLM's engine in this process; the players and streams on it share its batch."""

    _begun: Mapping[str, Any] | bool | None = None
    _sleep = 0
    _asleep = False
    _lora: Any = None
    """The adapter that turns are written with; None plays the model as it is."""
    _synced: tuple[int, ...] | None = None
    """What `model` was when it was brought here last."""
    copied = 0
    """Bytes of weights that `sync` has brought here so far."""

    def __init__(
        self,
        model: str,
        sleep: int = 0,
        lora: Mapping[str, Any] | bool | None = None,
        **arguments: Any,
    ) -> None:
        """Load a model.

        Args:
            model: Its name (see `journeyman.agents.networks.catalogue`); of an adapter, too, which
                is then played on its base.
            sleep: What `rest` gives free: 0 nothing; 1 the cache and, into the host's memory, the
                weights; 2 both, and weights are forgotten. Nothing where vLLM cannot (a CPU).
            lora: Begins an adapter, which alone is trained and copied; see `begin`.
            arguments: Those of `vllm.LLM`, passed on as they are.

        Raises:
            MissingExtraError: vLLM is not installed.
            ModelNotFoundError: No such model here.
            SettingError: `sleep` is out of its range.
            UnsupportedModelError: vLLM does not know the model, or cannot run it as asked.
        """
        self._model_name = model
        self._begun = lora
        found = resolve(model)
        path, rank = resolve(whole(model)), rank_at(found)
        own = rank is not None
        rank = begun_rank(lora) or rank
        if rank is not None:
            arguments.setdefault("enable_lora", True)
        if sleep not in (0, 1, 2) or isinstance(sleep, bool):
            raise SettingError(f"student.sleep={sleep}: expected 0, 1 or 2")
        if sleep == 2 and arguments.get("enable_lora"):
            raise SettingError(
                "student.sleep=2: the base of an adapter is not copied again after its weights "
                "were forgotten; expected 1, or 0"
            )
        # Read when the engine starts: it shall live in this process, where weights can be copied.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{error}: this student needs vLLM: pip install 'journeyman[vllm]' (on a machine "
                f"without a GPU see docs/vllm.md)"
            ) from error
        _keep_weights_where_they_are()
        from vllm.platforms import current_platform

        if rank is not None:
            arguments.setdefault("max_lora_rank", lora_rank(rank))
        if sleep and current_platform.is_sleep_mode_available():
            self._sleep = sleep
            arguments.setdefault("enable_sleep_mode", True)
        try:
            with _restoring_transformers(path, arguments):
                self._llm = vllm.LLM(
                    path, skip_tokenizer_init=True, logprobs_mode="raw_logprobs", **arguments
                )
        except ValueError as error:
            raise UnsupportedModelError(f"vLLM refuses {model}: {_reason(error)}") from error
        self._params = vllm.SamplingParams
        self._final = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        self._ids = map(str, itertools.count())
        self._finished: dict[str, Any] = {}
        if own:
            self._adapt(found)
        config = self._llm.llm_engine.model_config
        self.max_length: int = config.max_model_len
        """Longest token stream, the tokens that are to be written included."""
        self.vocabulary: int = config.get_vocab_size()
        """Tokens that the model tells apart."""
        self._stance = "force_eager" if config.enforce_eager else "default"

    def submit(self, tokens: Sequence[int], ends: Sequence[int], **sampling: Any) -> str:
        """Ask for a turn: what is written after `tokens` up to one of `ends`; returns its id."""
        params = self._params(
            **sampling,
            stop_token_ids=list(ends),
            ignore_eos=True,  # else the tokens of the model's generation_config.json would end too
            logprobs=0,  # of the sampled token alone; "raw" ones are those at temperature 1
            detokenize=False,
            output_kind=self._final,
        )
        request = next(self._ids)
        prompt = {"prompt_token_ids": list(tokens)}
        self._llm.llm_engine.add_request(request, prompt, params, lora_request=self._lora)
        return request

    def step(self) -> None:
        """One forward pass over what the scheduler chooses, a token for each row in it."""
        # `enforce_eager` alone leaves a helper of the sampler that needs a C++ compiler.
        with torch.compiler.set_stance(self._stance):
            outputs = self._llm.llm_engine.step()
        self._finished |= {output.request_id: output.outputs[0] for output in outputs}

    def take(self, request: str) -> tuple[list[int], list[float]] | None:
        """Tokens and log-probabilities of a request, once, if it has finished."""
        output = self._finished.pop(request, None)
        if output is None:
            return None
        tokens = list(output.token_ids)
        chosen = zip(output.logprobs, tokens, strict=True)
        return tokens, [float(places[token].logprob) for places, token in chosen]

    def abort(self, request: str) -> None:
        """Forget a request."""
        self._llm.llm_engine.abort_request([request])

    @cached_property
    def model(self) -> PreTrainedModel:
        """The same weights as a transformers model, to be trained; see `sync`.

        In float32 whatever the engine's own type: in bfloat16 an optimiser's small steps round to
        nothing.
        """
        return to_train(self._model_name, self._begun)

    @property
    def weights(self) -> PreTrainedModel | str:
        """`model` if anyone has asked for it, else the folder (or hub id) they were loaded from."""
        known: PreTrainedModel | str = self.__dict__.get("model", self._model_name)
        return resolve(known) if isinstance(known, str) else known

    def sync(self) -> None:
        """Play with the weights that `model` has now, if anyone has asked for it.

        Raises:
            UnsupportedModelError: The model has an adapter that this engine cannot play.
            RuntimeError: A weight of the engine is not among those of the model.
        """
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
        if "model" not in self.__dict__:
            return
        adapter = Adapter.of(self.model)
        weights = dict(self.model.named_parameters()) if adapter is None else adapter.tensors
        now = fingerprint(weights)
        if now == self._synced:
            return  # many a search opens batches between two steps
        self._synced = None
        if adapter is None:
            self._copy(weights)
        else:
            self._swap(adapter)
        self._llm.reset_prefix_cache(reset_running_requests=True)
        self.copied += size(weights)
        self._synced = now

    def rest(self) -> None:
        """Give memory free for training, until the next `sync`; see `sleep`."""
        if self._sleep and not self._asleep and "model" in self.__dict__:
            self._llm.sleep(level=self._sleep)
            self._asleep = True
            if self._sleep == 2:
                self._synced = None

    def _copy(self, source: Mapping[str, torch.Tensor]) -> None:
        """All weights."""
        if self._adapts:
            raise UnsupportedModelError(
                "student.engine.enable_lora: the student has no adapter to be played with; leave "
                "it out, or train one (student.lora)"
            )

        def load(target: torch.nn.Module) -> set[str]:
            loaded = target.load_weights(iter(source.items()))  # type: ignore[operator]
            return {name for name, _ in target.named_parameters()} - set(loaded)

        for stale in self._llm.apply_model(load):
            if stale:
                raise RuntimeError(
                    f"the engine has weights that the transformers model has not, and would play "
                    f"with old ones: {', '.join(sorted(stale))}; train this model with a student "
                    f"of journeyman.agents.students.hf"
                )

    def _swap(self, adapter: Adapter) -> None:
        """The adapter's weights alone; vLLM reads them from a folder, here one in memory."""
        if not self._adapts:
            raise UnsupportedModelError(
                f"the student has an adapter, and vLLM's engine was started without a place for "
                f"one: student.lora={{r: {adapter.rank}}}, or +student.engine.enable_lora=true "
                f"+student.engine.max_lora_rank=N, of N not below its rank {adapter.rank}"
            )
        with tempfile.TemporaryDirectory(prefix="journeyman-", dir=tmpfs()) as folder:
            adapter.save(Path(folder))
            self._adapt(folder)

    @property
    def _adapts(self) -> bool:
        return self._llm.llm_engine.vllm_config.lora_config is not None

    def _adapt(self, folder: str) -> None:
        from vllm.lora.request import LoRARequest

        # Under one number, so that what is being written goes on with the new weights.
        name, number = "student", 1
        try:
            self._llm.llm_engine.add_lora(LoRARequest(name, number, folder, load_inplace=True))
        except ValueError as error:
            raise UnsupportedModelError(
                f"vLLM refuses the student's adapter: {_reason(error)}"
            ) from error
        self._lora = LoRARequest(name, number, folder)  # one to load in place is read at every step


def _keep_weights_where_they_are() -> None:
    """Keep vLLM on a CPU from packing weights away, out of the reach of `Engine.sync`."""
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False


@contextlib.contextmanager
def _restoring_transformers(path: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Undo what vLLM does to the class of a model that it has no code of its own for.

    It runs such a model by transformers' class, which it changes in place, and no model of that
    class could be made in this process any more, be it a teacher. The change is for the compiler;
    an engine with `enforce_eager` does without.
    """
    trust = bool(arguments.get("trust_remote_code"))
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    kind: Any = MODEL_MAPPING.get(type(config.get_text_config()), None)
    if kind is None or not arguments.get("enforce_eager"):
        yield
        return
    bases, own = kind.__bases__, dict(vars(kind))
    try:
        yield
    finally:
        kind.__bases__ = bases
        for name in {"__init__", "__call__"} & vars(kind).keys():
            if name in own:
                setattr(kind, name, own[name])
            else:
                delattr(kind, name)


def _reason(error: ValueError) -> str:
    """The text of an error; pydantic's own wraps it in much else."""
    from pydantic import ValidationError

    text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return text.removeprefix("Value error, ")
