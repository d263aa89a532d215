"""The levels of the built-in domains: easy never changes, the others ask for more."""

import itertools
import re
from collections import Counter

import pytest

from journeyman.envs import Level, Split, Task, env_class, make
from journeyman.envs.checker import answers_alone
from journeyman.envs.hashing import digest
from journeyman.envs.task import ANSWER, answer_text
from journeyman.envs.tasks.entities import FIRST_NAMES, LAST_NAMES, MEETINGS, TOPICS, split_of
from journeyman.envs.types import LEVELS, SPLITS

from .conftest import OFFICE
from .test_tasks import OLDER, TASKS

ABOVE = LEVELS[1:]


def tasks(env_id: str, split: Split, level: Level, count: int = TASKS) -> list[Task]:
    cls = env_class(env_id)
    return [cls.load_task(i) for i in itertools.islice(cls.tasks(f"{split}/{level}"), count)]


# The shipped weights were trained on these tasks, word for word.
EASY: dict[str, tuple[str, str, str]] = {
    "journeyman/Bank-v0": (
        "10d571fe982f344eafa434e00de2200e",
        "9f3c146c8199d590dc45da2b14de1b39",
        "61316bf6fa9380b0702b91148d88d5c3",
    ),
    "journeyman/Calendar-v0": (
        "456cc11ea9745e692c03db3482e2ed3d",
        "148ed8ae8505bfb7f5cd63e04c377208",
        "747ec64f1dadd24327d2091728980ad0",
    ),
    "journeyman/Orders-v0": (
        "f482a2f356b01bbcebdf20bcc539702c",
        "d11f390d2cb1c0da4b6865172e17b194",
        "b96bcb27a1ff9c67cf10a66bb7926280",
    ),
    "journeyman/Python-v0": (
        "221a5ca483c6ade6f36b410b98ea8a60",
        "60dff6ef592a0d393c4796a7e19922be",
        "1d7a5b7a08ed55759e30f8676ac7f66c",
    ),
}


def said(task: Task) -> str:
    """What a demonstration answers."""
    return answer_text(task.turns[0]).removeprefix(f"{ANSWER} ")


@pytest.mark.parametrize("env_id", EASY)
def test_easy_stays_as_it_is(env_id: str) -> None:
    found = tuple(
        digest(
            [
                (t.id, t.kind, t.prompt, t.state, [c.canonical() for c in t.gold], said(t))
                for t in tasks(env_id, split, "easy", 50)
            ]
        )
        for split in SPLITS
    )
    assert found == EASY[env_id]
    assert not any(t.policy or t.then for t in tasks(env_id, "train", "easy"))


@pytest.mark.parametrize("level", ABOVE)
@pytest.mark.parametrize("env_id", OLDER)
def test_every_kind_appears(env_id: str, level: Level) -> None:
    found = {split: Counter(t.kind for t in tasks(env_id, split, level)) for split in SPLITS}
    assert found["train"].keys() == found["validation"].keys() == found["test"].keys()
    assert min(count for kinds in found.values() for count in kinds.values()) >= TASKS // 50
    assert not found["train"].keys() & {t.kind for t in tasks(env_id, "train", "easy")}


@pytest.mark.parametrize("env_id", OFFICE)
def test_medium_has_rules_long_chains_and_requests_to_refuse(env_id: str) -> None:
    found = tasks(env_id, "train", "medium")
    assert {len(t.turns) for t in found} == {1}
    assert max(len(t.gold) for t in found) >= 5
    ruled = [t for t in found if t.policy]
    assert {bool(t.policy) for t in found} == {True, False}
    told = [t for t in ruled if t.answer is not None]
    assert len(told) >= 20  # a rule forbids the obvious call and says what to answer
    assert any(not t.gold for t in told)


@pytest.mark.parametrize("env_id", OFFICE)
def test_hard_is_a_talk(env_id: str) -> None:
    found = tasks(env_id, "train", "hard")
    assert {len(t.turns) for t in found} == {2, 3}
    assert any(not turn.gold for t in found for turn in t.turns)
    assert any(t.policy for t in found)


@pytest.mark.parametrize("level", ABOVE)
@pytest.mark.parametrize("env_id", OFFICE)
def test_calls_hold_no_guess(env_id: str, level: Level) -> None:
    """What a call or an answer names was said before, or is a word of the domain."""
    env = make(env_id)
    for split in SPLITS:
        for task in tasks(env_id, split, level, 40):
            (system, _), _ = env.begin(task)
            known = system.content
            for turn in task.turns:
                known += f"\n{turn.prompt}"
                for call in turn.gold:
                    for value in call.arguments.values():
                        assert re.search(rf"\b{value}\b", known), (task, call)
                    known += "".join(f"\n{m.content}" for m in env.step([call])[0])
                answer = turn.answer
                assert answer is None or re.search(rf"\b{answer}\b", known), task
                reward = env.step(answer_text(turn))[1]
            assert reward == 1.0


@pytest.mark.parametrize("level", ABOVE)
@pytest.mark.parametrize("env_id", OFFICE)
def test_names_and_ids_stay_in_their_split(env_id: str, level: Level) -> None:
    first, last = "|".join(FIRST_NAMES), "|".join(LAST_NAMES)
    topic, meeting = "|".join(TOPICS), "|".join(MEETINGS)
    pattern = rf"\b(?:(?:{first}) (?:{last})|(?:{topic}) (?:{meeting})|[AEO][1-9]\d{{3}})\b"
    for split in SPLITS:
        found = re.findall(pattern, str(tasks(env_id, split, level, 40)))
        assert len(set(found)) > 80
        assert {split_of(value) for value in found} == {split}


@pytest.mark.parametrize("env_id", OFFICE)
def test_a_wrong_answer_fails_only_where_a_value_is_asked_for(env_id: str) -> None:
    env = make(env_id, max_turns=40)
    judged = Counter[bool]()
    for level in LEVELS:
        for task in tasks(env_id, "test", level, 50):
            env.begin(task)
            for turn in task.turns:
                for call in turn.gold:
                    env.step([call])
                reward = env.step("All is as you wanted it.")[1]
            asked = any(turn.answer is not None for turn in task.turns)
            assert reward == (0.0 if asked else 1.0), task
            judged[asked] += 1
    assert min(judged[True], judged[False]) >= 30


@pytest.mark.parametrize("env_id", OFFICE)
def test_nothing_is_won_by_words_alone(env_id: str) -> None:
    env = make(env_id)
    for level in LEVELS:
        for task in tasks(env_id, "train", level):
            for answers in answers_alone(task):
                env.begin(task)
                assert [env.step(answer)[1] for answer in answers][-1] == 0.0, (task, answers)


@pytest.mark.parametrize("env_id", OFFICE)
def test_the_bank_and_its_kin_excuse_nothing(env_id: str) -> None:
    assert not env_class(env_id).harmless
