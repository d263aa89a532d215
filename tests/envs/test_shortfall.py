"""What an episode that failed lacks, as its environment says it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from immutables import Map

from journeyman.envs import Task, ToolEnv, UserTurn
from journeyman.envs.errors import InvalidEnvError
from journeyman.envs.shortfall import (
    MOST_DIFFERENCES,
    AnswerCheck,
    Difference,
    Shortfall,
    differences,
)
from journeyman.envs.task import matches, mentions
from journeyman.tools import ToolCall, ToolError, tool


@dataclass(frozen=True)
class Shelf:
    books: int
    topics: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("reached", "wanted", "found"),
    [
        (Map({"art": Shelf(1)}), Map({"art": Shelf(2)}), [("art.books", "1", "2")]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, [("a/b[1]", "2", "3")]),
        ({"a": 1, "b": 2}, {"b": 2, "c": 3}, [("a", "1", None), ("c", None, "3")]),
        ({"/x/y": 1}, {"/x/y": 2}, [("/x/y", "1", "2")]),
        ({"files": {"/x": 1}}, {"files": {}}, [("files/x", "1", None)]),
        ([1, 2, 3, 4], [1, 9, 2, 3, 4], [("[1]", None, "9")]),  # what follows has only moved
        ([1, 2, 3], [1, 3], [("[1]", "2", None)]),
        ((1, 2), [1, 2], []),  # one sequence, as hashes have it
        (
            Shelf(1, frozenset("ba")),
            Shelf(1, frozenset("bc")),
            [("topics", "'a'", None), ("topics", None, "'c'")],
        ),
        (1, True, [("state", "1", "True")]),
        (1, 1.0, [("state", "1", "1.0")]),
        (float("nan"), float("nan"), []),
        ("5", 5, [("state", "'5'", "5")]),
        (None, {}, [("state", "None", "{}")]),
        ([10**5000], [0], [("[0]", f"{hex(10**5000)[:159]}…", "0")]),
        ({"s": {3, 1, 2}}, {}, [("s", "{1, 2, 3}", None)]),
    ],
)
def test_differences_are_named_by_path(
    reached: object, wanted: object, found: list[tuple[str, str | None, str | None]]
) -> None:
    assert differences(reached, wanted) == tuple(Difference(*it) for it in found)


def test_what_is_no_value_is_told_apart_without_its_address() -> None:
    one, other = object(), object()
    assert differences([one], [one]) == ()
    assert differences([one], [other]) == (Difference("[0]", "object", "object"),)


def test_many_differences_are_counted_and_long_ones_cut() -> None:
    many = differences(dict.fromkeys(range(100), 0), dict.fromkeys(range(100), "x" * 10**6))
    assert len(many) == MOST_DIFFERENCES + 1
    assert many[-1] == Difference(f"and {100 - MOST_DIFFERENCES} more", None, None)
    assert {len(it.wanted or "") for it in many[:-1]} == {160}


def test_a_shortfall_is_read_as_it_was_written() -> None:
    lacks = Shortfall(
        (Difference("a", None, "1"),), (AnswerCheck(None, "x", False), AnswerCheck("d", None, True))
    )
    assert Shortfall.from_dict(lacks.to_dict()) == lacks


@pytest.mark.parametrize(
    ("answer", "gold", "mentioned"),
    [
        ("The answer is 17.", "17", True),
        ("17 days", "17", True),
        ("It costs 1,700.00 in all", "1700", True),
        ("She lives in New  York, I think", "new york", True),
        ("17.5", "17", False),
        ("1,017", "17", False),
        ("-17 degrees", "17", False),
        ("17-fold", "17", False),
        ("A17", "17", False),
        ("eighteen", "17", False),
        ("the manual", "man", False),
        ("file a.b(c", "a.b(c", True),
        ("anything", "", False),
    ],
)
def test_an_answer_in_other_words(answer: str, gold: str, mentioned: bool) -> None:
    assert mentions(answer, gold) == mentioned
    assert not matches(answer, gold)  # none of them is right all the same


@tool
def put(state: Map[str, Shelf], shelf: str, count: int) -> tuple[Map[str, Shelf], int]:
    """Put books on a shelf.

    Args:
        shelf: Its name.
        count: How many.
    """
    if shelf not in state:
        raise ToolError("no such shelf")
    books = state[shelf].books + count
    return state.set(shelf, Shelf(books)), books


class ShelfEnv(ToolEnv):
    """Two user turns: books for two shelves, and a question about the second."""

    toolset = (put,)
    grade: Any = None

    @classmethod
    def generate(cls, rng: random.Random, split: str, level: str) -> Task:
        state = Map({"art": Shelf(1), "law": Shelf(2)})
        then = UserTurn("Now 4 on law. How many?", (put_call("law", 4),), "6")
        gold = (put_call("art", 3),)
        return Task("", "put", f"3 books on art {rng.random()}", state, gold, None, (then,))

    def score(self) -> float:
        shelves: Map[str, Shelf] = self._state
        if self.grade is not None:
            return self.grade  # type: ignore[no-any-return]
        return sum(shelves[k].books == n for k, n in (("art", 4), ("law", 6))) / 2


def put_call(shelf: str, count: int) -> ToolCall:
    return ToolCall("put", {"shelf": shelf, "count": count})


def outcomes(env: ToolEnv, turns: list[Any]) -> Iterator[tuple[float, dict[str, Any]]]:
    env.reset(options={"task_id": "test/0"})
    for turn in turns:
        _, reward, _, _, info = env.step(turn)
        yield reward, info


def test_partial_credit_is_told_at_the_end_and_moves_no_reward() -> None:
    turns = [[put_call("art", 3)], "done", "Answer: 2"]
    *before, (reward, info) = outcomes(ShelfEnv(), turns)
    assert all("score" not in it for _, it in before)
    assert (reward, info["success"], info["score"]) == (0.0, False, 0.5)
    *_, (reward, info) = outcomes(ShelfEnv(max_turns=1), turns[:1])
    assert (reward, info["score"]) == (0.0, 0.5)  # at the turn limit too


def test_the_score_is_the_verdict_where_nobody_says_more() -> None:
    class Plain(ShelfEnv):
        score = ToolEnv.score

    env = Plain()
    gold = [[put_call("art", 3)], "done", [put_call("law", 4)], "Answer: 6"]
    *_, (reward, info) = outcomes(env, gold)
    assert (reward, info["score"], env.score()) == (1.0, 1.0, 1.0)
    end = env.snapshot()
    *_, (_, info) = outcomes(env, [*gold[:3], "Answer: 7"])
    assert info["score"] == env.score() == 0.0
    env.restore(end)
    assert env.score() == 1.0
    env.reset(options={"task_id": "test/0"})
    assert env.score() == 0.0  # nothing is answered yet


@pytest.mark.parametrize("grade", [Fraction(1, 2), np.float32(0.5), 1, True])
def test_any_number_in_range_is_a_score(grade: object) -> None:
    class Graded(ShelfEnv):
        pass

    Graded.grade = grade
    *_, (_, info) = outcomes(Graded(), ["done", "done"])
    assert info["score"] == float(grade)  # type: ignore[arg-type]
    assert type(info["score"]) is float


@pytest.mark.parametrize("grade", [-0.1, 1.1, float("nan"), "good", [1]])
def test_what_is_no_score_is_the_environments_error(grade: object) -> None:
    class Graded(ShelfEnv):
        pass

    Graded.grade = grade
    with pytest.raises(InvalidEnvError, match=r"Graded.score\(\) is .*: expected 0 to 1"):
        list(outcomes(Graded(), ["done", "done"]))


def test_shortfall_of_state_and_answers() -> None:
    env = ShelfEnv()
    list(outcomes(env, [[put_call("art", 5)], "done", "Answer: 2"]))
    assert env.shortfall() == Shortfall(
        (Difference("art.books", "6", "4"), Difference("law.books", "2", "6")),
        (AnswerCheck("done", None, True), AnswerCheck("2", "6", False)),
    )


def test_a_user_turn_without_an_answer_is_not_right() -> None:
    env = ShelfEnv(max_turns=1)
    list(outcomes(env, [[put_call("art", 3)]]))
    assert env.shortfall().answers == (
        AnswerCheck(None, None, False),
        AnswerCheck(None, "6", False),
    )


def test_an_environment_with_a_verdict_of_its_own_says_nothing_of_the_state() -> None:
    class Lenient(ShelfEnv):
        def solved(self) -> bool:
            return bool(self._state["art"].books > 100)

    env = Lenient()
    list(outcomes(env, ["done", "done"]))
    assert env.shortfall().state == ()
