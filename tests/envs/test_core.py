"""`ToolEnv`: episodes, branches, hashes, and what is said to a caller who errs."""

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from immutables import Map

from journeyman.envs import AssistantTurn, Message, Snapshot, Split, Task, ToolEnv, make
from journeyman.envs.errors import BadActionError, EnvError, EpisodeOverError, UnknownTaskError
from journeyman.envs.hashing import canonical, digest
from journeyman.envs.task import extract_answer, matches, normalise
from journeyman.tools import CallStatus, ToolCall, render_hermes

from .conftest import BUILTIN, SumEnv, add


def adding(number: object) -> str:
    return render_hermes(ToolCall("add", {"number": number}))


# Episodes


@pytest.mark.parametrize("env_id", BUILTIN)
@pytest.mark.parametrize("render_mode", [None, "ansi"])
def test_gymnasium_has_no_objection(env_id: str, render_mode: str | None) -> None:
    check_env(make(env_id, render_mode=render_mode))


def test_reset() -> None:
    env = SumEnv()
    observation, info = env.reset(options={"task_id": "validation/3"})
    system, user = observation
    assert (system.role, system.content) == ("system", env.system)
    assert (user.role, user.content) == ("user", env.task.prompt)
    assert info == {"task_id": "validation/3", "kind": "sum"}
    assert env.oracle() == list(env.task.gold)
    assert [t.name for t in env.tools] == ["add"]


def test_success(sum_env: SumEnv) -> None:
    for call in sum_env.oracle():
        messages, reward, terminated, truncated, info = sum_env.step(f"So: {render_hermes(call)}")
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert [m.role for m in messages] == ["tool"]
        assert messages[0].name == "add"
        assert not info["success"]
        (result,) = info["calls"]
        assert result.call.span == (4, 4 + len(render_hermes(call)))
    messages, reward, terminated, truncated, info = sum_env.step(f"Answer: {sum_env.task.answer}")
    assert (messages, reward, terminated, truncated) == ((), 1.0, True, False)
    assert info == {"calls": (), "success": True, "task_id": "train/0", "score": 1.0}


def test_right_answer_wrong_state(sum_env: SumEnv) -> None:
    _, reward, terminated, _, info = sum_env.step(f"Answer: {sum_env.task.answer}")
    assert (reward, terminated, info["success"]) == (0.0, True, False)


def test_right_state_wrong_answer(sum_env: SumEnv) -> None:
    sum_env.step(sum_env.oracle())
    assert sum_env.step("Answer: 1")[1] == 0.0


def test_parallel_calls_run_in_order(sum_env: SumEnv) -> None:
    messages, *_, info = sum_env.step(adding(1) + adding(404) + adding(2) + "<tool_call>")
    assert [m.content for m in messages[:3]] == ["1", '{"error": "no such number"}', "3"]
    assert [r.call.status for r in info["calls"]] == [
        CallStatus.OK,
        CallStatus.TOOL_ERROR,
        CallStatus.OK,
        CallStatus.UNCLOSED,
    ]
    assert messages[3].name is None  # nobody knows whom the call was for


def test_text_and_calls_are_the_same_action() -> None:
    one, other = SumEnv(), SumEnv()
    one.reset(seed=3)
    other.reset(seed=3)
    for call in one.oracle():
        seen, *_ = one.step([call])
        seen_too, *_ = other.step(render_hermes(call))
        assert seen == seen_too
        assert one.state_hash() == other.state_hash()
        assert one.snapshot().transcript == other.snapshot().transcript


def test_a_turn_as_somebody_read_it() -> None:
    """Its calls are made and its answer is taken, whatever its text looks like."""
    one, other = SumEnv(render_mode="ansi"), SumEnv()
    one.reset(seed=3)
    other.reset(seed=3)
    for call in one.oracle():
        text = f"call:{call.name}"
        seen = one.step(AssistantTurn(text, (call,), "Answer: 0"))  # a call is no answer
        assert seen[:4] == other.step([call])[:4]
        assert str(one.render()).endswith(f"[assistant] {text}\n[tool] {seen[0][0].content}")
    assert one.state_hash() == other.state_hash()
    text = f"{adding(1)}Answer: 0"
    end = one.step(AssistantTurn(text, (), f"Answer: {one.task.answer}"))
    assert end[1:4] == (1.0, True, False)
    assert end[4]["calls"] == ()
    assert one.snapshot().transcript[-1] == Message("assistant", text)


def test_turn_limit() -> None:
    env = SumEnv(max_turns=2)
    env.reset(seed=0)
    assert env.step(adding(1))[2:4] == (False, False)
    assert env.step(adding(1))[2:4] == (False, True)
    with pytest.raises(EpisodeOverError):
        env.step(adding(1))


def test_an_answer_in_the_last_turn_counts() -> None:
    env = SumEnv(max_turns=1)
    env.reset(seed=0)
    assert env.step("Answer: ?")[2:4] == (True, False)


def test_render(sum_env: SumEnv) -> None:
    assert sum_env.render() is None
    env = SumEnv(render_mode="ansi")
    env.reset(options={"task_id": "train/0"})
    env.step(adding(5))
    assert env.render() == (
        f"[system] {env.system}\n[user] {env.task.prompt}\n[assistant] {adding(5)}\n[tool] 5"
    )


def test_two_episodes_of_one_env_leave_nothing_behind(sum_env: SumEnv) -> None:
    opening = sum_env.state_hash()
    sum_env.step(adding(5))
    sum_env.reset(options={"task_id": "train/0"})
    assert sum_env.state_hash() == opening


# Errors: each names the value, and the env can be used afterwards


def works(env: SumEnv) -> None:
    env.reset(options={"task_id": "test/1"})
    env.step(env.oracle())
    assert env.step(f"Answer: {env.task.answer}")[1] == 1.0


def test_step_out_of_an_episode() -> None:
    env = SumEnv()
    with pytest.raises(EpisodeOverError, match=r"call reset\(\) before step\(\)"):
        env.step("hello")
    for attempt in (env.snapshot, env.state_hash, env.oracle, lambda: env.task):
        with pytest.raises(EpisodeOverError, match=r"no task yet: call reset\(\) first"):
            attempt()
    works(env)
    with pytest.raises(EpisodeOverError, match="the episode is over"):
        env.step("hello")
    works(env)


@pytest.mark.parametrize("action", [None, 3, {"name": "add"}, ["add"], b"", b"add", [None]])
def test_bad_action(sum_env: SumEnv, action: Any) -> None:
    before = sum_env.state_hash()
    with pytest.raises(
        BadActionError, match=f"text or a list of ToolCall, not {type(action).__name__}"
    ):
        sum_env.step(action)
    assert sum_env.state_hash() == before
    sum_env.step(adding(1))
    works(sum_env)


def test_bad_split(sum_env: SumEnv) -> None:
    message = "no split 'dev'; there are: train, validation, test"
    split: Any = "dev"
    for attempt in (
        lambda: SumEnv(split=split),
        lambda: SumEnv.tasks(split),
        lambda: sum_env.reset(options={"split": split}),
        lambda: sum_env.reset(options={"task_id": "dev/1"}),
    ):
        with pytest.raises(UnknownTaskError) as caught:
            attempt()
        assert str(caught.value) == message
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, EnvError)
    works(sum_env)


@pytest.mark.parametrize(
    "task_id", ["", "train", "train/", "train/x", "train/-1", "train/1.0", "train/007"]
)
def test_bad_task_id(sum_env: SumEnv, task_id: str) -> None:
    with pytest.raises(UnknownTaskError, match="write <split>/<number> or") as caught:
        sum_env.reset(options={"task_id": task_id})
    assert repr(task_id) in str(caught.value)
    works(sum_env)


@pytest.mark.parametrize("task_id", [3, ("train", 3), "train/٣", "train/3\n"])
def test_bad_task_id_of_another_kind(sum_env: SumEnv, task_id: Any) -> None:
    with pytest.raises(UnknownTaskError):
        sum_env.reset(options={"task_id": task_id})


def test_bad_option(sum_env: SumEnv) -> None:
    with pytest.raises(ValueError, match="no option 'taskid'; there are: task_id, split"):
        sum_env.reset(options={"taskid": "train/0"})
    works(sum_env)


def test_bad_constructor_arguments() -> None:
    with pytest.raises(ValueError, match="max_turns=0: expected at least 1"):
        SumEnv(max_turns=0)
    with pytest.raises(ValueError, match="render_mode='human'"):
        SumEnv(render_mode="human")


def test_two_tools_of_one_name() -> None:
    class Twice(SumEnv):
        toolset = (add, add)

    with pytest.raises(ValueError, match="Twice has two tools of one name: add, add"):
        Twice()


def test_a_broken_tool_ends_the_episode(sum_env: SumEnv) -> None:
    before = sum_env.snapshot()
    with pytest.raises(ConnectionError, match="the adder is gone"):
        sum_env.step(adding(1) + adding(500))
    with pytest.raises(EpisodeOverError):  # half the turn was played: nobody may go on from there
        sum_env.step(adding(1))
    sum_env.restore(before)  # but from before it
    assert sum_env.step(adding(1))[0][0].content == "1"
    works(sum_env)


def test_a_state_that_cannot_be_opened() -> None:
    class Flaky(SumEnv):
        up = False

        def open_state(self, task: Task) -> Any:
            if not self.up:
                raise ConnectionError("not yet")
            return super().open_state(task)

    env = Flaky()
    with pytest.raises(ConnectionError):
        env.reset(seed=0)
    with pytest.raises(EpisodeOverError):
        env.step("hello")
    env.up = True
    works(env)


# Branches and hashes


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(
    st.sampled_from(BUILTIN),
    st.integers(0, 1000),
    st.lists(st.integers(0, 30), max_size=6),
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_restore_is_exact(env_id: str, seed: int, prefix: list[int], rest: list[int]) -> None:
    env, other = make(env_id), make(env_id)
    env.reset(seed=seed)
    actions = turns(env)

    def chain(env: ToolEnv, picks: Sequence[int]) -> list[Any]:
        return [
            (*env.step(actions[i % len(actions)]), env.state_hash(), env.snapshot()) for i in picks
        ]

    chain(env, prefix)
    branch, before = env.snapshot(), env.state_hash()
    first = chain(env, rest)
    chain(env, prefix[:2])  # a detour
    env.restore(branch)
    assert env.state_hash() == before
    assert chain(env, rest) == first
    other.restore(branch)
    assert other.state_hash() == before
    assert chain(other, rest) == first


def turns(env: ToolEnv) -> list[str]:
    """Gold calls, calls with swapped arguments, malformed calls; none ends the episode."""
    gold = env.oracle()
    return [
        *map(render_hermes, gold),
        *(render_hermes(replace(c, name=gold[0].name)) for c in gold),
        *(render_hermes(c)[:-4] for c in gold),
        render_hermes(gold[0]) + render_hermes(gold[-1]),
    ]


@pytest.mark.parametrize("env_id", BUILTIN)
def test_same_seed_same_actions_same_hashes(env_id: str) -> None:
    chains = []
    for _ in range(2):
        env = make(env_id, max_turns=20)
        chain: list[Any] = []
        for seed in (5, None, None):
            chain.append(env.reset(seed=seed))
            for action in turns(env):
                chain.append((env.step(action)[0], env.state_hash()))
        chains.append(chain)
    assert chains[0] == chains[1]


def test_the_hash_tells_apart_what_differs(sum_env: SumEnv) -> None:
    hashes = {sum_env.state_hash()}
    sum_env.step(adding(1))
    hashes.add(sum_env.state_hash())
    sum_env.step(adding(404))  # the state is the same, the turn is not
    hashes.add(sum_env.state_hash())
    sum_env.step("Answer: 1")
    hashes.add(sum_env.state_hash())
    sum_env.reset(options={"task_id": "train/1"})
    hashes.add(sum_env.state_hash())
    assert len(hashes) == 5
    assert all(len(h) == 32 for h in hashes)


def test_snapshot_of_a_finished_episode(sum_env: SumEnv) -> None:
    sum_env.step("Answer: 1")
    snapshot = sum_env.snapshot()
    sum_env.reset(seed=1)
    sum_env.restore(snapshot)
    with pytest.raises(EpisodeOverError):
        sum_env.step("hello")
    works(sum_env)


def test_restore_brings_the_transcript_back() -> None:
    env, other = SumEnv(render_mode="ansi"), SumEnv(render_mode="ansi")
    env.reset(seed=0)
    env.step(adding(1))
    seen = env.render()
    snapshot = env.snapshot()
    env.step(adding(2))
    env.restore(snapshot)
    other.restore(snapshot)
    assert env.render() == other.render() == seen


def test_restore_before_any_reset(sum_env: SumEnv) -> None:
    env = SumEnv()
    env.restore(sum_env.snapshot())
    assert env.task == sum_env.task
    assert env.step(adding(1))[0][0].content == "1"


def test_a_snapshot_of_another_class(sum_env: SumEnv) -> None:
    env = make("journeyman/Bank-v0")
    with pytest.raises(ValueError, match="a snapshot of SumEnv cannot be restored into a BankEnv"):
        env.restore(sum_env.snapshot())


def test_snapshots_are_values(sum_env: SumEnv) -> None:
    snapshot = sum_env.snapshot()
    assert snapshot == sum_env.snapshot()
    with pytest.raises(AttributeError):
        snapshot.turns = 3  # type: ignore[misc]


@pytest.mark.parametrize("env_id", BUILTIN)
def test_snapshots_travel_to_other_processes(env_id: str) -> None:
    env = make(env_id)
    env.reset(seed=0)
    env.step(env.oracle()[:1])
    copy: Snapshot = pickle.loads(pickle.dumps(env.snapshot()))
    other = make(env_id)
    other.restore(copy)
    assert other.state_hash() == env.state_hash()


def test_hashes_are_equal_in_every_process() -> None:
    program = """
from journeyman.envs import make
for env_id in ("journeyman/Bank-v0", "journeyman/Calendar-v0", "journeyman/Orders-v0"):
    env = make(env_id)
    for seed in range(10):
        env.reset(seed=seed)
        for call in env.oracle():
            env.step([call])
            print(env.state_hash())
"""
    printed = []
    for hash_seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        printed.append(run.stdout)
    assert printed[0] == printed[1]
    assert len(set(printed[0].split())) > 60


# Digests and answers


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclass(frozen=True)
class Place:
    x: int
    y: int = 0


@dataclass(frozen=True)
class Long:
    number: int


def test_canonical_is_injective() -> None:
    values: list[Any] = [
        *(None, True, 1, 1.0, -1, "1", b"1", "", "None", "[]", "a,b", float("inf")),
        *(
            [],
            [1],
            [[1]],
            [1, [2]],
            [[1], 2],
            [1, 2],
            ["1,2"],
            [[]],
            ["a", "b"],
            ["a,b"],
            ["a','b"],
        ),
        *({}, {"a": 1}, {"a": 2}, {"b": 1}, {1: "a"}, {"a": {"b": 1}}, {"a:1": 1}),
        *(set(), {1}, {1, 2}, frozenset({"a"}), {frozenset()}),
        *(Point(1), Point(2), Place(1), Point(1, 1), [Point(1)], "Point(1,0)"),
    ]
    texts = [canonical(v) for v in values]
    assert len(set(texts)) == len(texts)
    assert len({digest(v) for v in values}) == len(values)


def test_numbers_that_python_does_not_write_have_hashes() -> None:
    long = [10**5000, 10**5000 + 1]
    values = [*long, *((n,) for n in long), *(Map(a=n) for n in long), *map(Long, long)]
    assert len({digest(v) for v in values}) == len(values)


def test_canonical_overlooks_what_does_not_matter() -> None:
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert canonical(Map({"a": 1, "b": 2})) == canonical({"a": 1, "b": 2})
    assert canonical({3, 1, 2}) == canonical(frozenset({1, 2, 3}))
    assert canonical([1, 2]) == canonical((1, 2))


@pytest.mark.parametrize("value", [object(), 1j, Point, [lambda: 0], {"a": object()}])
def test_what_cannot_be_hashed(value: object) -> None:
    with pytest.raises(TypeError, match=r"cannot hash a .*: build states from dataclasses"):
        canonical(value)


@settings(deadline=None, derandomize=True, database=None)
@given(st.text())
def test_any_text_can_be_hashed(text: str) -> None:
    assert len(digest(text)) == 32


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 42", "42"),
        ("I looked.\nAnswer: 42\n", "42"),
        ("Answer: 1\nNo.\nAnswer: 2", "2"),
        ("42", "42"),
        ("Answer:", ""),
        ("", ""),
        ("answer: 42", "42"),
        ("So.\nANSWER: 42", "42"),
        ("**Answer**: 42", "42"),
        ("**Answer:** 42", "** 42"),
        ("_Answer:_ 42", "_ 42"),
        ("answer: 1\nAnswer: 2", "2"),
        ("No answers: 1", "No answers: 1"),
        ("Unanswer: 1", "Unanswer: 1"),
    ],
)
def test_extract_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ada Abbott", ' "ada  abbott". ', True),
        ("42", "42.", True),
        ("42", "'42'", True),
        ("Ada", '"Ada."', True),
        ("4.2", "4.2", True),
        ("5", ".5", False),
        ("42", "4 2", False),
        ("42", "-42", False),
        ("O'Hara", "OHara", False),
    ],
)
def test_normalise(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) == same


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        *(
            (text, "4321", True)
            for text in ("4321", "4,321", "4321.00", "4,321.0", "4321.", "`4321`")
        ),
        *(
            (text, "4321", True)
            for text in ("**4321**", "**4,321**.", '"`4321`"', "_4321_", "* 4321")
        ),
        *(
            (text, "4321", True)
            for text in ("**Answer:** 4321", "**Answer: 4321**", "answer: 4321")
        ),
        *(
            (text, "4321", False)
            for text in ("4322", "-4321", "4321.01", "4.321", "43,21", "4,3,21")
        ),
        *(
            (text, "4321", False)
            for text in ("4,321,000", "04321", "4321,", "4321%", "4 321", "432*1")
        ),
        *(
            (text, "4321", False)
            for text in ("4321e0", "", "**", "4,321.5", "4321 or 4322", ",321")
        ),
        ("1,234,567.00", "1234567", True),
        ("-1,234", "-1234", True),
        ("12,345", "12345", True),
        ("12345,678", "12345678", False),
        ("7", "007", False),
        ("007.0", "007", True),
        ("4.20", "4.2", False),
        ("4,321.5", "4321.5", False),  # no whole number is asked for
        ("1, 2", "12", False),
        ("Ada Abbott", "Ada Abbott", True),
        ("**Ada Abbott**", "Ada Abbott", True),
        ("`ada  abbott`.", "Ada Abbott", True),
        ("Ada", "Ada Abbott", False),
        ("my_file_2.txt", "my_file_2.txt", True),
        ("`my_file_2.txt`", "my_file_2.txt", True),
        ("myfile2.txt", "my_file_2.txt", False),
        ("**__init__.py**", "__init__.py", True),
        ("init__.py", "__init__.py", False),
        ("`notes_`", "notes_", True),
        ("notes", "notes_", False),
        ("*.py", "*.py", True),
        (".py", "*.py", False),
    ],
)
def test_typography_does_not_decide(text: str, gold: str, right: bool) -> None:
    assert matches(extract_answer(text), gold) == right


# Types


def test_messages() -> None:
    assert Message("user", "hi").as_dict() == {"role": "user", "content": "hi"}
    assert Message("tool", "{}", "add").as_dict() == {
        "role": "tool",
        "content": "{}",
        "name": "add",
    }


def test_spaces() -> None:
    env = SumEnv()
    for space in (env.observation_space, env.action_space):
        space.seed(1)
        samples = [space.sample() for _ in range(50)]
        assert all(s in space for s in samples)
        space.seed(1)
        assert [space.sample() for _ in range(50)] == samples
        assert 3 not in space
    assert [ToolCall("a")] in env.action_space
    assert AssistantTurn("hi") in env.action_space
    assert ["a"] not in env.action_space
    assert ("hi",) not in env.observation_space


def test_sampled_actions_can_be_played(sum_env: SumEnv) -> None:
    sum_env.action_space.seed(0)
    ends = 0
    for _ in range(200):
        messages, reward, terminated, truncated, _ = sum_env.step(sum_env.action_space.sample())
        assert reward in (0.0, 1.0)
        assert sum_env.observation_space.contains(messages)
        if terminated or truncated:
            ends += 1
            sum_env.reset()
    assert 0 < ends < 200


def test_split_of_the_env_decides_where_tasks_come_from() -> None:
    for split in ("train", "validation", "test"):
        env = SumEnv(split=split)
        _, info = env.reset(seed=0)
        assert info["task_id"].startswith(split)
        _, info = env.reset(options={"split": "test"})
        assert info["task_id"].startswith("test/")


def test_generate_is_all_a_subclass_owes() -> None:
    class Trivial(ToolEnv):
        toolset = (add,)

        @classmethod
        def generate(cls, rng: random.Random, split: Split, level: str) -> Task:
            return Task("", "", "Say yes.", (), (), "yes")

        @classmethod
        def outcome(cls, state: Any) -> Any:
            return None  # whatever was added

    env: gymnasium.Env[Any, Any] = Trivial()
    env.reset(seed=0)
    env.step(adding(1))
    assert env.step("yes")[1] == 1.0
