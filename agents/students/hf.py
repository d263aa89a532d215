"""The in-process student: a transformers model that writes many conversations side by side.

The rows that write get a token each a tick, and as many more as were guessed right (see
`journeyman.agents.students.guessing`). A row that has been answered, or has just begun, reads its
tokens in chunks in the same passes, and then writes beside the others; a row that waits for its
tools, or is done, costs nothing. The cache lives from an episode's first token to its last:
nothing is computed twice, and no row waits for another's turn to end. What another row of the batch
has read is copied; in a search, which plays on from what it has played, so is what a batch before
it has read with the same weights (see `PrefixStore`).
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from journeyman.agents.errors import DivergedError, SettingError
from journeyman.agents.networks.adapters import begin
from journeyman.agents.networks.loading import load_model, load_tokenizer
from journeyman.agents.students.decoding import Decoder, Part, can_look_ahead, check_decodable
from journeyman.agents.students.dialect import Dialect, ToolRender, dialect_of
from journeyman.agents.students.guessing import Guesses, tokens_to_read
from journeyman.agents.students.player import (
    Conversation,
    ModelPlayer,
    Sampling,
    Stream,
    Trainable,
    Turn,
    end_ids,
    longest_turn,
    stop_of,
    turn_limit,
)
from journeyman.agents.students.reuse import LEAST_SHARED, PrefixIndex, PrefixStore, marks
from journeyman.agents.students.settings import NAMES, recall
from journeyman.envs import Message

GUESSED = 5
"""Tokens of each row that are guessed ahead, at most, where nothing else is said."""
_PASS_COST, _PASS_COST_ON_GPU, _ROW_COST = 48.0, 300.0, 2.0
"""What a pass costs beside its tokens (its weights are read), and what each row of it does (its
states are), in tokens. On a CPU as timed once with models of 0.6 to 135 million parameters in
batches of 4, 16 and 64; on a GPU reckoned, not measured: tokens that an H100 computes in bfloat16
while it reads the weights."""


class HFPlayer(ModelPlayer):
    """Samples turns from a causal language model."""

    def __init__(
        self,
        model: PreTrainedModel,
        dialect: Dialect,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        max_context: int | None = None,
        speculate: int = GUESSED,
    ) -> None:
        """Wrap a model; the model is not copied, so training it changes the player.

        Args:
            model: A decoder-only model with attention in every layer.
            dialect: Its family's.
            sampling: Its dice.
            max_context: Longest token stream; None takes the model's own limit.
            speculate: Tokens that are guessed ahead of each row, at most; what is drawn is the
                same. None are where rotary positions hang on the longest row (dynamic and
                longrope).

        Raises:
            SettingError: Less than no tokens are to be guessed.
            UnsupportedModelError: A layer has a recurrent state, or attention that takes no masks;
                or a turn would fill the model's whole context.
        """
        check_decodable(model)
        if type(speculate) is not int or speculate < 0:
            raise SettingError(f"speculate={speculate}: expected a whole number, 0 or more")
        positions = int(model.config.get_text_config().max_position_embeddings)
        named = "the model's max_position_embeddings"
        super().__init__(positions, named, dialect, sampling, max_context)
        self.model = model
        look_ahead = can_look_ahead(model.config.get_text_config())
        self.speculate = speculate if look_ahead else 0
        self.end_ids = (*dialect.end_ids, *end_ids(getattr(model, "generation_config", None)))
        """Tokens of which any ends a turn."""
        self.prefixes: PrefixStore | None = None
        """What its streams have read, if it is one that remembers: see `remembering`."""

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        """Start a batch of conversations."""
        return HFStream(self, conversations)

    def remembering(self) -> Self:
        """The same, but what one batch has read the next need not read again.

        A prefix that was read in another batch may differ in rounding. So nobody else remembers: a
        rollout is the same to the last bit, whatever was played before.
        """
        if self.prefixes is not None:
            return self
        other = copy.copy(self)
        other.prefixes = PrefixStore(self.model)
        return other

    def at(self, **changes: Any) -> HFPlayer:
        """The same model with other sampling."""
        sampling = self.changed(changes)
        other = HFPlayer(self.model, self.dialect, sampling, self.max_context, self.speculate)
        other.prefixes = self.prefixes  # what is read does not hang on the dice
        return other


_CHUNK = 512
"""Tokens of a row that are read at once: what is longer is read in several passes."""
_MOST_READ = 4096
"""Tokens of a pass, filling included."""
_SLACK = 64
"""Tokens of filling that cost less than another pass."""
_MOST_RUNS = 8
"""Stretches of places that a pass reads where they lie: of more, moving rows costs less."""


class _Row:
    """One conversation, and its place in the cache."""

    def __init__(self, index: int, place: int, conversation: Conversation, seed: int) -> None:
        self.index = index
        self.place = place
        self.opening = conversation.tokens
        self.source: tuple[_Row, int] | None = None
        """Whose first tokens are its own too, and how many: to be copied once they are read."""
        self.held: list[int] = []
        """Tokens whose states are in the cache."""
        self.pending = list(conversation.tokens)
        """Tokens to read before the row writes again; none while it writes."""
        self._dice = _dice(conversation.seed, seed)
        self._thrown: list[float] = []
        self.tokens: list[int] = []
        """Written so far in this turn; the last is read next."""
        self.logprobs: list[float] = []
        self.waiting = False
        """True from the end of a turn until the environment has answered."""
        self.done = False

    @property
    def writes(self) -> bool:
        """True while its next token is to be sampled."""
        return not (self.waiting or self.pending)

    @property
    def next_read(self) -> list[int]:
        """Of the pending tokens, those that the next pass reads."""
        return self.pending[:_CHUNK]

    def dice(self, count: int) -> list[float]:
        """The dice of the next tokens; they lie until `write` takes them up, one by one."""
        while len(self._thrown) < count:
            self._thrown.append(next(self._dice))
        return self._thrown[:count]

    def write(self, token: int, logprob: float) -> None:
        """A token was drawn."""
        del self._thrown[0]
        self.tokens.append(token)
        self.logprobs.append(logprob)

    def move_on(self, count: int) -> None:
        """So many of the pending tokens are in the cache now."""
        self.held += self.pending[:count]
        del self.pending[:count]

    def take_turn(self, forced: int | None = None) -> Turn:
        """End the turn, if need be with a token that was not chosen."""
        last = self.tokens[-1:]
        if forced is not None:
            last.append(forced)
            self.tokens.append(forced)
            self.logprobs.append(0.0)
        turn = Turn(self.index, tuple(self.tokens), tuple(self.logprobs), forced is not None)
        self.pending += last
        self.tokens, self.logprobs, self.waiting = [], [], True
        return turn


def _dice(seed: int, other: int) -> Iterator[float]:
    """Numbers in [0, 1) without end; asked for one by one, numpy takes longer for each.

    Args:
        seed: The conversation's.
        other: `Sampling.seed`.
    """
    # What is 0 comes first: behind the rest it would not count.
    key = np.random.SeedSequence((seed, other)) if other else seed
    generator = np.random.Generator(np.random.Philox(key))
    while True:
        yield from generator.random(64).tolist()


class HFStream:
    """A batch of conversations in progress; see the module's docstring."""

    @torch.inference_mode()
    def __init__(self, player: HFPlayer, conversations: Sequence[Conversation]) -> None:
        """Queue the opening prompts."""
        self._player = player
        self._store = player.prefixes
        if self._store is not None:
            self._store.check()
        self._marks = marks(player.model)
        """Of the weights that everything is read with."""
        self._decoder = Decoder(player.model)
        self._cache = self._decoder.cache
        self._live: dict[int, _Row] = {}
        """The rows that are not done, by number."""
        self._seats: list[_Row | None] = []
        """The same by their places in the cache."""
        self._openings = PrefixIndex[_Row]()
        """The same by their opening prompts."""
        self._guesses = Guesses()
        on_cpu = self._decoder.device.type == "cpu"
        self._pass_cost = _PASS_COST if on_cpu else _PASS_COST_ON_GPU
        self._begun = 0
        longest = max((len(it.tokens) for it in conversations), default=0)
        self._cache.reserve(len(conversations), longest + player.sampling.max_tokens)
        rows = [self._seat(it) for it in conversations]
        for row in sorted(rows, key=lambda it: it.opening):  # who shares most with one is before it
            self._begin(row)

    @property
    def idle(self) -> bool:
        """True if every row waits or is done."""
        return all(row.waiting for row in self._live.values())

    @torch.inference_mode()
    def add(self, conversation: Conversation) -> int:
        """Begin one more conversation, in a place that is free if there is one.

        Returns:
            The number of its row; numbers count on from the conversations that were opened.
        """
        row = self._seat(conversation)
        self._cache.reserve(len(self._seats), len(row.opening))
        self._begin(row)
        return row.index

    def _seat(self, conversation: Conversation) -> _Row:
        if None not in self._seats:
            self._seats.append(None)
        place = self._seats.index(None)
        row = _Row(self._begun, place, conversation, self._player.sampling.seed)
        self._seats[place] = self._live[row.index] = row
        self._begun += 1
        return row

    def _begin(self, row: _Row) -> None:
        """Find who has read, or is about to read, what a row begins with."""
        if not self._unchanged():
            return
        most = len(row.opening) - 1  # what follows the last token is not kept
        kept = None if self._store is None else self._store.best(row.opening)
        beside = self._openings.best(row.opening)
        if kept is not None and (beside is None or kept[1] >= beside[1]):
            count = min(kept[1], most)
            self._cache.put(row.place, kept[0], count)
            row.move_on(count)
        elif beside is not None:
            other, count = beside[0], min(beside[1], most)
            while other.source is not None and other.source[1] >= count:
                other = other.source[0]
            row.source = other, count
        self._openings.add(row.opening, row)

    def _unchanged(self) -> bool:
        """False from the first change of the weights on: then nothing is copied any more."""
        if self._marks is not None and self._marks != marks(self._player.model):
            self._marks = None
        return self._marks is not None

    def extend(self, row: int, tokens: Sequence[int], messages: Sequence[Message] = ()) -> None:
        """Feed the environment's answer."""
        self._live[row].pending += tokens
        self._live[row].waiting = False

    @torch.inference_mode()
    def finish(self, row: int) -> None:
        """Drop a row: its place is free; who remembers keeps what it held for those after it."""
        gone = self._live.pop(row)
        gone.done, self._seats[gone.place] = True, None
        self._openings.discard(gone.opening, gone)
        if self._store is None:
            return
        if len(gone.held) >= LEAST_SHARED and self._unchanged():
            states = self._cache.taken(gone.place, len(gone.held))
            self._store.keep(tuple(gone.held), states)

    @torch.inference_mode()
    def advance(self) -> list[Turn]:
        """One tick: tokens for every row that writes, and beside them rows read what was said."""
        self._share()
        writing = [row for row in self._live.values() if row.writes]
        pending = [row for row in self._live.values() if row.pending and not row.waiting]
        pending = [row for row in pending if row.source is None]
        joins = self._decoder.joins
        ticks = [*_runs(writing)]
        if len(ticks) > (_MOST_RUNS if joins else 1):
            ticks = [self._to_front(writing)]
        groups = [*ticks, *(_runs(pending) if joins else _groups(pending))]
        guesses = self._guessed(writing)
        parts, ready = list[Part](), list[_Row]()
        for rows in groups:
            tokens = [
                [row.tokens[-1], *guesses[row.index]] if row.writes else row.next_read
                for row in rows
            ]
            asked = [
                len(it) if row.writes else int(len(it) == len(row.pending))
                for row, it in zip(rows, tokens, strict=True)
            ]
            starts = [len(row.held) for row in rows]
            parts.append(Part([row.place for row in rows], starts, tokens, asked))
            ready += [row for row, count in zip(rows, asked, strict=True) if count]
        guessed = [guesses.get(row.index, ()) for row in ready]
        logits = [self._decoder.read(bundle) for bundle in _bundles(parts)]
        for row in itertools.chain(*groups):
            if row.writes:
                row.held += row.tokens[-1:]
            else:
                row.move_on(_CHUNK)
        self._share()  # before any of them is over, and its place another's
        turns = self._sample(torch.cat(logits), ready, guessed) if ready else []
        return sorted(turns, key=operator.attrgetter("row"))

    def _guessed(self, rows: Sequence[_Row]) -> dict[int, list[int]]:
        """What is read behind the last token of each row, by its number, since it may come."""
        if not rows:
            return {}
        most = self._player.speculate
        guesses = [self._guesses.after(row.held[-1], row.tokens[-1], most) for row in rows]
        ahead = tokens_to_read(guesses, self._pass_cost / len(rows) + _ROW_COST) - 1
        return {
            row.index: [token for token, _ in guess[:ahead]]
            for row, guess in zip(rows, guesses, strict=True)
        }

    def _share(self) -> None:
        """Copy what other rows have read by now."""
        ready: dict[int, list[tuple[_Row, _Row]]] = {}
        for row in self._live.values():
            if row.source is None:
                continue
            other, count = row.source
            if other.done:  # before it had read it
                row.source = None
            elif len(other.held) >= count:
                ready.setdefault(count, []).append((other, row))
        for count, pairs in ready.items():
            self._cache.move([it.place for it, _ in pairs], [it.place for _, it in pairs], count)
            for _, row in pairs:
                row.move_on(count)
                row.source = None

    def _to_front(self, writing: Sequence[_Row]) -> list[_Row]:
        """Bring the rows that write to the first places, which are read where they lie."""
        count = len(writing)
        free = [i for i, row in enumerate(self._seats[:count]) if row is None or not row.writes]
        behind = [row for row in writing if row.place >= count]
        moves: list[tuple[_Row, int]] = []
        for place, row in zip(free, behind, strict=True):
            other = self._seats[place]
            self._seats[row.place] = other
            moves += [(row, place)] if other is None else [(row, place), (other, row.place)]
        if moves:
            length = max(len(row.held) for row, _ in moves)
            self._cache.move([row.place for row, _ in moves], [to for _, to in moves], length)
        for row, place in moves:
            self._seats[place], row.place = row, place
        return [row for row in self._seats[:count] if row is not None]

    def _sample(
        self, logits: Tensor, rows: Sequence[_Row], guessed: Sequence[Sequence[int]]
    ) -> list[Turn]:
        """Write a token in each row, and one more behind each that was guessed right.

        Args:
            logits: [tokens, V], behind the last token of each row and behind its guesses.
            rows: Those that write, be it their first token.
            guessed: In each row; what is read behind a wrong guess counts for nothing.

        Returns:
            The turns that ended.
        """
        chosen = logits.float()
        # Apple's GPUs have no float64.
        uniforms = torch.tensor(
            [die for row, it in zip(rows, guessed, strict=True) for die in row.dice(1 + len(it))],
            device=chosen.device,
            dtype=torch.float32 if chosen.device.type == "mps" else torch.float64,
        )
        tokens, logprobs = sample(chosen, self._player.sampling, uniforms)
        drawn = iter(zip(tokens.tolist(), logprobs.tolist(), strict=True))
        turns, written = list[Turn](), list[tuple[int, int, int]]()
        for row, guesses in zip(rows, guessed, strict=True):
            # Behind the last guess comes nothing that a token could be equal to.
            own = zip((*guesses, None), itertools.islice(drawn, 1 + len(guesses)), strict=True)
            for guess, (token, logprob) in list(own):
                if len(row.held) > 1:
                    written.append((row.held[-2], row.held[-1], token))
                turn = self._write(row, token, logprob)
                if turn is not None:
                    turns.append(turn)
                    break
                if guess != token:
                    break
                row.held.append(token)
        self._guesses.note(written)
        return turns

    def _write(self, row: _Row, token: int, logprob: float) -> Turn | None:
        """Write a token behind what a row holds; returns the turn, if that ends it."""
        if math.isnan(logprob):
            raise DivergedError
        row.write(token, logprob)
        sampling = self._player.sampling
        if token in self._player.end_ids:
            return row.take_turn()
        if len(row.tokens) >= sampling.max_tokens or (
            sampling.stops and stop_of(self._player.dialect.decode(row.tokens), sampling.stops)
        ):
            return row.take_turn(forced=self._player.dialect.eos_id)
        return None


def _runs(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Rows in neighbouring places that read as much, or write: they are read where they lie."""
    run: list[_Row] = []
    for row in sorted(rows, key=operator.attrgetter("place")):
        last = run[-1] if run else row
        if run and (row.place != last.place + 1 or len(row.next_read) != len(last.next_read)):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _bundles(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts to be read in one pass: as many as there is room for."""
    bundle: list[Part] = []
    room = _MOST_READ
    for part in parts:
        size = part.width * len(part.tokens)
        if bundle and size > room:
            yield bundle
            bundle, room = [], _MOST_READ
        bundle.append(part)
        room -= size
    if bundle:
        yield bundle


def _groups(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Rows to be read together: of about one length, since short ones are filled up."""
    group: list[_Row] = []
    real = 0
    for row in sorted(rows, key=lambda it: len(it.pending)):
        count = len(row.next_read)
        padded = count * (len(group) + 1)
        if group and (padded > _MOST_READ or padded > _SLACK + 1.25 * (real + count)):
            yield group
            group, real = [], 0
        group.append(row)
        real += count
    if group:
        yield group


_COLDEST = 1e-6
"""Below it the most probable token is taken: what is divided by less may not be finite."""
_HOTTEST = 1e38
"""Above it all tokens are alike: float32 has no such number, and what is impossible divided by
infinity is none."""


def sample(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverse transform.

    Args:
        logits: [B, V].
        sampling: The dice.
        uniforms: [B], in [0, 1); the only source of chance. Probabilities are summed in its type:
            near 1, float32 counts in steps of 6e-8, and what is rarer is drawn by rounding, which
            hangs on who plays beside; float64 tells such tokens apart.

    Returns:
        Tokens [B] and their log-probabilities at temperature 1 [B], NaN where logits are not
        finite.
    """
    logprobs = logits.log_softmax(-1)
    if sampling.temperature < _COLDEST:
        tokens = logits.argmax(-1)
    else:
        chances = (logits / min(sampling.temperature, _HOTTEST)).softmax(-1)
        if sampling.truncated:
            chances = _truncated(chances, sampling)
        cumulative = chances.cumsum(-1, dtype=uniforms.dtype)
        # Scaled by the sum, which rounding keeps from being 1; and below it, which a die that is
        # rounded up would not be: a token past the end of the probability has none itself.
        total = cumulative[:, -1:]
        threshold = (uniforms[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
        # NaN compares with nothing and would be found past the end.
        last = logits.shape[1] - 1
        tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=last)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _truncated(chances: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [B, V] with 0 for tokens that may not be drawn; the first is always kept.

    In the order of transformers: top_k, then top_p of what is left, then min_p. vLLM begins with
    min_p, which makes a difference beside top_p only.
    """
    ranked, order = chances.sort(stable=True, dim=-1, descending=True)
    places = torch.arange(ranked.shape[1], device=ranked.device)
    kept = places < (sampling.top_k or ranked.shape[1])
    ranked = ranked * kept
    mass = ranked / ranked.sum(-1, keepdim=True)
    # A token counts while those before it do not yet hold the share, which float32 may round to 0.
    ranked = ranked * (((mass.cumsum(-1) - mass) < sampling.top_p) | (places == 0))
    ranked = ranked * (ranked >= sampling.min_p * ranked[:, :1])
    return torch.zeros_like(chances).scatter(-1, order, ranked)


def alike(student: Trainable, model: PreTrainedModel) -> HFPlayer:
    """Another model that plays as a student does: in its dialect and within its limits."""
    speculate = student.speculate if isinstance(student, HFPlayer) else GUESSED
    return HFPlayer(model, student.dialect, student.sampling, student.max_context, speculate)


def load_student(
    model: str,
    dialect: str | None = None,
    render: ToolRender | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    max_turn_tokens: int | None = None,
    max_context: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    stops: Sequence[str] = (),
    dtype: str | None = None,
    device: str | None = None,
    model_config: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | bool | None = None,
    quantization: Mapping[str, Any] | None = None,
    speculate: int = GUESSED,
) -> HFPlayer:
    """A student by model name; what is None is as it was trained, if it was trained here.

    With `lora`, or where `model` is an adapter, the student's `model` is a `peft.PeftModel` with
    one adapter, "default", of which alone parameters require gradients and are saved: its
    `get_base_model()` is the base with the adapter's layers in it. Trainers take it as it is.

    Args:
        model: Its name (see `journeyman.agents.networks.catalogue`).
        dialect: Its family; None asks the chat template.
        render: How the prompt shows the tools; None is in full where the chat template shows tools.
        template_kwargs: For the chat template.
        max_turn_tokens: Of a turn; None is a quarter of the model's context, 2,048 at most.
        max_context: Longest token stream; None takes the model's own limit.
        temperature: Of the episodes it is trained on; this and the next are those of `Sampling`.
        top_p: See `Sampling`.
        top_k: See `Sampling`.
        min_p: See `Sampling`.
        stops: See `Sampling`.
        dtype: Of the weights; None keeps the type they are saved in.
        device: Such as "cuda:1"; None takes a GPU if there is one.
        model_config: Values of the model's config to be changed, such as `attention_dropout`.
        lora: Begins an adapter, which alone is trained: fields of `peft.LoraConfig`, see `begin`.
        quantization: See `load_model`.
        speculate: Tokens that are guessed ahead of each row, at most, so that several may come of
            one pass; what is drawn is the same.

    Raises:
        ModelNotFoundError: No such model here.
        MissingExtraError: An adapter needs PEFT, and it is not installed.
        SettingError: A value is out of its range.
        DialectError: The chat template cannot carry an episode.
    """
    sampling = Sampling(temperature, top_p, top_k, min_p, stops=stops)
    own = (dialect, render, template_kwargs, max_turn_tokens, max_context)
    ways = recall(model, dict(zip(NAMES, own, strict=True)))
    dialect, render, template_kwargs, max_turn_tokens, max_context = ways.values()
    if max_turn_tokens is not None:
        sampling = turn_limit(sampling, max_turn_tokens)
    loaded = load_model(model, dtype, device, model_config, quantization, trainable=True)
    if lora or lora == {}:
        loaded = begin(loaded, lora)
    tokenizer = load_tokenizer(model)
    ends = end_ids(loaded.generation_config)
    spoken = dialect_of(tokenizer, dialect, render, template_kwargs, ends)
    if max_turn_tokens is None:
        longest = int(loaded.config.get_text_config().max_position_embeddings)
        sampling = replace(sampling, max_tokens=longest_turn(longest))
    return HFPlayer(loaded, spoken, sampling, max_context, speculate)
