"""A teacher on a server: it is far larger than the student, and elsewhere.

The student's rows go out as token ids; the log-probability of each chosen token comes back, and the
most probable ones where the loss asks for them. Before anything is played the server must show that
it would not teach nonsense (`check`), and each of several that it says what the others say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import SettingError, TeacherServerError, VocabularyMismatchError
from journeyman.agents.students.player import Trainable
from journeyman.agents.teachers.completions import CompletionsServer, Reading
from journeyman.agents.teachers.signal import Detail, Signal, Teacher, TopK
from journeyman.envs import Episode

START_PATIENCE = 10.0
"""Seconds that a server may be silent before a run begins: most often its address is wrong."""
STEADY = 0.05
"""Nats by which two readings of one token may differ on average: batches are summed in any order,
in bfloat16 perhaps."""
SPARE = 4
"""Tokens that are asked for beyond those that are used: some may be padding of its matrix."""
PROBED = 64
"""Tokens of the vocabulary that are looked at, spread over it; and added ones as many."""
ROUNDING = 1e-7
"""The least mass that is left to all other tokens: what a server's float32 cannot tell from none.
With none at all the student would be pushed off them without measure."""


class ServedTeacher(Teacher):
    """Asks a completions server that gives `prompt_logprobs`, such as vLLM's."""

    gives = Detail.TOP_K

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        top_k: int = 16,
        concurrency: int = 16,
        timeout: float = 120.0,
        patience: float = 3600.0,
        key: str | None = None,
    ) -> None:
        """Remember where it is; see `CompletionsServer` for the other arguments.

        Args:
            base_url: Such as http://127.0.0.1:8000/v1; or a list of servers of the same model.
            model: Its name there; None takes the only one.
            top_k: Tokens that it names where its most probable ones are asked for; the server's own
                limit (`--max-logprobs`) must be 4 higher.
            concurrency: Rows under way at once, at each.
            timeout: Seconds of silence that a row may bear.
            patience: Seconds without any answer after which the run ends.
            key: Name of the environment variable with the server's key.

        Raises:
            SettingError: A value is out of its range.
        """
        if type(top_k) is not int or top_k < 1:
            raise SettingError(f"top_k={top_k}: expected a whole number, 1 or more")
        self._server = CompletionsServer(base_url, model, concurrency, timeout, patience, key)
        self._top_k = top_k
        self._width: int | None = None
        """Tokens that the student tells apart, once it is known."""
        self._told: Reading | None = None
        """What was said first of the row that all replicas are asked about."""

    def check(self, student: Trainable) -> None:
        """See `Teacher.check`: the server is asked a few rows whose answers are known.

        Raises:
            TeacherServerError: It cannot be reached, does not serve the model, takes shorter rows
                than the student writes, or its answers would teach nonsense.
            VocabularyMismatchError: A token id means another thing to it.
        """
        # Beyond the student's tokens is padding, where a teacher may have tokens of its own.
        rows = student.model.get_output_embeddings().weight.shape[0]
        tokenizer = student.dialect.tokenizer
        self._width = min(rows, 1 + max(tokenizer.get_vocab().values()))
        self._told = None
        turn = student.sampling.max_tokens
        longest, probe = student.max_context + turn, _probe(tokenizer, student.max_context)

        def check(one: CompletionsServer) -> None:
            self._choose(one, longest, turn)
            self._check_answers(one, probe, tokenizer)
            self._check_place(one, probe)

        self._server.each(check, START_PATIENCE)
        self._server.figures()  # of no rollout

    def _choose(self, one: CompletionsServer, longest: int, turn: int) -> None:
        """See that the model is there and reads rows as long as the student's.

        Args:
            one: Is asked.
            longest: Tokens of a row, a turn of which has up to `turn`.
            turn: See `longest`.
        """
        served, url = one.models(), one.url
        names = ", ".join(served) or "nothing"
        if one.model is None and len(served) != 1:
            raise TeacherServerError(f"{url} serves {names}: choose one by teacher.model=…")
        one.model = next(iter(served)) if one.model is None else one.model
        self._server.model = one.model
        if one.model not in served:
            also = "" if self._told is None else f", and {self._told.url} serves it"
            raise TeacherServerError(f"{url} does not serve {one.model!r}; it serves {names}{also}")
        takes = served[one.model]
        if takes is not None and takes <= longest:  # it must write at least one token more
            raise TeacherServerError(
                f"{url} takes rows of fewer than {takes} tokens, and the student's have up to "
                f"{longest}: start it with --max-model-len {longest + 1}, or set "
                f"student.max_context={max(1, takes - 1 - turn)}"
            )

    def _check_answers(
        self, one: CompletionsServer, probe: list[int], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        url = one.url
        first, second = one.read([probe, probe], self._asked)
        apart = _apart(first, second, probe)
        _check_texts(url, first.texts, tokenizer)
        for reading in (first, second):
            self._top(reading, range(1, len(probe)))
        if apart > STEADY:
            raise TeacherServerError(
                f"{url} finds the tokens of one row {apart:.2f} nats apart from one reading to the "
                f"next, more than {STEADY}: what it says cannot be learned from"
            )
        told = self._told = self._told or first
        if (apart := _apart(told, first, probe)) > STEADY:
            raise TeacherServerError(
                f"{told.url} and {url} find the tokens of one row {apart:.2f} nats apart, more "
                f"than {STEADY}: all of teacher.base_url must serve one model, in one type"
            )

    def _check_place(self, one: CompletionsServer, probe: list[int]) -> None:
        """What it would say next must be what it finds where that stands in the row."""
        told = one.next_token(probe)
        if told is None:
            return  # a server that gives no ids of what it writes
        token, expected = told
        (reading,) = one.read([[*probe, token]], self._asked)
        found = reading.logprobs[-1].get(token, -math.inf)
        if not abs(found - expected) <= 2 * STEADY:  # nor is it NaN
            raise TeacherServerError(
                f"{one.url} would write token {token} with log-probability "
                f"{expected:.3f}, and gives it {found:.3f} where it stands in a row: its "
                f"prompt_logprobs are of other places, or of another temperature than 1"
            )

    @property
    def _asked(self) -> int:
        """Tokens to ask for: some may be padding of the teacher's vocabulary."""
        asked = self._top_k + SPARE
        return asked if self._width is None else min(asked, self._width)

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        """See `Teacher.annotate`; waits where the server is down.

        Raises:
            TeacherServerError: It refused a row, or was silent for longer than `patience`.
        """
        top = detail is Detail.TOP_K
        readings = self._server.read([row.tokens for row in rows], self._asked if top else 0)
        return [self._signal(row, it, top) for row, it in zip(rows, readings, strict=True)]

    def figures(self) -> dict[str, float]:
        """See `Teacher.figures`: what was asked, and how long answers took, by replica too."""
        return self._server.figures()

    def _signal(self, row: Episode, reading: Reading, top: bool) -> Signal:
        # Nothing precedes the first token.
        places = [i for i, chosen in enumerate(row.mask) if chosen and i]
        told = torch.zeros(len(row.tokens))
        for i in places:
            told[i] = _own(reading, row.tokens, i)
        return Signal(told, self._top(reading, places) if top else None)

    def _top(self, reading: Reading, places: Sequence[int]) -> TopK:
        """The most probable tokens at some places, of those that the student has too."""
        width = math.inf if self._width is None else self._width
        k = int(min(self._top_k, width))
        ids, logprobs = torch.zeros(len(places), k, dtype=torch.long), torch.zeros(len(places), k)
        for n, i in enumerate(places):
            known = [pair for pair in reading.logprobs[i].items() if pair[0] < width]
            # Stable by id, since the order of a dictionary is the server's.
            best = sorted(known, key=lambda pair: (-pair[1], pair[0]))[:k]
            if len(best) < k:
                raise TeacherServerError(
                    f"{reading.url} names {len(best)} tokens of the student's at a place, and "
                    f"teacher.top_k={k} asks for more: start it with --max-logprobs {k + SPARE}, "
                    f"or lower teacher.top_k"
                )
            ids[n] = torch.tensor([token for token, _ in best])
            logprobs[n] = torch.tensor([logprob for _, logprob in best])
        rest = 1 - logprobs.double().exp().sum(-1)
        if len(rest) and rest.min() < -STEADY:
            raise TeacherServerError(
                f"{reading.url} gives {k} tokens {1 - float(rest.min()):.3g} of all "
                f"probability, more than 1: these are no log-probabilities at temperature 1 "
                f"(vLLM: start it with --logprobs-mode raw_logprobs)"
            )
        tail = rest.clamp(min=ROUNDING).log().float()
        return TopK(ids, logprobs, tail.fill_(-math.inf) if k == width else tail)


def _probe(tokenizer: PreTrainedTokenizerBase, longest: int) -> list[int]:
    """Ids spread over the vocabulary, and those of added tokens: families differ in them most."""
    size = len(tokenizer)
    spread = range(0, size, max(1, size // PROBED))
    added = list(tokenizer.added_tokens_decoder)[-PROBED:]
    return list(dict.fromkeys([*spread, *added]))[: max(2, longest - 2)]


def _check_texts(url: str, told: Mapping[int, str], tokenizer: PreTrainedTokenizerBase) -> None:
    """A token id must mean the same to both."""
    added = tokenizer.added_tokens_decoder
    for token, theirs in sorted(told.items()):
        if token >= len(tokenizer):
            continue  # padding of its matrix
        ours = str(tokenizer.decode([token]))
        # Pieces of a character have no text of their own, and a space before a word comes and goes.
        if "\ufffd" in ours + theirs or (not theirs.strip() and token not in added):
            continue
        if ours.strip() != theirs.strip():
            raise VocabularyMismatchError(
                f"token {token} is {ours!r} to the student and {theirs!r} to the teacher at {url}: "
                f"choose a teacher of the student's family"
            )


def _apart(one: Reading, other: Reading, row: Sequence[int]) -> float:
    """Nats between two readings of a row, the mean over its tokens."""
    pairs = ((_own(one, row, i), _own(other, row, i)) for i in range(1, len(row)))
    return fmean(0.0 if a == b else abs(a - b) for a, b in pairs)  # -inf from -inf is nan


def _own(reading: Reading, tokens: Sequence[int], place: int) -> float:
    found = reading.logprobs[place].get(tokens[place])
    if found is None:
        raise TeacherServerError(
            f"{reading.url} says nothing of token {tokens[place]} where it stands in the "
            f"row: its prompt_logprobs are of other places"
        )
    return found
