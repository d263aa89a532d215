"""`journeyman/Analyst-v0`, its interpreter in a real sandbox."""

import itertools
import re

import pytest

from journeyman.envs import make
from journeyman.envs.checker import check
from journeyman.envs.task import answer_text
from journeyman.envs.tasks.analyst import AnalystEnv
from journeyman.envs.types import LEVELS, SPLITS
from journeyman.tools import CallStatus, ToolCall

pytestmark = pytest.mark.usefixtures("bwrap")

LANGUAGE = {
    *("SELECT", "SUM", "MAX", "MIN", "COUNT", "FROM", "WHERE", "JOIN", "ON", "GROUP", "ORDER"),
    *("BY", "DESC", "LIMIT", "sorted", "for", "row", "in", "rows", "len"),
}
"""Words of SQL and Python that gold calls use."""


def test_the_checker_passes() -> None:
    assert [r for r in check("journeyman/Analyst-v0", episodes=1) if not r.passed] == []


def test_gold_of_every_kind_and_none_guesses() -> None:
    """Names and numbers in a call were in a prompt, a result or the rules."""
    with make("journeyman/Analyst-v0") as env:
        for split, level in itertools.product(SPLITS, LEVELS):
            tasks = map(env.load_task, itertools.islice(env.tasks(f"{split}/{level}"), 40))
            by_kind = {task.kind: task for task in tasks}
            assert len(by_kind) >= 5
            for task in by_kind.values():
                env.begin(task)
                known = f"{task.policy} {env.tools}"
                for turn in task.turns:
                    known += turn.prompt
                    for call in turn.gold:
                        for word in re.findall(r"[^\W_]+", str(list(call.arguments.values()))):
                            assert word in known or word in LANGUAGE or len(word) == 1, call
                        known += "".join(m.content for m in env.step([call])[0])
                    assert turn.answer is None or turn.answer in known, task
                    _, reward, _, _, _ = env.step(answer_text(turn))
                assert reward == 1.0, task


def test_a_report_decides() -> None:
    with AnalystEnv() as env:
        tasks = map(env.load_task, env.tasks("test"))
        task = next(t for t in tasks if t.gold[-1].name == "report")
        report = task.gold[-1]
        for others, reward in (
            ((), 1.0),  # how the figure was found does not matter
            ((ToolCall("sql", {"query": "SELECT 1"}),), 1.0),
            ((ToolCall("report", {"name": "other", "value": 1}),), 0.0),
        ):
            env.begin(task)
            for call in (*others, report):
                env.step([call])
            assert env.step("Answer: done")[1] == reward


def test_rows_reach_the_interpreter_and_branches_hold() -> None:
    with AnalystEnv(max_turns=20) as env:
        env.reset(options={"task_id": "train/0"})

        def run(name: str, **arguments: str) -> str:
            (result,) = env.step([ToolCall(name, arguments)])[4]["calls"]
            assert result.ok, result.content
            return str(result.content)

        run("sql", query="SELECT 20")
        branch, before = env.snapshot(), env.state_hash()
        assert run("python", code="x = rows[0][0] + 1\nx") == "21"
        run("sql", query="SELECT 30")
        assert run("python", code="x + rows[0][0]") == "51"
        after = env.state_hash()
        env.restore(branch)
        assert env.state_hash() == before
        assert run("python", code="rows") == "[[20]]"
        env.restore(branch)
        run("python", code="x = rows[0][0] + 1\nx")
        run("sql", query="SELECT 30")
        run("python", code="x + rows[0][0]")
        assert env.state_hash() == after
        (failed,) = env.step([ToolCall("python", {"code": "y = 5; 1 / 0"})])[4]["calls"]
        assert failed.call.status is CallStatus.TOOL_ERROR
        assert run("python", code="y") == "5"
