"""What is asked wrongly gets a clear error, and the environment is as usable as before."""

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from journeyman.envs import make
from journeyman.envs.core import ToolEnv
from journeyman.envs.errors import (
    BadActionError,
    EnvBusyError,
    EpisodeOverError,
    UnknownEnvError,
    UnknownTaskError,
)
from journeyman.envs.task import answer_text
from journeyman.tools import ToolCall, ToolDefinitionError, render_hermes, tool

from .conftest import SumEnv

_inside, _go_on = threading.Event(), threading.Event()


@tool
def linger(state: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Stay until told to go on."""
    _inside.set()
    assert _go_on.wait(timeout=60)
    return state, "done"


class LingeringEnv(SumEnv):
    toolset = (*SumEnv.toolset, linger)
    waits = True


@pytest.fixture
def env() -> Iterator[LingeringEnv]:
    with LingeringEnv() as env:
        env.reset(options={"task_id": "train/0"})
        yield env


def over(env: ToolEnv) -> None:
    env.step("Answer: nothing")
    env.step("Answer: again")


def untyped(env: ToolEnv) -> None:
    @tool
    def look(state: Any, where) -> Any:  # type: ignore[no-untyped-def]
        """Look.

        Args:
            where: Where.
        """


def busy(act: Callable[[ToolEnv], object]) -> Callable[[ToolEnv], None]:
    """Act while another thread's step is under way."""

    def bad(env: ToolEnv) -> None:
        _inside.clear()
        _go_on.clear()
        player = threading.Thread(target=env.step, args=([ToolCall("linger")],))
        player.start()
        try:
            assert _inside.wait(timeout=60)
            act(env)
        finally:
            _go_on.set()
            player.join()

    return bad


BUSY = "while another thread plays on this LingeringEnv: one env plays one episode at a time"
RAISED: dict[str, tuple[Callable[[ToolEnv], object], type[Exception], str]] = {
    "unknown id": (
        lambda env: make("journeyman/Bnak-v0"),
        UnknownEnvError,
        "no environment 'journeyman/Bnak-v0'; did you mean 'journeyman/Bank-v0'?",
    ),
    "bad split": (
        lambda env: env.reset(options={"split": "dev"}),
        UnknownTaskError,
        "no split 'dev'; there are: train, validation, test",
    ),
    "bad level": (
        lambda env: env.reset(options={"split": "test/hard"}),
        UnknownTaskError,
        "no level 'hard' in LingeringEnv; there are: easy",
    ),
    "bad task id": (
        lambda env: env.reset(options={"task_id": "test/-1"}),
        UnknownTaskError,
        "no task 'test/-1': write <split>/<number> or <split>/<level>/<number>, e.g. test/0",
    ),
    "endless task id": (
        lambda env: env.reset(options={"task_id": "test/" + "9" * 5000}),
        UnknownTaskError,
        f"no task 'test/{'9' * 75}': write <split>/<number> or <split>/<level>/<number>, "
        "e.g. test/0",
    ),
    "bad option": (
        lambda env: env.reset(options={"taskid": "test/1"}),
        ValueError,
        "no option 'taskid'; there are: task_id, split",
    ),
    "bad action": (
        lambda env: env.step({"name": "add"}),  # type: ignore[arg-type]
        BadActionError,
        "an action is the assistant's text or a list of ToolCall, not dict",
    ),
    "untyped parameter": (
        untyped,
        ToolDefinitionError,
        "tool 'look': parameter 'where' has no type; write e.g. where: str.",
    ),
    "finished episode": (
        over,
        EpisodeOverError,
        "the episode is over: call reset() before step()",
    ),
    "two threads step": (busy(lambda env: env.step("Answer: 1")), EnvBusyError, f"step() {BUSY}"),
    "two threads reset": (busy(lambda env: env.reset(seed=1)), EnvBusyError, f"begin() {BUSY}"),
    "restore under way": (
        busy(lambda env: env.restore(env.snapshot())),
        EnvBusyError,
        f"restore() {BUSY}",
    ),
}


@pytest.mark.parametrize("name", RAISED)
def test_the_caller_is_told(env: LingeringEnv, name: str) -> None:
    act, kind, message = RAISED[name]
    with pytest.raises(kind) as caught:
        act(env)
    assert str(caught.value).startswith(message)
    plays_on(env)


ANSWERED = {
    "a megabyte of text": (ToolCall("add", {"number": "1" * 2**20}), "longer than 100000 char"),
    "another tool's argument": (ToolCall("add", {"value": 1}), "add has no argument 'value'"),
    "a tool nobody has": (ToolCall("ad", {"number": 1}), "Did you mean add?"),
}


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("render", [lambda call: [call], render_hermes], ids=["calls", "text"])
def test_the_model_is_told(env: LingeringEnv, name: str, render: Any) -> None:
    call, message = ANSWERED[name]
    before = env.snapshot().state
    messages, _, terminated, truncated, info = env.step(render(call))
    assert message in messages[0].content
    assert len(messages[0].content) < 500
    assert not info["calls"][0].ok
    assert not terminated and not truncated
    assert env.snapshot().state == before
    plays_on(env)


def plays_on(env: ToolEnv) -> None:
    """A whole episode, solved."""
    env.reset(options={"task_id": "train/0"})
    for call in env.oracle():
        env.step([call])
    *_, info = env.step(answer_text(env.user_turn))
    assert info["success"]


def test_an_env_can_be_copied(env: LingeringEnv) -> None:
    plays_on(copy.deepcopy(env))
