"""Credit by a judge: a chat model that grades each step of an episode against a rubric.

It stands beside any teacher, or none: the teacher says what to write, the judge which steps were
good. It lives behind an OpenAI-compatible server of chat completions; what it has answered is kept
on disk (`grades.py`), and what is no answer is asked again, then refused: no step is graded by us.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import httpx
import torch

from journeyman.agents.credit.grades import GradeBook
from journeyman.agents.credit.interface import Credit, Experience, TokenCredit, spread
from journeyman.agents.credit.rubric import Rubric, UngradedError, retold
from journeyman.agents.errors import JudgeServerError, SettingError
from journeyman.agents.networks.replicas import reach
from journeyman.agents.networks.replies import Reply, shown, some_of
from journeyman.agents.students.answers import question
from journeyman.agents.students.chat_api import count
from journeyman.agents.students.openai import START_PATIENCE, TRIES
from journeyman.agents.students.player import Trainable
from journeyman.agents.students.wording import text_of
from journeyman.envs import Episode, Message, Step, StopReason

logger = logging.getLogger(__name__)

_FORM_REFUSED = (400, 404, 422, 500, 501)
"""Statuses by which servers refuse a schema of answers, among other things."""
_COSTS = ("requests", "repeated", "prompt_tokens", "completion_tokens", "cached")
"""Figures of what a rollout's grades cost: `repeated` are answers that held no grades, `cached`
those that were known or are of equal episodes."""


@dataclass(frozen=True)
class _Question:
    """One vote on one episode."""

    key: str
    place: str
    """Of whom it is, for people."""
    prompt: str
    steps: int
    vote: int


class Judge(Credit):
    """Steps that a chat model grades above the mean are reinforced, those below it held back.

    g_k is the mean of a step's votes, brought to 0 … 1 (the lowest to the highest grade), and m the
    mean of g over all steps of the environment in the batch that the student chose: the baseline.
    The advantage of step k is scale (g_k - m), the weight of its divergence weight (1 + focus (m -
    g_k)): with `focus` the teacher counts more where the student did badly. Where all grades are
    alike this is `Uniform`, exactly. After d-RLAIF (Lee et al. 2023, arXiv:2309.00267), in which a
    language model's grade of the whole answer is the reward; here each step has one.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        rubric: str | None = None,
        lowest: int = 0,
        highest: int = 10,
        votes: int = 1,
        temperature: float | None = 0.0,
        max_tokens: int | None = 4096,
        tries: int = 3,
        scale: float = 1.0,
        weight: float = 1.0,
        focus: float = 0.0,
        cache: str | None = None,
        key: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        concurrency: int = 8,
        timeout: float = 600.0,
        patience: float = 3600.0,
    ) -> None:
        """Remember how to reach it; nothing is sent yet.

        Args:
            base_url: Such as http://127.0.0.1:8000/v1; or a list of servers of the same model.
            model: Its name there; None takes the only one.
            rubric: See `Rubric.of`.
            lowest: The worst grade.
            highest: The best grade.
            votes: Answers about each episode, with other dice.
            temperature: Of the judge; None sends none.
            max_tokens: Of an answer, reasoning included; None sends none.
            tries: Answers that may hold no grades before the run ends.
            scale: Of advantages.
            weight: Of the divergence; 0 is no teacher at all.
            focus: 0 … 1.
            cache: File of all answers; None keeps them in this process.
            key: Name of the environment variable with the server's key; None sends none.
            extra_body: More fields of each request; None as a value takes a field out.
            concurrency: Requests under way at once, at each.
            timeout: Seconds that a whole answer may take.
            patience: Seconds without any answer after which the run ends; it can be resumed.

        Raises:
            SettingError: A value is out of its range, or the rubric cannot be read.
        """
        self._endpoint = reach(
            base_url, "credit", JudgeServerError, concurrency, timeout, patience, key, whole=True
        )
        for name, text in (("model", model), ("rubric", rubric), ("cache", cache)):
            if text is not None and not isinstance(text, str):
                raise SettingError(f"{name}={text}: expected text, or null")
        self._rubric = Rubric.of(rubric, lowest, highest)
        for name, value in (("votes", votes), ("tries", tries), ("max_tokens", max_tokens)):
            if value is None and name == "max_tokens":
                continue
            if type(value) is not int or value < 1:
                raise SettingError(f"{name}={value}: expected a whole number, 1 or more")
        if temperature is not None and not 0 <= temperature < float("inf"):
            raise SettingError(f"temperature={temperature}: expected a number, 0 or more, or null")
        if votes > 1 and temperature == 0:
            raise SettingError(
                f"votes={votes} at temperature=0: all would be alike; set temperature (say 0.7), "
                f"or votes=1"
            )
        for name, factor in (("scale", scale), ("weight", weight)):
            if not isfinite(factor):
                raise SettingError(f"{name}={factor}: expected a finite number")
        if not 0 <= focus <= 1:
            raise SettingError(f"focus={focus}: expected 0 to 1")
        if extra_body is not None and not isinstance(extra_body, Mapping):
            raise SettingError(f"extra_body={extra_body}: expected fields, {{name: value}}")
        self.model_name = model
        self._votes = votes
        self._fields = {"temperature": temperature, "max_tokens": max_tokens}
        self._extra = dict(extra_body or {})
        self._tries = tries
        self._scale, self._weight, self._focus = scale, weight, focus
        self._book = GradeBook(None if cache is None else Path(cache))
        self._formed = True
        """The server takes a schema of its answers."""

    def check(self, student: Trainable) -> None:
        """Look for the server and its model, and have it grade an episode that is at hand.

        Raises:
            JudgeServerError: It cannot be reached, wants another key, serves several models and
                nobody chose, or gives no grades.
            RunFileError: The file of its answers is something else.
        """
        self.model_name, served = self._endpoint.find(self.model_name, START_PATIENCE)
        try:
            self._graded([_TRIAL], Counter())
        except JudgeServerError as error:
            if served and self.model_name not in served:
                raise JudgeServerError(f"{error}; it lists {some_of(served)}") from error
            raise

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Advantages and weights from grades; episodes that broke are not judged.

        Raises:
            JudgeServerError: The server is gone for good, or gives no grades.
        """
        episodes = experience.episodes
        places = [i for i, e in enumerate(episodes) if e.steps and not _broke(e)]
        spent: Counter[str] = Counter()
        found = self._graded([episodes[i] for i in places], spent)
        votes = dict(zip(places, found, strict=True))
        chosen: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        own = [(episodes[i].env_id, _own(episodes[i], it)) for i, it in votes.items()]
        for env_id, of_steps in experience.job.share(own):
            chosen[env_id] += of_steps
        experience.figures.update(self._figures([it for own in chosen.values() for it in own]))
        experience.figures.update({f"judge/{name}": float(n) for name, n in spent.items()})
        return [
            self._credit(e, votes.get(i, [(0,)] * len(e.steps)), chosen[e.env_id])
            for i, e in enumerate(episodes)
        ]

    def _credit(
        self, episode: Episode, votes: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]]
    ) -> TokenCredit:
        """One episode's, by its steps' votes and those of all steps it is compared with."""
        if not others or _broke(episode):
            steps = len(episode.steps)
            return spread(episode, torch.full((steps,), self._weight), torch.zeros(steps))
        # In whole numbers as far as they go: what is alike is then no better by rounding either.
        total = sum(map(sum, others))
        whole = len(others) * self._votes * (self._rubric.highest - self._rubric.lowest)
        above = [(len(others) * sum(it) - total) / whole for it in votes]
        better = torch.tensor(above, dtype=torch.float64)
        credit = spread(episode, self._weight * (1 - self._focus * better), self._scale * better)
        return replace(credit, grades=tuple(fmean(it) for it in votes))

    def _figures(self, votes: Sequence[tuple[int, ...]]) -> dict[str, float]:
        """Of all steps that the student chose; in grades."""
        if not votes:
            return {}
        means = [fmean(it) for it in votes]
        figures = {"judge/grade": fmean(means), "judge/spread": pstdev(means)}
        if self._votes > 1:
            figures["judge/disagreement"] = fmean(map(pstdev, votes))
        return figures

    def _graded(
        self, episodes: Sequence[Episode], spent: Counter[str]
    ) -> list[list[tuple[int, ...]]]:
        """Of each episode, for each of its steps all votes; what is known is not asked again.

        Args:
            episodes: With steps.
            spent: Requests, tokens and the like are added to it.
        """
        asked = [[self._question(e, vote) for vote in range(self._votes)] for e in episodes]
        known: dict[str, str] = {}
        waiting: dict[str, _Question] = {}
        for it in (it for votes in asked for it in votes):
            answer = self._book.find(it.key)
            if answer is None:
                waiting[it.key] = it  # once, where episodes are alike
            else:
                known[it.key] = answer
        spent.update(dict.fromkeys(_COSTS, 0))
        spent["cached"] += sum(map(len, asked)) - len(waiting)
        for key, answer, cost in self._endpoint.side_by_side(self._ask, list(waiting.values())):
            known[key] = answer
            spent.update(cost)
        if spent.pop("untold", 0):  # a part of the tokens would pass for all of them
            del spent["prompt_tokens"], spent["completion_tokens"]
        read = ([self._read(it, known[it.key]) for it in votes] for votes in asked)
        return [list(zip(*votes, strict=True)) for votes in read]

    def _question(self, episode: Episode, vote: int) -> _Question:
        prompt = retold(episode)
        told = [self.model_name, self._rubric.instructions, self._fields, self._extra]
        key = question(*told, prompt, vote)
        place = f"{episode.env_id} {episode.task_id}"
        return _Question(key, place, prompt, len(episode.steps), vote)

    def _read(self, it: _Question, answer: str) -> tuple[int, ...]:
        """What was answered, and written down because it could be read."""
        try:
            return self._rubric.read(answer, it.steps)
        except UngradedError as error:
            raise self._book.damaged(it.key) from error

    def _ask(self, client: httpx.Client, it: _Question) -> tuple[str, str, Counter[str]]:
        """Key, answer and cost, once there are grades."""
        cost: Counter[str] = Counter()
        remark = answer = wrong = ""
        for _ in range(self._tries):
            answer, cut = self._complete(client, it, it.prompt + remark, cost)
            try:
                if cut:
                    raise UngradedError("it was cut off: raise credit.max_tokens")
                self._rubric.read(answer, it.steps)
            except UngradedError as error:
                wrong = str(error)
                remark = f"\n\nYour last answer was of no use: {wrong}."
                cost["repeated"] += 1
            else:
                return it.key, self._book.add(it.key, answer), cost
        raise JudgeServerError(
            f"{self.model_name} at {self._endpoint.url} gives no grades for {it.place}, asked "
            f"{self._tries} times: {wrong}; it says {shown(answer)!r}; choose another "
            f"credit.model=…, or a plainer credit.rubric=…"
        )

    def _complete(
        self, client: httpx.Client, it: _Question, prompt: str, cost: Counter[str]
    ) -> tuple[str, bool]:
        """What the judge writes, and whether it was cut off."""
        body = {
            "model": self.model_name,
            "messages": [
                {"role": "system", "content": self._rubric.instructions},
                {"role": "user", "content": prompt},
            ],
            **self._fields,
            **({"seed": it.vote} if self._votes > 1 else {}),
            **self._extra,
        }
        body = {name: value for name, value in body.items() if value is not None}
        reply = self._send(client, body, self._rubric.schema(it.steps))
        answered = self._endpoint.content(reply)
        cost["requests"] += 1
        used = answered.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            tokens = count(used.get(name)) if isinstance(used, dict) else None
            cost[name if tokens is not None else "untold"] += 1 if tokens is None else tokens
        choices = answered.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise self._endpoint.strange("no message", answered, reply.url)
        return text_of(message.get("content")), choice.get("finish_reason") == "length"

    def _send(
        self, client: httpx.Client, body: Mapping[str, Any], schema: Mapping[str, Any]
    ) -> Reply:
        """An answer, held to its schema by a server that can do so.

        Raises:
            JudgeServerError: It refused.
        """
        form = {"name": "grades", "strict": True, "schema": schema}
        told = {"response_format": {"type": "json_schema", "json_schema": form}}
        endpoint, formed = self._endpoint, self._formed
        address = (client, "POST", "chat/completions")
        reply = endpoint.send(*address, {**told, **body} if formed else body, tries=TRIES)
        if formed and reply.status in _FORM_REFUSED:
            refused, reply = reply, endpoint.send(*address, body, tries=TRIES)
            if reply.status < 400 and self._formed:
                self._formed = False
                logger.warning(
                    f"{reply.url} takes no schema of answers ({refused.status}: {refused.said}):"
                    f" they are asked for in words alone"
                )
        if reply.status >= 400:
            raise endpoint.refusal(reply)
        return reply


def _broke(episode: Episode) -> bool:
    return episode.stop is StopReason.INFRA_ERROR


def _own(episode: Episode, of_steps: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Of the steps that the student chose: those before a fork are in another row."""
    return [
        it
        for step, it in zip(episode.steps, of_steps, strict=True)
        if any(episode.mask[slice(*step.span)])
    ]


_TRIAL = Episode(
    env_id="the",
    task_id="trial episode",
    tokens=(),
    logprobs=(),
    mask=(),
    steps=(
        Step(
            (0, 0),
            '{"name": "balance", "arguments": {"account": "A1"}}',
            reply=(Message("tool", '{"balance": 12}', "balance"),),
        ),
        Step((0, 0), "Answer: 12"),
    ),
    stop=StopReason.ANSWERED,
    opening=(Message("user", "What is the balance of account A1?"),),
)
"""What a judge must be able to grade before anything is played."""
