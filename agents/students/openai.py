"""A student behind an OpenAI-compatible server: chat completions with tools, or Responses.

It is asked for one turn at a time; its calls come in fields of their own (`wording.py`). What its
server does wrong is infrastructure, never the model's failure: the run waits, the episode is
broken, or the run ends in one line. Only a conversation that has become too long is the student's.
"""

from __future__ import annotations

import copy
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from journeyman.agents.errors import (
    AgentError,
    BudgetSpentError,
    ContextFullError,
    LostTurnError,
    SettingError,
    StudentServerError,
)
from journeyman.agents.networks.replicas import reach
from journeyman.agents.networks.replies import Reply, some_of
from journeyman.agents.students.answers import Answer, Answers, Pace, Prices, question
from journeyman.agents.students.chat_api import ChatForm, Known, StrangeAnswerError, WireForm
from journeyman.agents.students.player import Conversation, Sampling, Stream, turn_limit
from journeyman.agents.students.responses_api import ResponsesForm
from journeyman.agents.students.spoken import Speech, SpokenPlayer, plain_dialect
from journeyman.envs import Message
from journeyman.tools import ToolSpec

logger = logging.getLogger(__name__)

START_PATIENCE = 10.0
"""Seconds that a server may be silent before a run begins: most often its address is wrong."""
TRIES = 6
"""How often a request may break the server (status 500) before it is not sent again."""
REMEMBERED = 1 << 16
"""Turns of which is known how the server gave them."""
FORMS: Mapping[str, WireForm] = {"chat": ChatForm(), "responses": ResponsesForm()}
"""What `api` may be."""
MEANS = ("key", "concurrency", "requests_per_minute", "timeout", "patience", "budget")
"""Settings of how a server is asked, by which no answer becomes another."""

_TOO_LONG = re.compile(
    r"context.?(length|size|window)|(prompt|input|message)s? (is|are) too long|reduce the length"
    r"|maximum number of tokens|max_new_tokens|max_model_len|maximum model length",
    re.IGNORECASE,
)
"""What servers say of a conversation that they cannot read to its end."""
_ONE = (400, 413, 422, 500)
"""Statuses that may be of one request alone."""


class OpenAIPlayer(SpokenPlayer):
    """Asks a server for each turn; has no weights here, so nothing can train it."""

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        key: str | None = None,
        api: str = "chat",
        temperature: float = 1.0,
        max_turn_tokens: int | None = 2048,
        seed: int | None = 0,
        extra_body: Mapping[str, Any] | None = None,
        concurrency: int = 8,
        timeout: float = 600.0,
        patience: float = 3600.0,
        requests_per_minute: float | None = None,
        prices: Mapping[str, float] | None = None,
        budget: float | None = None,
    ) -> None:
        """Remember how to reach it; nothing is sent yet.

        Args:
            base_url: Such as http://127.0.0.1:8000/v1; or a list of servers of the same model.
            model: Its name there; None takes the only one.
            key: Name of the environment variable with the server's key; None sends none.
            api: How it is asked: "chat" (completions) or "responses".
            temperature: 0 takes the most probable token. `journeyman eval` sets its own.
            max_turn_tokens: Sent as `max_tokens` or `max_output_tokens`; None sends none.
            seed: Other dice for every conversation; 0 leaves each to its own; None sends none.
            extra_body: More fields of each request; None as a value takes a field out.
            concurrency: Requests under way at once, at each.
            timeout: Seconds that a whole answer may take.
            patience: Seconds without any answer after which the run ends; it can be resumed.
            requests_per_minute: At most; None is no limit.
            prices: Money for a million tokens: `prompt`, `completion`, and `cached` perhaps.
            budget: What all answers may cost before the run stops: money if there are prices,
                tokens elsewhere. What is under way by then is still paid for.

        Raises:
            SettingError: A value is out of its range.
        """
        self._endpoint = reach(
            base_url, "student", StudentServerError, concurrency, timeout, patience, key, whole=True
        )
        super().__init__(plain_dialect(), side_by_side=concurrency * len(self._endpoint.urls))
        # The ranges of all three are checked there.
        dice = Sampling(temperature=temperature, seed=0 if seed is None else seed)
        if max_turn_tokens is not None:
            turn_limit(dice, max_turn_tokens)
        if api not in FORMS:
            raise SettingError(f"api={api}: expected {' or '.join(FORMS)}")
        if extra_body is not None and not isinstance(extra_body, Mapping):
            raise SettingError(f"extra_body={extra_body}: expected fields, {{name: value}}")
        self.api = api
        self._form = FORMS[api]
        self.model_name = model
        self._temperature = temperature
        self._max_tokens = max_turn_tokens
        self._seed = seed
        self.extra_body = dict(extra_body or {})
        self._pace = Pace(requests_per_minute)
        read = None if prices is None else Prices.read(prices)
        self.answers = Answers(read, budget)
        self._known: OrderedDict[tuple[Message, ...], Known] = OrderedDict()
        self._served: list[str] = []
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled has not spoken yet: what it is told again may lack a server's own ids."""
        return vars(self) | {"_known": OrderedDict()}

    def at(self, temperature: float) -> OpenAIPlayer:
        """The same student at another temperature, with one purse."""
        other = copy.copy(self)
        other._temperature, other._known = temperature, self._known
        return other

    @property
    def identity(self) -> str:
        """Tells it from other players; a served model cannot be looked into."""
        return question(self._place, self.model_name, self._fields(0))

    @property
    def _place(self) -> str:
        """Where it is asked; chat completions are asked where they always were.

        Replicas are one place, the first: whichever has answered, it is the same model's answer.
        """
        url = self._endpoint.urls[0]
        return url if self.api == "chat" else f"{url}/{self._form.path}"

    def check(self) -> None:
        """Look for the server and its model, before anything is played.

        Raises:
            StudentServerError: It cannot be reached, wants another key, is no server of models,
                serves several and nobody chose, or its replicas serve different ones.
        """
        # One that was chosen the first request shows: not all is listed everywhere.
        self.model_name, self._served = self._endpoint.find(self.model_name, START_PATIENCE)

    def keep_in(self, folder: Path) -> None:
        """Keep answers in a run's folder; what is there is not asked for again.

        Raises:
            RunFileError: The file that is there is damaged.
        """
        self.answers.keep_in(folder)

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations."""
        self._endpoint.resume()
        _ = self._endpoint.client  # made before there are threads
        return super().open(conversations)

    def give_up(self, why: BaseException) -> None:
        """Nobody waits any more; where a budget ends the run, what is under way is still kept."""
        self._endpoint.stop(now=not isinstance(why, BudgetSpentError))

    def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> Speech:
        """See `SpokenPlayer.turn`.

        Raises:
            StudentServerError: No answer can be had.
            BudgetSpentError: None may be paid for.
        """
        said = tuple(messages)
        fields = self._fields(seed)
        key = question(
            self._place,
            self.model_name,
            fields,
            seed,
            [[m.role, m.content, m.name] for m in said],
            [tool.as_function() for tool in tools],
        )
        answer = self.answers.find(key)
        if answer is None:
            answer = self._ask(said, tools, fields)
            self.answers.add(key, answer)
            if self.answers.budget is not None and None in (answer.prompt, answer.completion):
                raise StudentServerError(
                    f"{self._endpoint.url} does not say how many tokens it takes, so that "
                    f"student.budget={self.answers.budget:g} cannot be kept: leave it out"
                )
        if answer.ids or answer.items:
            turn = (*said, Message("assistant", answer.text))
            self._known[turn] = Known(answer.ids, answer.items)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return Speech(answer.text, answer.truncated, self.answers.usage(answer))

    def _tell_once(self, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            logger.warning(words)

    def _fields(self, seed: int) -> dict[str, Any]:
        """What a request says beside the conversation."""
        fields: dict[str, Any] = {"temperature": self._temperature}
        if self._max_tokens is not None:
            fields["max_tokens"] = self._max_tokens
        if self._seed is not None:
            fields["seed"] = (
                seed ^ self._seed * 0x9E3779B1
            ) & 0x7FFFFFFF  # all servers take 31 bits
        fields = self._form.fields(fields) | self.extra_body
        return {name: value for name, value in fields.items() if value is not None}

    def _ask(
        self, said: tuple[Message, ...], tools: Sequence[ToolSpec], fields: Mapping[str, Any]
    ) -> Answer:
        body = {
            "model": self.model_name,
            **self._form.body(said, tools, self.dialect, self._recall),
            **fields,
        }
        reply = self.post(body)
        if reply.status >= 400:
            raise self._refused(reply)
        return self._read(self._endpoint.content(reply), reply.url)

    def _recall(self, turns: Sequence[Message]) -> Known:
        return self._known.get(tuple(turns), Known())

    def post(self, body: Mapping[str, Any]) -> Reply:
        """What is answered to a request, once it may be sent; a refusal perhaps.

        Raises:
            StudentServerError: Nothing is answered.
            BudgetSpentError: None may be paid for.
        """
        self.answers.check_budget()
        endpoint = self._endpoint
        self._pace.wait(endpoint.stopped)
        if endpoint.stopped.is_set():
            raise StudentServerError(f"{endpoint.url} is asked no more")  # and nobody hears it
        return endpoint.send(endpoint.client, "POST", self._form.path, body, tries=TRIES)

    def _refused(self, reply: Reply) -> AgentError:
        """What a refusal is: the end of a conversation, a broken episode, or the end of the run."""
        if self.is_too_long(reply):
            return ContextFullError(f"{reply.url} takes no more ({reply.status}): {reply.said}")
        refusal = self._endpoint.refusal(reply)
        if reply.status in _ONE:
            return self._of_one(refusal)
        if reply.status == 404 and self._served and self.model_name not in self._served:
            return StudentServerError(f"{refusal}; it lists {some_of(self._served)}")
        return refusal

    def is_too_long(self, reply: Reply) -> bool:
        """True of a refusal to read a conversation to its end."""
        return reply.status in (400, 413, 422) and _TOO_LONG.search(reply.text) is not None

    def is_vllm(self) -> bool:
        """True if the server says that it is vLLM's, which tells tokens if it is asked."""
        reply = self._endpoint.send(self._endpoint.client, "GET", "models")
        found = reply.data.get("data") if isinstance(reply.data, dict) else None
        listed = found if isinstance(found, list) else []
        return any(isinstance(it, dict) and it.get("owned_by") == "vllm" for it in listed)

    def _of_one(self, error: AgentError) -> AgentError:
        """An error as that of one conversation, if others have been answered."""
        return LostTurnError(str(error)) if self.answers.count else error

    def _read(self, answered: Mapping[str, Any], url: str) -> Answer:
        try:
            answer, content = self._form.read(answered, self.dialect)
        except StrangeAnswerError as error:
            raise self._of_one(self._endpoint.strange(str(error), answered, url)) from error
        if not answer.ids and self.dialect.form(content):
            self._tell_once(
                f"{url} leaves calls in the text, where none counts: start it with "
                f"a parser of tool calls (vLLM: --enable-auto-tool-choice --tool-call-parser …)"
            )
        return answer
