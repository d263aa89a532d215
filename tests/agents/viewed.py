"""Runs to look at: small, made by hand, with whatever a page can show."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from journeyman.agents.evaluation.records import TRAINING, EpisodeFile, Played
from journeyman.agents.evaluation.scores import (
    PartScore,
    Scores,
    StepScores,
    StepWorth,
    TreeNode,
)
from journeyman.envs import Episode, Message, Step, StopReason
from journeyman.envs.shortfall import AnswerCheck, Difference, Shortfall
from journeyman.envs.types import Usage
from journeyman.tools import CallStatus, ToolCall, ToolResult

ENVS = ("journeyman/Bank-v0", "journeyman/Orders-v0")
KINDS = ("transfer", "balance", "cancel")
HOSTILE = (
    "</script><script>document.title='owned'</script><!-- <img src=x onerror=alert(1)> &lt;b&gt; "
)
BIDI = "\u202eowned\u202c\u2028\x1b[2J"
GOLD = ToolCall("transfer", {"source": "A1", "target": "A2", "amount": 5})


def called(text: str, name: str, arguments: Mapping[str, Any], **changes: Any) -> ToolResult:
    """A call that a turn's text holds as JSON."""
    written = json.dumps({"name": name, "arguments": arguments})
    start = text.index(written)
    status = changes.get("status", CallStatus.OK)
    call = ToolCall(name, arguments, status, span=(start, start + len(written)))
    return ToolResult(call, changes.get("content", '{"ok": true}'), changes.get("seconds", 0.01))


def played(number: int, row: str, success: bool, **changes: Any) -> Played:
    """An episode of two turns: a call of the right or a wrong amount, and an answer."""
    amount = 5 if success else 6
    arguments = {"source": "A1", "target": "A2", "amount": amount}
    call = json.dumps({"name": "transfer", "arguments": arguments})
    texts = (f"I pay. {call}", changes.pop("answer", "Answer: done"))
    status = CallStatus.OK if success or number % 2 else CallStatus.TOOL_ERROR
    results = (called(texts[0], "transfer", arguments, status=status),)
    usage = changes.pop("usage", None)
    steps = (
        Step((3, 7), texts[0], results, {}, False, (_tool(results[0]),), usage=usage),
        Step((8, 11), texts[1], (), {"answer": ((8, 10),)}),
    )
    lacks = Shortfall(
        (Difference("accounts.A2.balance", "106", "105"), Difference("transfers.T2", "6", None)),
        (AnswerCheck("done", "T1", False),),
    )
    level = ("", "medium/", "hard/")[number % 3]
    fields: dict[str, Any] = {
        "env_id": ENVS[number % 2],
        "task_id": f"test/{level}{number}",
        "tokens": tuple(range(12)),
        "logprobs": (0.0,) * 12,
        "mask": tuple(3 <= place < 7 or 8 <= place < 11 for place in range(12)),
        "steps": steps,
        "stop": StopReason.ANSWERED,
        "reward": float(success),
        "success": success,
        "opening": (Message("system", "You pay bills."), Message("user", f"Pay bill {number}.")),
        "score": 1.0 if success else 0.5,
        "gold": ((GOLD,),),
        "shortfall": None if success else lacks,
    }
    known = {name: changes.pop(name) for name in ("step", "scores", "attempt") if name in changes}
    return Played(row, Episode(**(fields | changes)), KINDS[number % 3], **known)


def _tool(result: ToolResult) -> Message:
    return Message("tool", result.content, result.call.name)


def scores(text: str, values: tuple[float, float, float] | None = (0.8, 0.1, 0.0)) -> Scores:
    """What teacher, credit and search say of such an episode, whose first turn has this text."""
    worth = [None, None]
    if values is not None:
        worth = [StepWorth(a, 0.1, b, 0.05, 12.0, b - a) for a, b in pairwise(values)]
    steps = (
        StepScores(1.2, -0.4, {"turn": PartScore(-1.1, 1.2, 4)}, value=worth[0]),
        StepScores(0.3, 0.1, {"turn": PartScore(0.05, 0.1, 3)}, value=worth[1]),
    )
    none, third = (0.0,) * 3, len(text) // 3
    return Scores(
        steps,
        (*none, 1.0, 1.5, 1.2, 1.1, 0.0, 0.3, 0.3, 0.3, 0.0),
        (*none, -0.4, -0.4, -0.4, -0.4, 0.0, 0.1, 0.1, 0.1, 0.0),
        (0, 0, 0, third, third, len(text) - 2 * third, 0, 0, 8, 4, 0, 0),
        (*none, 0.0, -2.5, 0.7, -0.2, 0.0, 0.1, 0.0, 0.0, 0.0),
        None if values is None else tree(),
    )


def tree() -> TreeNode:
    """Two ways from the task, of which the second solves it."""
    lost = TreeNode(2, 0.0, 0.1, 3, 0.0, "Answer: done", stop="answered", own=True)
    won = TreeNode(2, 1.0, 0.0, 2, 1.0, "Answer: T1", stop="answered", by="teacher")
    ways = (
        TreeNode(1, 0.1, 0.05, 4, 0.1, "transfer 6", ("ok",), own=True, children=(lost,)),
        TreeNode(1, 0.9, 0.1, 3, 0.9, f"transfer 5 {HOSTILE}", ("ok",), children=(won,)),
    )
    return TreeNode(0, 0.8, 0.1, 8, 0.5, own=True, children=ways)


def small_run(folder: Path, tasks: int = 12) -> Path:
    """A trained run: two scripts, two students, training with scores, a broken episode, curves."""
    folder.mkdir(parents=True, exist_ok=True)
    usage = Usage(100, 20, 0.01)
    rows = {
        "no-op": lambda n: False,
        "oracle": lambda n: True,
        "student before": lambda n: n % 3 == 0,
        "student after": lambda n: n % 4 != 1,
    }
    lines = [
        played(n, row, solved(n), usage=usage if row.startswith("student") else None)
        for row, solved in rows.items()
        for n in range(tasks)
    ]
    lines.append(
        played(tasks, "student after", False, stop=StopReason.INFRA_ERROR, error="it broke")
    )
    lines.append(played(tasks + 1, "student after", False, answer=f"{HOSTILE}{BIDI}"))
    for n, told in ((0, (0.8, 0.1, 0.0)), (1, None)):
        it = played(n, TRAINING, False, step=1)
        text = it.episode.steps[0].text
        lines.append(played(n, TRAINING, False, step=1, scores=scores(text, told)))
    EpisodeFile(folder).append(lines)
    curve = [
        {"step": n, "loss": 1 / n, "eval/success": n / 10, "eval/low": n / 12, "eval/high": n / 9}
        for n in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in curve))
    return folder
