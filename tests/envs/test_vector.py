"""Vectors of environments: Gymnasium's contract, threads, and what happens when one breaks."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from journeyman.envs import answer_text, load_plugins, make
from journeyman.envs.errors import EpisodeOverError, UnknownTaskError, VectorError
from journeyman.envs.vector import ThreadVectorEnv, make_vector
from journeyman.tools import ToolCall, tool

from .conftest import SumEnv

BANK = "journeyman/Bank-v0"


@tool
def meet(state: tuple[int, ...], number: int) -> tuple[tuple[int, ...], str]:
    """Wait for everyone else.

    Args:
        number: Whatever.
    """
    _barrier.wait(timeout=60)
    return state, threading.current_thread().name


_barrier = threading.Barrier(4)


class MeetingEnv(SumEnv):
    """Its tool returns once all four environments are in it: only threads get there."""

    toolset = (*SumEnv.toolset, meet)
    waits = True


def add(number: int) -> list[ToolCall]:
    return [ToolCall("add", {"number": number})]


@pytest.fixture
def three() -> Iterator[ThreadVectorEnv]:
    with_end = ThreadVectorEnv([SumEnv] * 3)
    yield with_end
    with_end.close()


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_make_vec(mode: str) -> None:
    """Gymnasium's own serial vector sees the same episodes."""
    load_plugins()
    vector: Any = gymnasium.make_vec(BANK, 3, vectorization_mode=mode, max_turns=4)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, infos = vector.reset(seed=7)
    single = make(BANK, max_turns=4)
    for i in range(3):
        assert (observations[i], infos["task_id"][i]) == (
            single.reset(seed=7 + i)[0],
            single.task.id,
        )
    assert observations in vector.observation_space
    assert vector.action_space.sample() in vector.action_space
    vector.close()


def test_make_vec_takes_the_thread_vector_and_its_mode() -> None:
    load_plugins()
    vector = gymnasium.make_vec(BANK, 2, autoreset_mode="SameStep")
    assert isinstance(vector, ThreadVectorEnv)
    assert vector.autoreset_mode is AutoresetMode.SAME_STEP
    vector.close()


def test_a_turn_in_every_environment(three: ThreadVectorEnv) -> None:
    three.reset(seed=1)
    gold = three.call("oracle")
    observations, rewards, *_, infos = three.step([calls[:1] for calls in gold])
    assert [len(messages) for messages in observations] == [1, 1, 1]
    assert rewards.shape == (3,) and not rewards.any()
    assert all(calls[0].ok for calls in infos["calls"])
    three.step([calls[1:] for calls in gold])
    answers = [answer_text(task.turns[0]) for task in three.get_attr("task")]
    _, rewards, terminations, truncations, infos = three.step((*answers[:2], "Answer: no"))
    assert rewards.tolist() == [1.0, 1.0, 0.0]
    assert infos["success"].tolist() == [True, True, False]
    assert terminations.all() and not truncations.any()


def test_next_step_resets(three: ThreadVectorEnv) -> None:
    three.reset(seed=1)
    before = three.get_attr("task")
    three.step([add(1), "Answer: 1", add(1)])
    observations, rewards, terminations, _, infos = three.step([add(2), "not used", add(2)])
    assert [m.role for m in observations[1]] == ["system", "user"]
    assert not rewards.any() and not terminations.any()
    assert infos["_calls"].tolist() == [True, False, True]
    after = three.get_attr("task")
    assert [a is b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_same_step_resets() -> None:
    vector = ThreadVectorEnv([lambda: SumEnv(max_turns=1)] * 2, "SameStep")
    vector.reset(seed=1)
    observations, _, _, truncations, infos = vector.step([add(1), "Answer: 1"])
    assert truncations.tolist() == [True, False]
    assert [[m.role for m in messages] for messages in observations] == [["system", "user"]] * 2
    assert infos["final_obs"][0][0].content == "1"
    assert infos["final_info"]["calls"][0][0].ok
    vector.close()


def test_disabled_leaves_resets_to_the_caller() -> None:
    vector = ThreadVectorEnv([SumEnv] * 2, AutoresetMode.DISABLED)
    vector.reset(seed=1)
    vector.step(["Answer: 1", add(1)])
    with pytest.raises(VectorError, match="environment 0 of 2: EpisodeOverError"):
        vector.step([add(1), add(1)])
    vector.reset(seed=1)
    vector.step(["Answer: 1", add(1)])
    mask = {"reset_mask": np.array([True, False])}
    _, infos = vector.reset(seed=[5, None], options=mask)
    assert infos["_task_id"].tolist() == [True, False]
    assert "reset_mask" in mask  # the caller's own
    assert vector.step([add(1), add(1)])[0][1][0].content == "2"
    vector.close()


def test_tools_that_wait_wait_together() -> None:
    vector = ThreadVectorEnv([MeetingEnv] * 4)
    vector.reset(seed=1)
    *_, infos = vector.step([[ToolCall("meet", {"number": 1})]] * 4)
    assert len({calls[0].content for calls in infos["calls"]}) == 4
    vector.close()


@pytest.mark.parametrize("kind", [SumEnv, MeetingEnv])
def test_one_that_breaks_is_named(kind: type[SumEnv]) -> None:
    vector = ThreadVectorEnv([kind] * 3)
    vector.reset(seed=1)
    broken = "environment 1 of 3: ConnectionError: the adder is gone (and 1 more failed)"
    with pytest.raises(VectorError) as caught:
        vector.step([add(1), add(500), add(500)])
    assert str(caught.value) == broken
    assert isinstance(caught.value.__cause__, ConnectionError)
    with pytest.raises(EpisodeOverError, match="call reset"):
        vector.step([add(1)] * 3)
    vector.reset()
    assert vector.step([add(1)] * 3)[0][0][0].content == "1"
    vector.close()


def test_what_is_asked_wrongly(three: ThreadVectorEnv) -> None:
    with pytest.raises(EpisodeOverError, match="call reset"):
        three.step(["x"] * 3)
    with pytest.raises(ValueError, match="expected 3 seeds, not 2"):
        three.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="expected 3 booleans, not int64"):
        three.reset(options={"reset_mask": np.array([1, 0, 0])})
    with pytest.raises(VectorError, match="environment 0 of 3: UnknownTaskError: no task 'x'"):
        three.reset(options={"task_id": "x"})
    three.reset(seed=1)
    with pytest.raises(ValueError, match="3 actions, not one text"):
        three.step("abc")
    with pytest.raises(ValueError, match="3 actions, not 2 actions"):
        three.step(["a", "b"])
    with pytest.raises(ValueError, match="at least one environment"):
        ThreadVectorEnv([])
    with pytest.raises(UnknownTaskError, match="no split 'dev'"):
        make_vector(BANK, 2, split="dev")


def test_all_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one of them does not close, and if one of them cannot be made."""
    closed: list[int] = []

    class ClosingEnv(SumEnv):
        def __init__(self, number: int) -> None:
            super().__init__()
            if number == 9:
                raise ConnectionError("no server")
            self.number = number

        def close(self) -> None:
            closed.append(self.number)
            if self.number == 1:
                raise ConnectionError("the server is gone")

    vector = ThreadVectorEnv([partial(ClosingEnv, number) for number in range(3)])
    with pytest.raises(ConnectionError, match="gone"):
        vector.close()
    assert sorted(closed) == [0, 1, 2]
    closed.clear()
    with pytest.raises(ConnectionError, match="no server"):
        ThreadVectorEnv([partial(ClosingEnv, number) for number in (3, 4, 9, 5)])
    assert sorted(closed) == [3, 4]


def test_render() -> None:
    vector = make_vector(BANK, 2, render_mode="ansi")
    vector.reset(seed=1)
    rendered = vector.render()
    assert rendered is not None
    assert [text.partition(" ")[0] for text in rendered] == ["[system]"] * 2
    vector.close()
    assert make_vector(BANK).render() is None
