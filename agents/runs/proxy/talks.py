"""Which conversation a request belongs to, and what becomes of it on disk.

A conversation is told from others by what was said in it: a request that tells all of it again, and
something new, goes on with it. One whose history is told otherwise is another conversation. A name
that the client gives (`journeyman-episode`) holds together what it calls so, and keeps apart what
would be alike.
"""

from __future__ import annotations

import asyncio
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from journeyman.agents.evaluation.records import UNJUDGED, VISITED, EpisodeFile, Played, kind_of
from journeyman.agents.rollouts.dialogues import Utterance
from journeyman.agents.rollouts.visits import Verdict, Visit
from journeyman.agents.runs.folder import explaining_full_disk
from journeyman.agents.runs.proxy.hosts import Written
from journeyman.agents.runs.proxy.wire import NAMES, ApiError, ChatRequest, Key, Label, key_of
from journeyman.envs import Message, env_class
from journeyman.envs.errors import EnvError

JUDGED, ASIDE = "agent", "agent, aside"
"""Rows of the table: episodes with a verdict; those that ended without one, whose success is not
known and counted as none; and further token streams of a judged episode, which have its verdict: a
history that the program told anew in other words, or conversations under one name."""


class Talk:
    """A conversation under way."""

    def __init__(self, label: Label, name: str, visit: Visit) -> None:
        """Nothing was answered yet."""
        self.label = label
        self.name = name
        self.visit = visit
        self.lock = asyncio.Lock()
        """Held while a turn is written."""
        self.keys: tuple[Key, ...] = ()
        """Of all that was said, the last answer included."""
        self.ids: tuple[str, ...] = ()
        """Of the calls of the last answer."""
        self.place = 0
        """In the order in which turns were written."""
        self.heard = 0.0
        """When a client last asked for a turn."""

    def goes_on_in(self, request: ChatRequest) -> bool:
        """True if a request tells all of it, and something new that the client has to say."""
        known = len(self.keys)
        new = request.messages[known:]
        return (
            request.keys[:known] == self.keys
            and bool(new)
            and request.tools == self.visit.tools
            and (known == 0 or not any(isinstance(it, Utterance) for it in new))
        )

    def new_in(self, request: ChatRequest) -> tuple[list[Message], list[str]]:
        """What a request says beyond it, and of that what answers each call of the last turn.

        Raises:
            ApiError: A call has no answer.
        """
        known = len(self.keys)
        if known == 0:
            return [], []
        new = [it for it in request.messages[known:] if isinstance(it, Message)]
        told = {
            key[2]: key[1]
            for key in request.keys[known:]
            if key[0] == "tool" and key[2] is not None
        }
        missing = [it for it in self.ids if it not in told]
        if missing:
            raise ApiError(
                400,
                f"messages: the call {missing[0]} has no answer: expected a message of the role "
                f"tool with its tool_call_id",
                param="messages",
            )
        return new, [told[it] for it in self.ids]


class Talks:
    """All conversations under way; each ends as an episode on disk."""

    def __init__(self, run: Path, weights: str, seed: int, clock: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            run: The run's folder; what is there stays, and attempts are counted on.
            weights: Tells who plays from others.
            seed: Of the dice of conversations that bring none.
            clock: Seconds.
        """
        self._file = EpisodeFile(run)
        self._run = run
        self._weights = weights
        self._seed = seed
        self._clock = clock
        self._open: list[Talk] = []
        self._written = 0
        lines = self._file.lines()
        self._attempts = Counter((it["row"], it["env_id"], it["task_id"]) for it in lines)
        self._before = self._attempts.total()
        self._begun: Counter[str] = Counter()

    def find(self, request: ChatRequest) -> Talk | None:
        """The conversation that a request goes on with; of several the longest, then the oldest."""
        label = request.label
        fits = [
            talk
            for talk in self._open
            if (label.episode == talk.label.episode or label.episode == talk.name)
            and (label.env_id is None or label == talk.label)
            and talk.goes_on_in(request)
        ]
        return max(fits, key=lambda it: len(it.keys), default=None)

    def begin(self, request: ChatRequest, opening: Iterable[Message]) -> Talk:
        """A conversation that is new; it is not found until something was answered in it.

        Raises:
            ApiError: It names an environment or a task that is not there.
        """
        label = self._label(request.label)
        name = label.episode or uuid.uuid4().hex[:12]
        seed = request.body.get("seed")
        if type(seed) is not int or seed < 0:
            # By what is played and how often, not by random names: the same client has the same
            # dice again.
            what = label.episode or f"{label.env_id} {label.task_id}"
            place = (self._seed, self._before, zlib.crc32(what.encode()), self._begun[what])
            seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
            self._begun[what] += 1
        return Talk(label, name, Visit(tuple(opening), request.tools, seed))

    def _label(self, label: Label) -> Label:
        """What is played; a name that was given before has it from there."""
        known = [it.label for it in self._open if it.name == label.episode and it.label.env_id]
        if known and label.env_id is None:
            return known[0]
        if label.env_id is None or label.task_id is None:
            return label
        try:
            env_class(label.env_id).load_task(label.task_id)
        except (EnvError, KeyError, TypeError, ValueError) as error:
            raise ApiError(400, f"{NAMES[1]}, {NAMES[2]}: {error}") from error
        return label

    def add(
        self,
        talk: Talk,
        request: ChatRequest,
        written: Written,
        new: list[Message],
        results: list[str],
        opening: Callable[[], tuple[Message, ...]],
    ) -> None:
        """Write a turn down that the client gets.

        Args:
            talk: The conversation.
            request: What was asked.
            written: What is answered.
            new: See `Talk.new_in`.
            results: See `Talk.new_in`.
            opening: Tells all that was asked as text, should its tokens not go on from what is
                here: another stream begins then.
        """
        if talk.visit.steps and not talk.visit.goes_on_as(written.prompt):
            visit = Visit(opening(), request.tools, talk.visit.seed)
            talk = Talk(talk.label, talk.name, visit)
            new, results = [], []
        talk.visit.add(written.prompt, written.turn, written.step, new, results)
        message = written.answer["choices"][0]["message"]
        talk.keys = (*request.keys, key_of(message))
        talk.ids = written.ids
        self._written += 1
        talk.place = self._written
        talk.heard = self._clock()
        if talk not in self._open:
            self._open.append(talk)

    def busy(self, name: str) -> Talk | None:
        """One of that name in which a turn is being written; the turn would open it again."""
        return next((it for it in self._open if it.name == name and it.lock.locked()), None)

    def judge(self, name: str, verdict: Verdict) -> dict[str, Any]:
        """End what goes by a name.

        Returns:
            What was written down.

        Raises:
            ApiError: Nothing does.
        """
        found = [talk for talk in self._open if talk.name == name]
        if not found:
            raise ApiError(404, f"no episode {name[:80]!r} is under way", code="episode_not_found")
        last = max(found, key=lambda it: it.place)
        played = [self._played(it, JUDGED if it is last else ASIDE, verdict) for it in found]
        self._end(found, played)
        own = played[found.index(last)]
        return {
            "id": name,
            "object": "journeyman.episode",
            "env_id": own.episode.env_id,
            "task_id": own.episode.task_id,
            "attempt": own.attempt,
            "success": own.episode.success,
            "reward": own.episode.reward,
            "turns": len(own.episode.steps),
            "tokens": len(own.episode.tokens),
            "streams": len(found),
        }

    def end_idle(self, seconds: float) -> int:
        """End what nobody has asked in for so long, unjudged; returns how many."""
        now = self._clock()
        idle = [it for it in self._open if not it.lock.locked() and now - it.heard >= seconds]
        self._end(idle, [self._played(talk, UNJUDGED, None) for talk in idle])
        return len(idle)

    def end_all(self) -> None:
        """End everything, unjudged."""
        self._end(self._open, [self._played(talk, UNJUDGED, None) for talk in self._open])

    def _played(self, talk: Talk, row: str, verdict: Verdict | None) -> Played:
        env_id, task_id = talk.label.env_id or VISITED, talk.label.task_id or talk.name
        episode = talk.visit.episode(env_id, task_id, verdict)
        attempt = self._attempts[row, env_id, task_id]
        self._attempts[row, env_id, task_id] += 1
        return Played(row, episode, kind_of(episode), attempt, weights=self._weights)

    def _end(self, talks: list[Talk], played: list[Played]) -> None:
        if not talks:
            return
        with explaining_full_disk(self._run):
            self._file.append(played)
        self._open = [it for it in self._open if it not in talks]


def read_verdict(body: Mapping[str, Any]) -> Verdict:
    """What a client says of an episode: `success`, `reward` perhaps; or `error`.

    Raises:
        ApiError: It says something else.
    """
    error, success = body.get("error"), body.get("success")
    if strange := set(body) - {"success", "reward", "error"}:
        raise ApiError(400, f"no field {min(strange)[:80]!r}: expected success, reward or error")
    if error is not None:
        if not isinstance(error, str) or not error:
            raise ApiError(400, "error: expected a text", param="error")
        return Verdict(False, 0.0, error[:1000])
    if not isinstance(success, bool):
        raise ApiError(400, "success: expected true or false", param="success")
    reward = body.get("reward", float(success))
    if type(reward) not in (int, float) or not abs(reward) < 1e18:
        raise ApiError(400, "reward: expected a number", param="reward")
    return Verdict(success, float(reward))
