"""Players that speak text: an API, a program, anything that answers messages with a turn.

They know no tokens: what they say is counted in the tokens of a dialect, and its log-probabilities
are unknown.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from journeyman.agents.errors import ContextFullError, LostTurnError
from journeyman.agents.students.dialect import Dialect, Hermes
from journeyman.agents.students.player import Conversation, Stream, Turn
from journeyman.envs import Message
from journeyman.envs.types import Usage
from journeyman.tools import ToolSpec


@dataclass(frozen=True, slots=True)
class Speech:
    """A turn of which more is known than its text."""

    text: str
    truncated: bool = False
    """It hit its token limit."""
    usage: Usage | None = None
    """What it cost."""


class SpokenPlayer(ABC):
    """A player that is asked for one turn at a time; `turn` is all that a subclass writes."""

    def __init__(self, dialect: Dialect, max_context: int = 1 << 20, side_by_side: int = 8) -> None:
        """Take turns.

        Args:
            dialect: Writes its calls down, and counts its tokens.
            max_context: Longest token stream.
            side_by_side: Conversations that are asked for a turn at once, a thread each.
        """
        self.dialect = dialect
        self.max_context = max_context
        self.side_by_side = side_by_side

    @abstractmethod
    def turn(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int
    ) -> str | Speech:
        """The next turn of one conversation.

        Args:
            messages: All that was said, its own turns as role "assistant".
            tools: What may be called.
            seed: Of this turn's dice.

        Returns:
            The turn's text, calls in the form of `dialect`. Where the prompts of the dialect begin
            reasoning, the text goes on from there; `Dialect.spoken` ends it before what is said.

        Raises:
            LostTurnError: There is none in this conversation, for reasons that are not the
                player's: its episode is broken, the others go on.
            ContextFullError: It has become too long: the episode ends.
        """

    def give_up(self, why: BaseException) -> None:  # noqa: B027 - few have anything to do then
        """Nobody waits for its turns any more, since one was not to be had or a person ended it."""

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations."""
        stream = _SpokenStream(self)
        for it in conversations:
            stream.add(it)
        return stream


class _Spoken(NamedTuple):
    """A conversation, and all that was said in it."""

    conversation: Conversation
    messages: list[Message]


class _SpokenStream:
    def __init__(self, player: SpokenPlayer) -> None:
        self._player = player
        self._pool: ThreadPoolExecutor | None = None
        """None while no conversation is open."""
        self._asked: dict[Future[str | Speech], int] = {}
        self._count = 0
        self._open: dict[int, _Spoken] = {}

    def add(self, conversation: Conversation) -> int:
        row, self._count = self._count, self._count + 1
        self._open[row] = _Spoken(conversation, list(conversation.messages))
        self._ask(row)
        return row

    @property
    def idle(self) -> bool:
        return not self._asked

    def _ask(self, row: int) -> None:
        it, said = self._open[row].conversation, tuple(self._open[row].messages)
        seed = int(np.random.SeedSequence((it.seed, len(said))).generate_state(1)[0])
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._player.side_by_side, "journeyman-turn")
        self._asked[self._pool.submit(self._player.turn, said, it.env.tools, seed)] = row

    def advance(self) -> list[Turn]:
        try:
            done, _ = wait(self._asked, return_when=FIRST_COMPLETED)
            rows = {self._asked.pop(future): future for future in done}
            return [self._turn(row, rows[row]) for row in sorted(self._open.keys() & rows.keys())]
        except BaseException as error:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)  # nobody waits for them
            self._player.give_up(error)
            raise

    def _turn(self, row: int, future: Future[str | Speech]) -> Turn:
        try:
            said = future.result()
        except (LostTurnError, ContextFullError) as error:
            return Turn(row, (), (), failure=error)
        speech = Speech(said) if isinstance(said, str) else said
        self._open[row].messages.append(Message("assistant", speech.text))
        tokens = tuple(self._player.dialect.turn(speech.text))
        return Turn(row, tokens, (0.0,) * len(tokens), speech.truncated, speech.usage)

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        self._open[row].messages.extend(messages)
        self._ask(row)

    def finish(self, row: int) -> None:
        self._open.pop(row, None)
        if not self._open and self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


_CHATML = """\
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}
{%- if loop.first and tools %}
{%- for t in tools %}{{- '\\n' + (t | tojson) }}{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@functools.cache
def plain_dialect() -> Dialect:
    """For players that bring no tokenizer: ChatML, Hermes calls, and a token a byte of text."""
    alphabet = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<|im_start|>"],
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHATML
    return Hermes(fast)
