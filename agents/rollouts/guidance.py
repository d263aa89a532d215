"""Two players in one conversation: a teacher takes some of the student's turns (Guided-OPD).

A dice of the conversation's own says who writes each turn. Both read all that was said, and each
reads it once: what the other one wrote is fed to it as an answer is. What the guide writes is
marked as not the student's own, so that it is context and nothing is learned from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from journeyman.agents.students.player import Conversation, Player, Stream, Turn
from journeyman.envs import Message

_WHO, _GUIDE = 2, 3
"""Beside a conversation's seed: whose turn it is, and the guide's own dice."""


class GuidedPlayer:
    """A student some of whose turns another player takes."""

    def __init__(self, student: Player, guide: Player, share: float) -> None:
        """Join them.

        Args:
            student: Its dialect is spoken.
            guide: Speaks it too.
            share: Chance of a turn to be the guide's, 0 to 1.
        """
        self.dialect = student.dialect
        self.max_context = min(student.max_context, guide.max_context)
        self.players = student, guide
        self.share = share

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations."""
        return _GuidedStream(self, conversations)


@dataclass
class _Seat:
    """Where a player sits in a conversation."""

    stream: Stream
    row: int
    """In the stream."""
    heard: int
    """Tokens of the conversation that it has read or written."""
    told: int
    """Messages of it, the same for those that read text."""


class _Talk:
    """One conversation in progress."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.tokens = list(conversation.tokens)
        self.messages = list(conversation.messages)
        self.seats: list[_Seat | None] = [None, None]
        self.coin = np.random.default_rng((conversation.seed, _WHO))

    def so_far(self, who: int) -> Conversation:
        """What a player reads that comes in now, with dice of its own.

        The guide must not throw the student's dice: what the student says next would hang on them
        twice, and would be a sample of nobody's distribution.
        """
        seed = self.conversation.seed
        if who:
            key = np.random.SeedSequence((seed, _GUIDE))
            seed = int(key.generate_state(1, np.uint64)[0])
        return replace(
            self.conversation, tokens=tuple(self.tokens), messages=tuple(self.messages), seed=seed
        )


class _GuidedStream:
    """A batch of conversations, in which each player has streams of its own."""

    def __init__(self, player: GuidedPlayer, conversations: Sequence[Conversation]) -> None:
        self._player = player
        self._count = 0
        self._talks: dict[int, _Talk] = {}
        """Those that are not over."""
        self._streams: list[Stream | None] = [None, None]
        """Each player's, once it has something to say."""
        self._rows: tuple[dict[int, int], dict[int, int]] = {}, {}
        """Row of the player's stream -> the conversation."""
        self._new: tuple[list[int], list[int]] = [], []
        """Conversations in which each player is to write its first turn."""
        for it in conversations:
            self.add(it)

    def add(self, conversation: Conversation) -> int:
        """Start another conversation; who is first writes its first turn."""
        row, self._count = self._count, self._count + 1
        self._talks[row] = _Talk(conversation)
        self._hand_over(row)
        return row

    @property
    def idle(self) -> bool:
        """True if no row has anything to do until `extend` or `add` is called."""
        return not any(self._new) and all(it is None or it.idle for it in self._streams)

    def _hand_over(self, row: int) -> None:
        """Let who is next write the next turn."""
        talk = self._talks[row]
        who = int(talk.coin.random() < self._player.share)
        seat = talk.seats[who]
        if seat is None:
            self._new[who].append(row)
            return
        said, messages = talk.tokens[seat.heard :], talk.messages[seat.told :]
        seat.heard, seat.told = len(talk.tokens), len(talk.messages)
        seat.stream.extend(seat.row, said, messages)

    def advance(self) -> list[Turn]:
        """Work a little; who comes in new does so beside those that write already."""
        turns = []
        for who, rows in enumerate(self._new):
            if rows:
                self._seat(who, rows)
                rows.clear()
        for who, stream in enumerate(self._streams):
            if stream is not None and not stream.idle:
                turns += [self._noted(who, turn) for turn in stream.advance()]
        return turns

    def _seat(self, who: int, rows: Sequence[int]) -> None:
        """Let a player write its first turn in these conversations."""
        talks = [self._talks[row] for row in rows]
        told = [talk.so_far(who) for talk in talks]
        stream = self._streams[who]
        if stream is None:
            stream = self._streams[who] = self._player.players[who].open(told)
            places = list(range(len(told)))
        else:
            places = [stream.add(it) for it in told]
        for row, place, talk in zip(rows, places, talks, strict=True):
            talk.seats[who] = _Seat(stream, place, len(talk.tokens), len(talk.messages))
            self._rows[who][place] = row

    def _noted(self, who: int, turn: Turn) -> Turn:
        """A turn as one of this stream's."""
        row = self._rows[who][turn.row]
        talk = self._talks[row]
        seat = talk.seats[who]
        assert seat is not None
        talk.tokens += turn.tokens
        if turn.failure is None:
            text = self._player.dialect.decode(turn.tokens[:-1])
            talk.messages.append(Message("assistant", text))
        seat.heard, seat.told = len(talk.tokens), len(talk.messages)
        if who:
            return replace(turn, row=row, logprobs=(0.0,) * len(turn.tokens), own=False)
        return replace(turn, row=row)

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        """Take the environment's answer in; who is next writes the next turn."""
        talk = self._talks[row]
        talk.tokens += tokens
        talk.messages += messages
        self._hand_over(row)

    def finish(self, row: int) -> None:
        """The row's episode is over."""
        for who, seat in enumerate(self._talks.pop(row).seats):
            if seat is not None:
                seat.stream.finish(seat.row)
                del self._rows[who][seat.row]
        for rows in self._new:
            if row in rows:
                rows.remove(row)
