"""What is recorded of an episode."""

import pytest

from journeyman.envs import Episode, Step, StopReason
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
