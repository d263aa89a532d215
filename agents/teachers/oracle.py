"""`teacher=oracle`: the gold program as an exact teacher, where it is known what comes next.

It plays an episode's turns again in an environment of its own. As long as they are the gold
program's, or left the state as it was, the next gold call is still right; and once all calls were
made, so is the gold answer. There it teaches the gold turn as the student's dialect writes it,
token by token, up to the first one at which the student left it: what was right there is known,
what is right after half a slip is not. Everywhere else it is silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from journeyman.agents.errors import SettingError
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import Trainable
from journeyman.agents.teachers.signal import Detail, Signal, Teacher, TopK, silent
from journeyman.envs import Episode, answer_text, env_class, make
from journeyman.envs.task import extract_answer, matches
from journeyman.tools import ToolCall


class OracleTeacher(Teacher):
    """Puts all but `epsilon` on the gold token; the other tokens share that alike."""

    gives = Detail.TOP_K

    def __init__(self, epsilon: float = 0.01, top_k: int = 16) -> None:
        """Smooth it.

        Args:
            epsilon: Probability of all tokens but the gold one, together.
            top_k: Tokens that it names where its most probable ones are asked for.

        Raises:
            SettingError: A number is out of its range.
        """
        number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
        if not number or not 0 < epsilon <= 0.5:
            raise SettingError(f"epsilon={epsilon}: expected above 0 and at most 0.5")
        if type(top_k) is not int or top_k < 1:
            raise SettingError(f"top_k={top_k}: expected a whole number, 1 or more")
        self._epsilon = float(epsilon)
        self._top_k = top_k
        self._student: tuple[Dialect, int] | None = None

    def check(self, student: Trainable) -> None:
        """See how the student writes, and how many tokens it tells apart."""
        width = int(student.model.get_output_embeddings().weight.shape[0])
        self._student = student.dialect, width

    def check_environments(self, ids: Sequence[str]) -> None:
        """See `Teacher.check_environments`.

        Raises:
            SettingError: Turns cannot be played again in one at no cost.
        """
        for env_id in ids:
            if env_class(env_id).waits:
                raise SettingError(
                    f"teacher=oracle plays every episode again, and tools of {env_id} run code or "
                    f"live in a server; expected environments whose state is a value: choose "
                    f"another env=… or teacher=…"
                )

    def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
        """See `Teacher.annotate`."""
        return [self._signal(row, detail) for row in rows]

    def _signal(self, row: Episode, detail: Detail) -> Signal:
        if self._student is None:
            raise ValueError("teacher=oracle does not know its student yet: call check(student)")
        dialect, width = self._student
        gold = torch.tensor(row.tokens)
        spoken = torch.zeros(len(row.tokens), dtype=torch.bool)
        for place, token in _gold_tokens(row, dialect):
            gold[place] = token
            spoken[place] = row.mask[place]
        others = self._epsilon / max(1, width - 1)
        right = gold == torch.tensor(row.tokens)
        logprobs = torch.where(right, math.log(1 - self._epsilon), math.log(others))
        chosen = torch.tensor(row.mask, dtype=torch.bool)
        top = None
        if detail is Detail.TOP_K:
            k = min(self._top_k, width)
            ids = (gold[chosen][:, None] + torch.arange(k)) % width  # any others: they are alike
            told = torch.full(ids.shape, math.log(others))
            told[:, 0] = math.log(1 - self._epsilon)
            left = others * (width - k)
            rest = torch.full((len(ids),), math.log(left) if left else -math.inf)
            top = TopK(ids, told, rest)
        return silent(row, Signal(logprobs * chosen, top), spoken)


def _gold_tokens(row: Episode, dialect: Dialect) -> Iterator[tuple[int, int]]:
    """Places of an episode whose gold token is known, and the token."""
    env = make(row.env_id)
    try:
        env.begin(env_class(row.env_id).load_task(row.task_id))
        env.max_turns = max(env.max_turns, len(row.steps))  # the run's env.kwargs may say more
        made = 0  # gold calls of this user turn
        for step in row.steps:
            gold = env.oracle()
            start, end = step.span
            prompt = row.tokens[:start]
            done = made == len(gold)
            text = answer_text(env.user_turn) if done else dialect.write_call(gold[made])
            turn = dialect.turn(dialect.spoken(text, prompt))
            for place, right in zip(range(start, end), turn, strict=False):
                yield place, right
                if row.tokens[place] != right:
                    break
            read = dialect.read(step.text, env.tools, prompt)
            wanted = env.user_turn.answer
            if not read.calls:
                answer = extract_answer(read.answer)
                if not done or not (wanted is None or matches(answer, wanted)):
                    return  # an answer is not taken back
                env.step(read)
                made = 0
                if env.over:
                    return
                continue
            before = env.snapshot().state
            env.step(read)
            right = _agreeing(read.calls, gold[made:])
            made += right
            on_track = right == len(read.calls) or env.snapshot().state == before
            if env.over or not on_track:
                return
    finally:
        env.close()


def _agreeing(calls: Sequence[ToolCall], gold: Sequence[ToolCall]) -> int:
    """How many calls are the gold ones, from the first on."""
    pairs = zip(calls, gold, strict=False)
    return next(
        (i for i, (call, wanted) in enumerate(pairs) if call.canonical() != wanted.canonical()),
        min(len(calls), len(gold)),
    )
