"""A server of chat completions behind the proxy: what is said passes through, and is written down.

Tokens are those that the server tells, as vLLM does that is asked for them; else bytes of text.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from journeyman.agents.errors import BudgetSpentError, SettingError, StudentServerError
from journeyman.agents.rollouts.dialogues import Utterance
from journeyman.agents.rollouts.underway import as_step
from journeyman.agents.rollouts.visits import Visit, pending
from journeyman.agents.runs.proxy.hosts import Host, Written
from journeyman.agents.runs.proxy.wire import NAMES, ApiError, ChatRequest
from journeyman.agents.students.answers import Answer
from journeyman.agents.students.chat_api import USAGE, counts_in
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.agents.students.player import Turn
from journeyman.agents.students.wording import as_text
from journeyman.envs import Message, Step
from journeyman.tools import ToolCall


class UpstreamHost(Host):
    """A server of chat completions; requests and answers go through as they are."""

    def __init__(self, player: OpenAIPlayer, temperature: float | None) -> None:
        """Serve what a server serves.

        Args:
            player: Knows it, its key, its prices and the budget.
            temperature: Whatever clients ask for; None does as they ask.

        Raises:
            SettingError: It is asked in another form than clients ask here.
            StudentServerError: It is not there.
        """
        if player.api != "chat":
            raise SettingError(f"student.api={player.api}: expected chat, which clients speak here")
        player.check()
        self.player = self._server = player
        self.name = str(player.model_name)
        self.pool = ThreadPoolExecutor(player.side_by_side, "journeyman-upstream")
        self._temperature = temperature
        self._tells_tokens = player.is_vllm()

    def opening(self, request: ChatRequest) -> tuple[Message, ...]:
        """See `Host.opening`."""
        dialect = self.player.dialect
        return tuple(
            Message("assistant", as_text(raw, False, dialect)[0])
            if isinstance(it, Utterance)
            else it
            for raw, it in zip(request.body["messages"], request.messages, strict=True)
        )

    def write(
        self, visit: Visit, request: ChatRequest, new: Sequence[Message], gone: threading.Event
    ) -> Written:
        """See `Host.write`."""
        server = self._server
        try:
            reply = server.post(self._body(request))
        except BudgetSpentError as error:
            raise ApiError(402, str(error), "insufficient_quota", code="budget_spent") from error
        except StudentServerError as error:
            raise ApiError(502, str(error), "upstream_error") from error
        if reply.status >= 400:
            if server.is_too_long(reply):
                visit.full = reply.said
            refusal = ApiError(reply.status, reply.said)
            if isinstance(reply.data, dict) and isinstance(reply.data.get("error"), dict):
                refusal.body = reply.data
            raise refusal
        answer = reply.data
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise ApiError(502, f"no message in what the upstream answers: {reply.said}")
        return self._written(visit, request, new, answer, choice, message)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body = {k: v for k, v in request.body.items() if k not in ("stream", "stream_options")}
        body["model"] = self.name
        told = body.get("metadata")
        if isinstance(told, dict):  # what is ours is no business of theirs
            body["metadata"] = {k: v for k, v in told.items() if k not in NAMES}
            if not body["metadata"]:
                del body["metadata"]
        if isinstance(body.get("user"), str) and body["user"].startswith(NAMES):
            del body["user"]
        if self._temperature is not None:
            body["temperature"] = self._temperature
        if self._tells_tokens:
            body |= {"return_token_ids": True, "logprobs": True}
        body |= self._server.extra_body
        return {name: value for name, value in body.items() if value is not None}

    def _written(
        self,
        visit: Visit,
        request: ChatRequest,
        new: Sequence[Message],
        answer: dict[str, Any],
        choice: dict[str, Any],
        message: dict[str, Any],
    ) -> Written:
        dialect = self.player.dialect
        cut = choice.get("finish_reason") == "length"
        text, ids = as_text(message, cut, dialect)
        read = dialect.read(text)
        counts = counts_in(answer.get("usage"), USAGE)
        cost = Answer(text, cut, tuple(ids), *counts)
        self._server.answers.add("", cost)
        budget = self._server.answers.budget
        if budget is not None and None in (cost.prompt, cost.completion):
            raise ApiError(
                502,
                f"the upstream does not say how many tokens it takes, so that "
                f"student.budget={budget:g} cannot be kept: leave it out",
                "upstream_error",
            )
        usage = self._server.answers.usage(cost)
        found = _tokens(answer, choice)
        if found is None:
            tokens = tuple(dialect.turn(text))
            turn = Turn(0, tokens, (0.0,) * len(tokens), cut, usage)
            if visit.steps:
                prompt = [*visit.tokens, *dialect.reply(new)]
            else:
                opening = self.opening(request)
                prompt = dialect.opening(opening, request.tools or None)
            step = as_step(dialect, len(prompt), turn, read, pending(read.calls))
        else:
            prompt, written, logprobs = found
            turn = Turn(0, tuple(written), tuple(logprobs), cut, usage)
            step = _step_of_ids(len(prompt), turn, text, read.calls, read.answer)
        shown = _without_tokens(answer, request.body)
        return Written(shown, tuple(prompt), turn, step, tuple(ids))


def _tokens(
    answer: Mapping[str, Any], choice: Mapping[str, Any]
) -> tuple[list[int], list[int], list[float]] | None:
    """Prompt, turn and its log-probabilities, where a server tells all three as vLLM does."""
    prompt, tokens = _ids(answer.get("prompt_token_ids")), _ids(choice.get("token_ids"))
    told = choice.get("logprobs")
    entries = told.get("content") if isinstance(told, dict) else None
    if not prompt or not tokens or not isinstance(entries, list):
        return None
    values = [it.get("logprob") if isinstance(it, dict) else None for it in entries]
    logprobs = [float(it) for it in values if isinstance(it, int | float)]
    return (prompt, tokens, logprobs) if len(logprobs) == len(values) == len(tokens) else None


def _ids(value: Any) -> list[int]:
    """Token ids; none of what is no list of them."""
    found = value if isinstance(value, list) else []
    return found if all(type(it) is int and 0 <= it < 1 << 32 for it in found) else []


def _step_of_ids(
    start: int, turn: Turn, text: str, calls: tuple[ToolCall, ...], answer: str
) -> Step:
    """A turn whose tokens are those of a tokenizer that is not here: its parts cannot be told."""
    end = start + len(turn.tokens)
    ended = end if turn.truncated else end - 1
    parts: dict[str, tuple[tuple[int, int], ...]] = {
        "call" if calls else "answer": ((start, ended),)
    }
    if ended < end:
        parts["stop"] = ((ended, end),)
    said = None if calls or answer == text else answer.strip()
    return Step((start, end), text, pending(calls), parts, turn.truncated, (), said, turn.usage)


def _without_tokens(answer: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without what only we asked for."""
    shown = dict(answer)
    if not asked.get("return_token_ids"):
        shown.pop("prompt_token_ids", None)
        shown.pop("prompt_logprobs", None)
    choice = dict(answer["choices"][0])
    if not asked.get("return_token_ids"):
        choice.pop("token_ids", None)
    if not asked.get("logprobs"):
        choice["logprobs"] = None
    shown["choices"] = [choice]
    return shown
