"""What is recorded of an episode."""

import dataclasses
import json
from typing import Any

import pytest

from journeyman.envs import Episode, Message, Step, StopReason
from journeyman.tools import CallStatus, ToolCall, ToolResult


def episode(tokens: int = 4, logprobs: int = 4, mask: int = 4) -> Episode:
    results = [ToolResult(ToolCall(name, status=CallStatus.OK), "1") for name in "abc"]
    return Episode(
        env_id="acme/Sum-v0",
        task_id="train/0",
        tokens=(1,) * tokens,
        logprobs=(0.0,) * logprobs,
        mask=(True,) * mask,
        steps=(Step((0, 1), "a b", tuple(results[:2])), Step((2, 3), "c", (results[2],))),
        stop=StopReason.ANSWERED,
    )


def test_calls_come_in_order() -> None:
    assert [r.call.name for r in episode().calls] == ["a", "b", "c"]


@pytest.mark.parametrize("wrong", ["tokens", "logprobs", "mask"])
def test_one_entry_a_token(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"episode train/0: \d tokens, \d logprobs and \d mask"):
        episode(**{wrong: 3})


# --- on disk --------------------------------------------------------------------------------------

CALL = ToolCall("a", {"x": [1, "ü"]}, CallStatus.TOOL_ERROR, "no x", (0, 9), (1, 2))


def played(**changes: Any) -> Episode:
    result = ToolResult(CALL, '{"error": "no x"}', 0.25)
    said = Message("tool", '{"error": "no x"}', "a")
    first = Step((2, 5), "a b", (result,), {"call": ((2, 4),), "stop": ((4, 5),)}, True, (said,))
    last = Step((6, 8), "c", (), {"answer": ((6, 7),), "stop": ((7, 8),)})
    episode = Episode(
        env_id="acme/Sum-v0",
        task_id="train/0",
        tokens=(0, 70_000, *range(2, 8)),
        logprobs=(0.0, 0.0, -0.5, -1.25, 0.0, 0.0, -3.0, -0.0625),
        mask=(False, False, True, True, False, False, True, True),
        steps=(first, last),
        stop=StopReason.ANSWERED,
        reward=1.0,
        success=True,
        state_hash="ab",
        first_step=1,
        opening=(Message("system", "s"), Message("user", "u")),
        seed=2**63 + 1,
    )
    return dataclasses.replace(episode, **changes)


@pytest.mark.parametrize(
    "episode",
    [
        played(),
        played(stop=StopReason.INFRA_ERROR, error="it broke", success=False),
        played(steps=(Step((2, 5), "", (), {}, reply=(Message("user", "go on"),)),)),
        played(steps=(Step((2, 5), "", (ToolResult(CALL, "{}"),)),)),  # nobody said the result
        played(tokens=(), logprobs=(), mask=(), steps=(), opening=()),
        episode(),
    ],
)
def test_an_episode_survives_the_disk(episode: Episode) -> None:
    read = Episode.from_dict(json.loads(json.dumps(episode.to_dict(), allow_nan=False)))
    assert read == episode
    assert read.seed == episode.seed
    assert [r.latency_s for r in read.calls] == [r.latency_s for r in episode.calls]


def test_results_are_written_once() -> None:
    assert json.dumps(played().to_dict()).count("content") == 3  # the opening's two, and the result


def test_an_episodes_messages_are_the_conversation() -> None:
    said = [(m.role, m.content) for m in played().messages]
    assert said == [
        ("system", "s"),
        ("user", "u"),
        ("assistant", "a b"),
        ("tool", '{"error": "no x"}'),
        ("assistant", "c"),
    ]
