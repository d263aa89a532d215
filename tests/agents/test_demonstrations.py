import random

import pytest

from journeyman.agents.rollouts.demonstrations import Demonstration, demonstrate
from journeyman.agents.students.dialect import FAMILIES, Dialect, Pythonic
from journeyman.envs import Split, Task, ToolEnv, UserTurn, answer_text, make
from journeyman.tools import ToolCall, parse_hermes, render_hermes, tool

from .tiny import BUILTIN, chat, tokenizer

INDICES = range(15)
Turns = list[tuple[str, bool]]


def turns(env: ToolEnv, demonstration: Demonstration) -> Turns:
    """The student's turns, and which are to be learnt; found again by playing them."""
    env.reset(options={"task_id": env.task.id})
    tokens, mask = demonstration.tokens, demonstration.mask
    opener = chat().tokenizer.encode("<|im_start|>assistant\n")
    found: Turns = []
    for start in range(len(opener), len(tokens)):
        if list(tokens[start - len(opener) : start]) == opener:
            end = tokens.index(chat().eos_id, start) + 1
            assert len(set(mask[start:end])) == 1
            found.append((chat().decode(tokens[start : end - 1]), mask[start]))
    return found


def show(env_id: str, index: int, error_rate: float) -> tuple[ToolEnv, Demonstration]:
    env = make(env_id, max_turns=64)
    return env, demonstrate(env, f"train/{index}", chat(), error_rate)


@pytest.mark.parametrize("env_id", BUILTIN)
def test_loss_falls_on_the_gold_turns_and_on_nothing_else(env_id: str) -> None:
    for index in INDICES:
        env, demonstration = show(env_id, index, 0.5)
        found = turns(env, demonstration)
        gold = [*map(render_hermes, env.oracle()), answer_text(env.user_turn)]
        assert [text for text, learn in found if learn] == gold
        learnt = sum(len(chat().turn(text)) for text in gold)
        assert sum(demonstration.mask) == learnt
        assert len(demonstration.tokens) == len(demonstration.mask)


@pytest.mark.parametrize("env_id", BUILTIN)
def test_mistakes_leave_the_state_as_it_was(env_id: str) -> None:
    mistakes = 0
    for index in INDICES:
        env, demonstration = show(env_id, index, 0.5)
        for text, learn in turns(env, demonstration):
            before = env.snapshot().state
            _, _, terminated, truncated, _ = env.step(text)
            if not learn:
                mistakes += 1
                assert env.snapshot().state == before
                assert parse_hermes(text)  # an attempt, not an answer
                assert not terminated
                assert not truncated
    assert mistakes > len(INDICES)


@pytest.mark.parametrize("error_rate", [0.0, 0.5])
@pytest.mark.parametrize("env_id", BUILTIN)
def test_demonstrations_end_solved(env_id: str, error_rate: float) -> None:
    for index in INDICES:
        env, demonstration = show(env_id, index, error_rate)
        outcomes = [env.step(text) for text, _ in turns(env, demonstration)]
        _, reward, terminated, _, info = outcomes[-1]
        assert (reward, terminated, info["success"]) == (1.0, True, True)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda it: it.name)
def test_demonstrations_are_written_as_the_student_is_read(family: type[Dialect]) -> None:
    dialect, statuses = family(tokenizer(), "names"), set()
    for index in INDICES:
        env = make(BUILTIN[0], max_turns=64)
        demonstration = demonstrate(env, f"train/{index}", dialect, 0.5)
        gold = len(env.task.turns[0].gold)
        outcomes = [
            (learn, env.step(dialect.read(text, env.tools)))
            for text, learn in turns(env, demonstration)
        ]
        assert outcomes[-1][1][-1]["success"]
        right = [outcome[-1]["calls"] for learn, outcome in outcomes if learn]
        assert [len(calls) for calls in right] == [1] * gold + [0]
        assert {r.call.status for calls in right for r in calls} <= {"ok", "tool_error"}
        wrong = [outcome[-1]["calls"] for learn, outcome in outcomes if not learn]
        assert all(wrong)
        statuses.update(calls[0].call.status for calls in wrong)
    assert {"ok", "tool_error"} <= statuses


@pytest.mark.parametrize("env_id", BUILTIN)
def test_without_errors_there_is_the_gold_alone(env_id: str) -> None:
    for index in INDICES:
        env, demonstration = show(env_id, index, 0.0)
        assert all(learn for _, learn in turns(env, demonstration))


def test_mistakes_are_of_many_kinds() -> None:
    statuses = set()
    for env_id in BUILTIN:
        for index in INDICES:
            env, demonstration = show(env_id, index, 0.5)
            for text, learn in turns(env, demonstration):
                _, _, _, _, info = env.step(text)
                if not learn:
                    statuses.update(r.call.status for r in info["calls"])
    assert {"ok", "invalid_json", "invalid_arguments", "tool_error"} <= statuses


def test_demonstrations_are_reproducible() -> None:
    first, second = (show(BUILTIN[0], 3, 0.4)[1] for _ in range(2))
    assert first == second
    assert show(BUILTIN[0], 4, 0.4)[1] != first


@tool
def look(state: int) -> tuple[int, int]:
    """See the number."""
    return state, state


class AskEnv(ToolEnv):
    """The answer is in the question: no call is needed."""

    toolset = (look,)

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        return Task("", "ask", "Say 7.", 7, (), "7")


def test_a_task_without_calls_can_be_demonstrated() -> None:
    env = AskEnv(max_turns=64)
    for index in INDICES:
        demonstration = demonstrate(env, f"train/{index}", chat(), 0.5)
        *mistakes, last = turns(env, demonstration)
        assert last == ("Answer: 7", True)
        assert not any(learn for _, learn in mistakes)


class TalkEnv(AskEnv):
    """The user asks twice."""

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        gold = (ToolCall("look", {}),)
        return Task("", "talk", "Look.", 7, gold, "7", (UserTurn("Again.", gold, "7"),))


def test_a_spoilt_call_is_not_taken_for_an_answer() -> None:
    """In some forms little is left of a short call; the gold would then meet another question."""
    env, dialect = TalkEnv(max_turns=64), Pythonic(tokenizer(), "names")
    for index in range(30):
        demonstration = demonstrate(env, f"train/{index}", dialect, 0.6)
        for text, learn in turns(env, demonstration):
            *_, info = env.step(dialect.read(text, env.tools))
            assert info["calls"] or learn
        assert info["success"]


@tool
def write(state: int) -> tuple[int, int]:
    """Change the number."""
    return state + 1, state + 1


class WriteEnv(AskEnv):
    """Whatever its one tool is called for changes the state."""

    toolset = (write,)

    @classmethod
    def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
        return Task("", "write", "Write once.", 0, (ToolCall("write", {}),), "1")


def test_where_every_call_changes_the_state_mistakes_are_no_calls() -> None:
    env = WriteEnv(max_turns=64)
    wrong = []
    for index in INDICES:
        demonstration = demonstrate(env, f"train/{index}", chat(), 0.8)
        wrong += [text for text, learn in turns(env, demonstration) if not learn]
    assert wrong
    assert all(call.status != "parsed" for text in wrong for call in parse_hermes(text))
