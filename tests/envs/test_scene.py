"""A plan is played as it is written, and says so where its author was wrong."""

import random

import pytest
from immutables import Map

from journeyman.envs.task import answer_text
from journeyman.envs.tasks.scene import Plan, Scene, rules
from journeyman.tools.apis import bank
from journeyman.tools.apis.bank import Account, BankState

ADA = Account("Ada", 50, "frozen")


@pytest.fixture
def scene() -> Scene:
    return Scene(random.Random(0), "train")


@pytest.fixture
def plan(scene: Scene) -> Plan:
    return Plan(scene, bank.TOOLS, BankState(Map({"A1": ADA})))


def test_a_plan_plays_what_it_writes(plan: Plan) -> None:
    plan.user_says("Unfreeze {A1}.")
    assert plan.call("unfreeze", account="A1") == {"account": "A1", "status": "active"}
    plan.answer(7)
    plan.user("Unfreeze {a} again.", "Once more: unfreeze {a}.", a="A1")
    assert "already active" in plan.refused("unfreeze", account="A1")
    assert "already active" in plan.attempt("unfreeze", account="A1")["error"]
    assert plan.attempt("freeze", account="A1")["status"] == "frozen"
    plan.done("frozen")
    plan.user_says("Thanks.")
    plan.done()
    task = plan.task("twice", "Be quick.")
    assert (task.id, task.kind, task.policy) == ("", "twice", "Be quick.")
    assert (task.prompt, task.answer, len(task.gold)) == ("Unfreeze {A1}.", "7", 1)
    assert task.state.accounts["A1"] is ADA  # the state the episode starts with
    second, third = task.then
    assert second.prompt in {"Unfreeze A1 again.", "Once more: unfreeze A1."}
    assert (second.answer, answer_text(second)) == (None, "Answer: frozen")
    assert (third.answer, answer_text(third)) == (None, "Answer: done")
    assert [call.name for call in second.gold] == ["unfreeze", "unfreeze", "freeze"]


def test_words_that_are_given_draw_nothing(scene: Scene, plan: Plan) -> None:
    before = scene.rng.getstate()
    plan.user_says("Hello.")
    assert scene.rng.getstate() == before
    plan.user("Hello.")
    assert scene.rng.getstate() != before


def test_a_refusal_must_be_expected(plan: Plan) -> None:
    with pytest.raises(AssertionError, match=r"freeze.*A1.*expected ok, not tool_error"):
        plan.call("freeze", account="A1")


def test_an_expected_refusal_must_come(plan: Plan) -> None:
    with pytest.raises(AssertionError, match=r"unfreeze.*A1.*expected tool_error, not ok"):
        plan.refused("unfreeze", account="A1")


def test_an_attempt_must_reach_the_tool(plan: Plan) -> None:
    with pytest.raises(AssertionError, match="expected ok or tool_error, not unknown_tool"):
        plan.attempt("thaw", account="A1")
    with pytest.raises(AssertionError, match="not invalid_arguments"):
        plan.attempt("unfreeze", account=1)


def test_rules_come_in_any_order(scene: Scene) -> None:
    found = {rules(scene, "First.", "Second.") for _ in range(20)}
    assert found == {"Rules:\n- First.\n- Second.", "Rules:\n- Second.\n- First."}
