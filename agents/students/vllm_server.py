"""vLLM on a server as an engine for `vllm.py`: turns over HTTP, and weights pushed before a batch.

The server is `journeyman student serve MODEL`, on this machine or another that sees `folder`. Each
turn is a request of its own, tokens in and tokens out, several under way at once. After what the
trainer changed, weights are written into the folder and the server reads them: an adapter's alone
through vLLM's own door for adapters, else all of them by `vllm_worker.py`.

A turn counts only if the server has the pushed weights after it was written: one that was started
anew in between gets them again and is asked again.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoConfig, PreTrainedModel

from journeyman.agents.errors import (
    AgentError,
    SettingError,
    StudentServerError,
)
from journeyman.agents.networks.catalogue import resolve, whole
from journeyman.agents.networks.endpoints import Endpoint
from journeyman.agents.networks.replies import some_of
from journeyman.agents.students.dialect import ToolRender
from journeyman.agents.students.player import Sampling
from journeyman.agents.students.vllm import VLLMPlayer, Ways
from journeyman.agents.students.vllm_doors import UNTOUCHED, TrainersDoors
from journeyman.agents.students.weights import (
    WEIGHTS,
    Adapter,
    begun_rank,
    fingerprint,
    rank_at,
    save_weights,
    tmpfs,
    to_train,
)

Written = tuple[list[int], list[float]]
"""Tokens of a turn and their log-probabilities."""

START_PATIENCE = 10.0
"""Seconds that a server may be silent before a run begins: most often its address is wrong."""
TRIES = 6
"""How often a turn may break the server (status 500) before it is not asked for again."""


class ServerEngine:
    """vLLM's server; what is asked for it is the same as for `vllm_engine.Engine`."""

    copied = 0
    """Bytes of weights that were pushed so far."""

    def __init__(
        self,
        base_url: str,
        model: str,
        served: str | None = None,
        concurrency: int = 64,
        timeout: float = 600.0,
        patience: float = 3600.0,
        key: str | None = None,
        folder: str | None = None,
        sleep: int = 0,
        lora: Mapping[str, Any] | bool | None = None,
    ) -> None:
        """Reach it, and see what it serves.

        Args:
            base_url: Such as http://127.0.0.1:8000/v1.
            model: The student's name here; it is loaded to be trained, and pushed.
            served: The name of what it was made of there; None takes the only one.
            concurrency: Turns under way at once.
            timeout: Seconds of silence that a turn may bear.
            patience: Seconds without any answer after which the run ends; it can be resumed.
            key: Name of the environment variable that holds the server's key; None sends none.
            folder: Where weights are left for the server, which must see it under the same path;
                None takes one in this machine's memory.
            sleep: What `rest` gives free there; see `vllm_engine.Engine`.
            lora: Begins an adapter, which alone is trained and pushed; see `begin`.

        Raises:
            ModelNotFoundError: No such model here.
            SettingError: A value is out of its range.
            StudentServerError: It cannot be reached, or is none that weights can be pushed to.
        """
        if sleep not in (0, 1, 2) or isinstance(sleep, bool):
            raise SettingError(f"student.sleep={sleep}: expected 0, 1 or 2")
        begun_rank(lora)  # checked
        self._model_name, self._begun = model, lora
        self._path = resolve(model)
        self._is_adapter = rank_at(self._path) is not None
        asked = (StudentServerError, concurrency, timeout, patience, key)
        self._turns = Endpoint(base_url, "student", *asked)
        root = base_url.rstrip("/").removesuffix("/v1")
        self._doors = TrainersDoors(Endpoint(root, "student", *asked), model)
        self._folder = Path(tempfile.mkdtemp(prefix="journeyman-", dir=folder or tmpfs()))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._run = uuid.uuid4().hex
        self._pushes = itertools.count(1)
        self._version = UNTOUCHED
        """What the server says its weights are, if they are those that were pushed last."""
        self._synced: tuple[int, ...] | None = None
        """What `model` was then."""
        self._adapter: str | None = None
        """The name of the adapter that turns are written with."""
        self._sleep, self._asleep = sleep, False
        self._concurrency = concurrency
        self._pool: ThreadPoolExecutor | None = None
        self._ids = map(str, itertools.count())
        self._asked: dict[str, dict[str, Any]] = {}
        """Requests that somebody waits for, and what was asked."""
        self._waiting: dict[Future[Written | AgentError], tuple[str, str]] = {}
        """Those under way -> their id, and the version that they began with."""
        self._finished: dict[str, Written] = {}
        self._see(served)

    def _see(self, served: str | None) -> None:
        """Learn what is served, and whether it is what this student plays."""
        patience = self._turns.patience
        for it in (self._turns, self._doors.endpoint):
            it.patience = min(patience, START_PATIENCE)
        try:
            listed = self._turns.ask(self._turns.client, "GET", "models", timeout=START_PATIENCE)
            known, self._asleep = self._doors.version(), self._doors.asleep
        finally:
            for it in (self._turns, self._doors.endpoint):
                it.patience = patience
        found = listed.get("data")
        roots = {
            str(it["id"]): it
            for it in (found if isinstance(found, list) else [])
            if isinstance(it, dict) and it.get("id") and not it.get("parent")  # no adapters
        }
        self.served = served or self._turns.only(list(roots))
        if self.served not in roots:
            raise StudentServerError(
                f"{self._turns.url} does not serve {self.served!r}; it serves "
                f"{some_of(list(roots)) or 'nothing'}"
            )
        told = roots[self.served]
        if type(told.get("max_model_len")) is not int:
            raise self._turns.strange("no max_model_len, as vLLM does, of what it serves", told)
        self.max_length = told["max_model_len"]
        base = resolve(whole(self._model_name))
        self.vocabulary = int(AutoConfig.from_pretrained(base).get_text_config().vocab_size)
        same = told.get("root") == base
        if self._is_adapter and not same and served is None:
            raise StudentServerError(
                f"{self._turns.url} serves {told.get('root')}, and student.model="
                f"{self._model_name} is an adapter of {base}; if they are the same, say so: "
                f"student.served={self.served}"
            )
        if not self._is_adapter and (known != UNTOUCHED or not same or self._asleep):
            _ = self.model  # which will be pushed: who knows what it has

    @cached_property
    def model(self) -> PreTrainedModel:
        """See `TurnEngine`; in float32, as in `vllm_engine.Engine`."""
        return to_train(self._model_name, self._begun)

    @property
    def weights(self) -> PreTrainedModel | str:
        """See `TurnEngine`."""
        known: PreTrainedModel | str = self.__dict__.get("model", self._path)
        return known

    def sync(self) -> None:
        """See `TurnEngine`.

        Raises:
            StudentServerError: It is gone, or takes no weights.
            UnsupportedModelError: It cannot play the model's adapter.
        """
        if self._asleep:
            self._doors.wake()
            self._asleep = False
        now = self._now()
        if now is not None and now != self._synced:
            self._push(now)

    def rest(self) -> None:
        """See `TurnEngine`.

        Raises:
            SettingError: The base of an adapter would be forgotten.
        """
        if not self._sleep or self._asleep or "model" not in self.__dict__:
            return
        if self._sleep == 2 and self._adapter is not None:
            raise SettingError(
                "student.sleep=2: the base of an adapter is not pushed again after its weights "
                "were forgotten; expected 1, or 0"
            )
        self._doors.sleep(self._sleep)
        self._asleep = True
        if self._sleep == 2:
            self._synced = None

    def submit(self, tokens: Sequence[int], ends: Sequence[int], **sampling: Any) -> str:
        """See `TurnEngine`."""
        request = next(self._ids)
        self._asked[request] = {
            "prompt": list(tokens),
            "stop_token_ids": list(ends),
            "ignore_eos": True,  # else the tokens of its generation_config.json would end too
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
            "repetition_penalty": 1.0,  # nor shall that file say how tokens are drawn
            **sampling,
        }
        self._begin(request)
        return request

    def step(self) -> None:
        """Wait until a turn is there.

        Raises:
            StudentServerError: One is not to be had, or another run has pushed its weights.
        """
        try:
            done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
            told = [(self._waiting.pop(it), it.result()) for it in done]
            version = self._doors.version()
            if version != self._version:
                if version != UNTOUCHED:
                    raise StudentServerError(
                        f"{self._turns.url} has weights that another run has pushed: give each "
                        f"run a server of its own"
                    )
                self._push(self._now())  # it was started anew
            for (request, began), turn in told:
                if request not in self._asked:
                    continue
                if began != self._version:
                    self._begin(request)  # it was written, or refused, by other weights
                    continue
                if isinstance(turn, AgentError):
                    raise turn
                self._finished[request] = turn
                del self._asked[request]
        except BaseException:
            self._end()
            raise

    def take(self, request: str) -> Written | None:
        """See `TurnEngine`."""
        return self._finished.pop(request, None)

    def abort(self, request: str) -> None:
        """See `TurnEngine`; one under way is written to its end, and nobody reads it."""
        self._asked.pop(request, None)
        self._finished.pop(request, None)
        for it in [it for it, (name, _) in self._waiting.items() if name == request]:
            if it.cancel():
                del self._waiting[it]

    def _begin(self, request: str) -> None:
        if self._pool is None:
            self._turns.resume()
            self._pool = ThreadPoolExecutor(self._concurrency, "journeyman-turn")
        body = self._asked[request] | {"model": self._adapter or self.served}
        self._waiting[self._pool.submit(self._turn, self._turns.client, body)] = (
            request,
            self._version,
        )

    def _end(self) -> None:
        """Nobody waits for anything any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._turns.stop()
        for it in (self._asked, self._waiting, self._finished):
            it.clear()

    def _turn(self, client: httpx.Client, body: Mapping[str, Any]) -> Written | AgentError:
        """A turn, or why it is refused: a server that was started anew knows no adapter."""
        reply = self._turns.send(client, "POST", "completions", body, tries=TRIES)
        if reply.status >= 400:
            return self._turns.refusal(reply)
        answer = self._turns.content(reply)
        try:
            (choice,) = answer["choices"]
            tokens = [int(it) for it in choice["token_ids"]]
            logprobs = [float(it) for it in choice["logprobs"]["token_logprobs"]]
            if not tokens or len(tokens) != len(logprobs):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise self._turns.strange(
                "no token ids with their log-probabilities, as vLLM does", answer
            ) from None
        return tokens, logprobs

    def _now(self) -> tuple[int, ...] | None:
        """What is to be played; None for what the server was started with."""
        if "model" in self.__dict__:
            adapter = Adapter.of(self.model)
            return fingerprint(
                dict(self.model.named_parameters()) if adapter is None else adapter.tensors
            )
        return () if self._is_adapter else None

    def _push(self, now: tuple[int, ...] | None) -> None:
        """Have the server play what is to be played, whatever it has now."""
        version = f"{self._run}-{next(self._pushes)}"
        adapter = Adapter.of(self.model) if "model" in self.__dict__ else None
        adapts = adapter is not None or now == ()
        before, place = self._adapter, self._folder / version
        place.mkdir()
        # A turn that was dropped may still be written with the adapter before, and read it again.
        kept = sorted(self._folder.iterdir(), key=_number)[-2:] if adapts else []
        try:
            if now == ():
                shutil.copytree(self._path, place, dirs_exist_ok=True)
                self._doors.lend(version, place)
            elif adapter is not None:
                self.copied += adapter.save(place)
                self._doors.lend(version, place)
            else:
                self.copied += save_weights(dict(self.model.named_parameters()), place)
                self._doors.give(place / WEIGHTS)
            self._doors.call(version)
        finally:
            for it in set(self._folder.iterdir()) - set(kept):
                shutil.rmtree(it)
        if adapts:
            self._adapter = version
        if before is not None:
            self._doors.take_back(before)
        self._version, self._synced = version, now


def _number(folder: Path) -> int:
    """Of a push."""
    return int(folder.name.rpartition("-")[2])


def load_student(
    base_url: str,
    model: str,
    served: str | None = None,
    dialect: str | None = None,
    render: ToolRender | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    max_turn_tokens: int | None = None,
    max_context: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    concurrency: int = 64,
    timeout: float = 600.0,
    patience: float = 3600.0,
    key: str | None = None,
    folder: str | None = None,
    sleep: int = 0,
    lora: Mapping[str, Any] | bool | None = None,
) -> VLLMPlayer:
    """A student on a vLLM server, by its name here.

    Args:
        base_url: See `ServerEngine`.
        model: See `ServerEngine`.
        served: See `ServerEngine`.
        dialect: As in `hf`; this and the next eight.
        render: See `hf`.
        template_kwargs: See `hf`.
        max_turn_tokens: See `hf`.
        max_context: See `hf`.
        temperature: See `hf`.
        top_p: See `hf`.
        top_k: See `hf`.
        min_p: See `hf`.
        concurrency: See `ServerEngine`; this and the rest.
        timeout: See `ServerEngine`.
        patience: See `ServerEngine`.
        key: See `ServerEngine`.
        folder: See `ServerEngine`.
        sleep: See `ServerEngine`.
        lora: See `ServerEngine`.

    Raises:
        ModelNotFoundError: No such model here.
        SettingError: A value is out of its range.
        StudentServerError: The server cannot be reached, or is none that weights can be pushed to.
    """
    sampling = Sampling(temperature, top_p, top_k, min_p)
    ways = Ways.of(model, sampling, dialect, render, template_kwargs, max_turn_tokens, max_context)
    engine = ServerEngine(
        base_url, model, served, concurrency, timeout, patience, key, folder, sleep, lora
    )
    return ways.player(engine)
