"""Students that fail in one way each are diagnosed as exactly that, in real environments."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from journeyman.agents.evaluation.failures import RULES, failure
from journeyman.agents.evaluation.metrics import summarise
from journeyman.agents.evaluation.report import breakdown
from journeyman.agents.evaluation.transcript import why
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.scripted import Script, ScriptedPlayer, no_op, oracle
from journeyman.agents.students.spoken import plain_dialect
from journeyman.envs import Episode, Step, StopReason, ToolEnv, answer_text, env_class, env_ids
from journeyman.envs.shortfall import AnswerCheck, Difference, Shortfall
from journeyman.tools import CallStatus, ToolCall, ToolResult

BANK = "journeyman/Bank-v0"
ENV_IDS = (BANK, "journeyman/Orders-v0", "journeyman/Calendar-v0", "journeyman/Mail-v0")
BUILTIN = tuple(i for i in env_ids() if "/BFCL" not in i and "/Tau2" not in i)
Said = Iterator[ToolCall | str]


def play(
    script: Script, env_id: str, max_turns: int = 40, context: int = 1 << 20, levels: int = 3
) -> list[Episode]:
    """Two tasks of each level and of two splits."""
    refs = [
        TaskRef(env_id, f"{split}{'' if level == 'easy' else f'/{level}'}/{number}", number)
        for split in (
            ("test",) if "/BFCL" in env_id or "/Tau2" in env_id else ("test", "validation")
        )
        for level in env_class(env_id).levels[:levels]
        for number in range(2)
    ]
    player = ScriptedPlayer(plain_dialect(), script, context)
    return rollout(player, refs, env_kwargs={"max_turns": max_turns})


def in_each_turn(
    said: Callable[[ToolEnv, tuple[ToolCall, ...]], Said], answer: str | None = None
) -> Script:
    """A student that says something of its own in place of the gold calls of each user turn.

    Args:
        said: Its turns, by the environment and the gold calls.
        answer: What it answers where a value is asked for, with the right one for "{}"; None
            answers right.
    """

    def script(env: ToolEnv) -> Said:
        for turn in env.task.turns:
            yield from said(env, turn.gold)
            yield (
                answer_text(turn)
                if turn.answer is None or answer is None
                else (f"Answer: {answer.format(turn.answer)}")
            )

    return script


def changed(call: ToolCall) -> ToolCall:
    """The call with another value of its last argument."""
    name = list(call.arguments)[-1]
    value = call.arguments[name]
    new: object = f"{value} 0"
    if isinstance(value, int):
        new = not value if isinstance(value, bool) else value + 1
    elif isinstance(value, list):
        new = [*value, "Nobody"]
    return replace(call, arguments={**call.arguments, name: new})


def instead(gold: tuple[ToolCall, ...], new: Callable[[ToolCall], list[ToolCall]]) -> Said:
    """The gold calls, with others for the last that is meant to be accepted and has arguments."""
    at = max(
        (i for i, c in enumerate(gold) if c.status is CallStatus.PARSED and c.arguments), default=-1
    )
    for i, call in enumerate(gold):
        yield from new(call) if i == at else [call]


def other_tool(env: ToolEnv, call: ToolCall) -> ToolCall:
    """A tool that no gold call of the task calls, with the arguments of this one."""
    used = {c.name for turn in env.task.turns for c in turn.gold}
    name = next((t.name for t in env.tools if t.name not in used), "no_such_tool")
    return replace(call, name=name)


def garbled(env: ToolEnv, gold: tuple[ToolCall, ...]) -> Said:
    """The calls with a brace too few."""
    for call in gold:
        yield plain_dialect().write_call(call).replace("}}", "}", 1)


def refused(env: ToolEnv, gold: tuple[ToolCall, ...]) -> Said:
    """A call that no tool accepts, three times."""
    for call in gold[:1]:
        wrong = replace(call, arguments=dict.fromkeys(call.arguments, "nowhere"))
        wrong = wrong if call.arguments else replace(call, arguments={"place": "nowhere"})
        yield from [wrong] * 3


STUDENTS: dict[str, Script] = {
    "wrong argument": in_each_turn(
        lambda env, gold: instead(gold, lambda call: [changed(call)]), "unknown"
    ),
    "wrong tool": in_each_turn(
        lambda env, gold: instead(gold, lambda call: [other_tool(env, call)]), "unknown"
    ),
    "missing calls": in_each_turn(lambda env, gold: instead(gold, lambda call: []), "unknown"),
    "needless calls": in_each_turn(
        lambda env, gold: instead(gold, lambda call: [call, changed(call)])
    ),
    "malformed calls": in_each_turn(garbled, "unknown"),
    "refused calls repeated": in_each_turn(refused, "unknown"),
    "silent": lambda env: iter(["" for _ in env.task.turns]),
    "wrong answer": in_each_turn(lambda env, gold: iter(gold), "none of them"),
    "answer in other words": in_each_turn(lambda env, gold: iter(gold), "The answer is {}."),
}

ANYWHERE = ("silent", "wrong answer", "answer in other words")
"""Students that need no call to change."""
SOME_HARM = ("needless calls", "wrong answer", "answer in other words")
"""Students that some tasks forgive: where no value is asked for, where a second call is refused."""


@pytest.mark.parametrize("name", STUDENTS)
def test_a_planted_student_is_diagnosed_as_what_it_is(name: str) -> None:
    for env_id in ENV_IDS:
        played = [e for e in play(STUDENTS[name], env_id) if name in ANYWHERE or to_do(e)]
        failed = [e for e in played if not e.success]
        assert len(failed) >= (1 if name in SOME_HARM else len(played)), env_id
        metrics = summarise(played)
        assert metrics.by_failure == {name: len(failed)}, env_id
        assert f"{name}  " in breakdown({"student": metrics})


def to_do(episode: Episode) -> bool:
    """Every user turn has a call to make that is meant to be accepted, with arguments to change."""
    assert episode.gold is not None
    return all(any(c.status is CallStatus.PARSED and c.arguments for c in t) for t in episode.gold)


def test_an_episode_that_comes_to_its_turn_limit_on_the_right_way() -> None:
    for env_id in ENV_IDS:
        limits = Counter(failure(e) for e in play(oracle, env_id, max_turns=1) if to_do(e))
        assert set(limits) == {"turn limit"}


def test_calls_that_no_task_needs_until_the_turn_limit() -> None:
    def script(env: ToolEnv) -> Said:
        yield from (call for turn in env.task.turns[:1] for call in turn.gold)
        for _ in range(40):
            yield from env.task.turns[0].gold[:1]

    found = Counter(failure(e) for e in play(script, BANK) if to_do(e) and len(e.gold or ()) == 1)
    # Where the first call is a transfer, it is made until the money is spent.
    assert set(found) <= {"needless calls", "refused calls repeated"}
    assert found["needless calls"] >= 2


def test_a_prompt_that_leaves_no_room_is_a_full_context() -> None:
    assert {failure(e) for e in play(oracle, BANK, context=64)} == {"context full"}


def test_broken_and_solved_episodes() -> None:
    episode = play(oracle, BANK)[0]
    assert failure(episode) is None
    broken = replace(episode, stop=StopReason.INFRA_ERROR, success=False, error="gone")
    assert failure(broken) == "infrastructure"
    assert summarise([broken]).by_failure == {"infrastructure": 1}


@pytest.mark.parametrize("env_id", BUILTIN)
def test_the_rows_of_oracle_and_no_op_print_what_is_known(env_id: str) -> None:
    rows = {"no-op": play(no_op, env_id, levels=1), "oracle": play(oracle, env_id, levels=1)}
    metrics = {
        name: summarise(played, {(e.env_id, e.task_id): "any" for e in played})
        for name, played in rows.items()
    }
    told = [line.split() for line in breakdown(metrics).splitlines()]
    count = str(len(rows["no-op"]))
    assert ["failure", "no-op", "oracle"] in told
    assert ["missing", "calls", count, "0"] in told
    assert [env_id, count, "0.0%", "100.0%"] in told
    for episode in rows["no-op"]:
        lacks = episode.shortfall
        assert lacks is not None
        assert lacks.state or not all(check.right for check in lacks.answers)
        assert any(line.startswith("  ") for line in why(episode))
    assert {e.shortfall for e in rows["oracle"]} == {None}
    assert {e.score for e in rows["oracle"]} == {1.0}
    assert {e.score for e in rows["no-op"]} == {0.0}


@pytest.mark.benchmark
@pytest.mark.parametrize("env_id", [i for i in env_ids() if "/BFCL" in i or "/Tau2" in i])
def test_benchmarks_say_why_too(env_id: str) -> None:
    for script in (no_op, oracle):
        found = Counter(failure(e) for e in play(script, env_id))
        assert set(found) <= {None, "missing calls"}


def test_every_failure_is_documented() -> None:
    docs = Path(__file__).parents[2] / "docs" / "evaluation.md"
    if not docs.exists():
        pytest.skip("the docs are not here")
    _, _, section = docs.read_text(encoding="utf-8").partition("## Why an episode failed")
    lines = [line.split("|") for line in section.partition("\n## ")[0].splitlines()]
    documented = [n.strip(" `") for c in lines if len(c) == 4 for n in c[1].split(",")]
    names = ["infrastructure", *RULES, "unexplained"]
    assert [name for name in documented if name in names] == names  # in their order


# Hand-made episodes: what the scripts above do not come to.


def made(
    calls: Sequence[ToolCall],
    gold: Sequence[ToolCall],
    state: bool = False,
    answer: tuple[str | None, str | None] = ("done", None),
    stop: StopReason = StopReason.ANSWERED,
) -> Episode:
    """A failed episode of one call a turn."""
    steps = tuple(Step((0, 0), "", (ToolResult(call, "{}"),)) for call in calls)
    difference = (Difference("shelf", "1", "2"),) if state else ()
    lacks = Shortfall(difference, (AnswerCheck(*answer, right=answer[1] is None),))
    last = Step((0, 0), answer[0] or "")
    return Episode(
        "x", "test/0", (), (), (), (*steps, last), stop, gold=(tuple(gold),), shortfall=lacks
    )


def call(name: str, status: CallStatus = CallStatus.PARSED, **arguments: object) -> ToolCall:
    return ToolCall(name, arguments, status)


OK, NO = CallStatus.OK, CallStatus.TOOL_ERROR


@pytest.mark.parametrize(
    ("expected", "episode"),
    [
        (  # the same calls, the other way round
            "wrong order",
            made([call("b", OK), call("a", OK)], [call("a"), call("b")], state=True),
        ),
        (  # tried, turned down, left at that
            "refused calls",
            made([call("a", OK), call("b", NO)], [call("a"), call("b")], state=True),
        ),
        (  # malformed once, but gotten over: the wrong value is to blame
            "wrong argument",
            made(
                [call("", CallStatus.INVALID_JSON), call("a", OK, x=2)],
                [call("a", x=1)],
                state=True,
            ),
        ),
        (  # a call that is meant to be refused and was not tried is not missed
            "wrong answer",
            made([call("b", OK)], [call("a", NO), call("b")], answer=("6", "7")),
        ),
        (  # 1 is not True
            "wrong argument",
            made([call("a", OK, x=True)], [call("a", x=1)], state=True),
        ),
        (  # and 1 is 1.0, as it is to `call_recall`
            "wrong answer",
            made([call("a", OK, x=1.0)], [call("a", x=1)], answer=("6", "7")),
        ),
        (  # refused twice, then something else was accepted
            "wrong tool",
            made([call("a", NO), call("a", NO), call("c", OK)], [call("b")], state=True),
        ),
        ("wrong program", made([call("python", OK, code="1")], [call("python", code="2")], True)),
        (
            "wrong answer",
            made([call("python", OK, code="1")], [call("python", code="2")], answer=("1", "2")),
        ),
        ("missing calls", made([], [call("python", code="2")], answer=("1", "2"))),
        ("unexplained", made([call("a", OK)], [call("a")])),
        ("context full", made([], [call("a")], stop=StopReason.CONTEXT_FULL)),
    ],
)
def test_the_first_rule_that_holds(expected: str, episode: Episode) -> None:
    assert failure(episode) == expected


def test_an_episode_of_an_older_file_is_not_guessed_at() -> None:
    episode = replace(made([call("a", OK)], []), gold=None, shortfall=None)
    assert failure(episode) == "unexplained"
    assert failure(replace(episode, stop=StopReason.MAX_TURNS)) == "turn limit"


def test_a_turn_that_was_cut_off() -> None:
    episode = made([call("a", OK)], [call("a")], answer=("The ans", "7"))
    cut = (*episode.steps[:-1], replace(episode.steps[-1], truncated=True))
    assert failure(replace(episode, steps=cut)) == "cut off"


def test_sets_among_arguments_are_compared_too() -> None:
    wanted = [call("a", x={1})]
    assert failure(made([call("a", OK, x={1})], wanted, answer=("6", "7"))) == "wrong answer"
    assert failure(made([call("a", OK, x={2})], wanted, state=True)) == "wrong argument"
