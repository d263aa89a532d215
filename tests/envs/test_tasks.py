"""The built-in generators: solvable, not by doing nothing, and nothing held out leaks."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from journeyman.envs import Split, Task, ToolEnv, env_class, make
from journeyman.envs.core import ANSWER, digest
from journeyman.envs.tasks.entities import (
    CITIES,
    FIRST_NAMES,
    ITEMS,
    LAST_NAMES,
    MEETINGS,
    TOPICS,
    split_of,
)
from journeyman.envs.types import SPLITS
from journeyman.tools import execute

from .conftest import BUILTIN

TASKS = 200
ALL = (*BUILTIN, "journeyman/Python-v0")
"""Python-v0 generates its tasks without a sandbox; test_python.py plays them in one."""


def tasks(env_id: str, split: Split, count: int = TASKS) -> Iterator[Task]:
    cls = env_class(env_id)
    return (cls.load_task(i) for i in itertools.islice(cls.tasks(split), count))


def play(env: ToolEnv, task: Task, drop: int | None = None) -> float:
    env.begin(task)
    for i, call in enumerate(task.gold):
        if i != drop:
            env.step([call])
    return env.step(f"{ANSWER} {task.answer}")[1]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("env_id", BUILTIN)
def test_gold_solves_every_task_and_nothing_less_does(env_id: str, split: Split) -> None:
    env = make(env_id)
    tools = {t.name: t for t in env.toolset}
    for task in tasks(env_id, split):
        assert play(env, task) == 1.0, task
        env.begin(task)
        assert env.step(f"{ANSWER} done")[1] == 0.0, task
        state, changed = task.state, 0
        for i, call in enumerate(task.gold):
            after, _ = execute(call, tools, state)
            if digest(after) != digest(state):
                changed += 1
                assert play(env, task, drop=i) == 0.0, (task, i)
            state = after
        if not changed:  # only to be read: then the answer must need the reading
            assert task.answer.casefold() not in task.prompt.casefold(), task


@pytest.mark.parametrize("env_id", BUILTIN)
def test_gold_calls_hold_no_guess(env_id: str) -> None:
    """What a gold call names was in the prompt, in a result, or is a word of the domain."""
    env = make(env_id)
    words = {"active", "frozen"}
    for split in SPLITS:
        for task in tasks(env_id, split):
            env.begin(task)
            known = task.prompt
            for call in task.gold:
                for value in call.arguments.values():
                    assert re.search(rf"\b{value}\b", known) or value in words, (task, call)
                known += "".join(m.content for m in env.step([call])[0])
            answer = re.search(rf"\b{task.answer}\b", known)
            assert answer, task


@pytest.mark.parametrize("env_id", ALL)
def test_tasks_vary(env_id: str) -> None:
    kinds = Counter(t.kind for t in tasks(env_id, "train"))
    assert min(kinds.values()) >= TASKS // 50, kinds
    assert len(kinds) >= 4
    lengths = Counter(len(t.gold) for t in tasks(env_id, "train"))
    assert set(lengths) <= set(range(2, 7))
    assert len(lengths) > 1


@pytest.mark.parametrize("env_id", ALL)
def test_splits_share_no_task(env_id: str) -> None:
    seen: dict[str, Split] = {}
    for split in SPLITS:
        for task in tasks(env_id, split):
            assert seen.setdefault(digest((task.prompt, task.state)), split) == split, task
    prompts = {s: {t.prompt for t in tasks(env_id, s) if '"' in t.prompt} for s in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not prompts[one] & prompts[other]


@pytest.mark.parametrize("env_id", ALL)
def test_an_id_names_one_task(env_id: str) -> None:
    cls = env_class(env_id)
    for split in SPLITS:
        ids = list(itertools.islice(cls.tasks(split), 20))
        assert len(set(ids)) == 20
        for task_id in ids:
            one, other = cls.load_task(task_id), cls.load_task(task_id)
            assert one == other
            assert one.id == task_id


@pytest.mark.parametrize("env_id", ALL)
def test_held_out_values_stay_in_their_split(env_id: str) -> None:
    first, last = "|".join(FIRST_NAMES), "|".join(LAST_NAMES)
    topic, meeting = "|".join(TOPICS), "|".join(MEETINGS)
    patterns = (
        rf"\b(?:{first}) (?:{last})\b",
        rf"\b(?:{topic}) (?:{meeting})\b",
        r"\b[AEO][1-9]\d{3}\b",
        r"(?<=[ =])[1-9]\d{2}(?=\D)",  # amounts, prices
    )
    found: dict[Split, set[str]] = {}
    for split in SPLITS:
        text = "\n".join(f"{t.prompt} {t.state} {t.gold}" for t in tasks(env_id, split))
        if env_id == "journeyman/Calendar-v0":
            text = re.sub(r"'(day|hour)': \S+", "", text)
        found[split] = {m for p in patterns for m in re.findall(p, text)}
        assert len(found[split]) > 80
        assert {split_of(value) for value in found[split]} == {split}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not found[one] & found[other]


@pytest.mark.parametrize("split", SPLITS)
def test_titles_never_run_out(split: Split) -> None:
    """A drawn title takes its two words away; with too few left, drawing would never end.

    Six titles are the most that one task draws. Five take ten words, and ten words cannot touch
    every title of the split if its largest matching has more than ten (König's theorem).
    """
    partner: dict[str, str] = {}

    def match(topic: str, seen: set[str]) -> bool:
        for meeting in MEETINGS:
            if split_of(f"{topic} {meeting}") == split and meeting not in seen:
                seen.add(meeting)
                if meeting not in partner or match(partner[meeting], seen):
                    partner[meeting] = topic
                    return True
        return False

    assert sum(match(topic, set()) for topic in TOPICS) > 10


def test_words_are_different() -> None:
    for words in (FIRST_NAMES, LAST_NAMES, ITEMS, CITIES, TOPICS, MEETINGS):
        assert len(set(words)) == len(words)


def test_about_a_tenth_is_held_out() -> None:
    shares = Counter(split_of(f"{a} {b}") for a in FIRST_NAMES for b in LAST_NAMES)
    assert 0.75 < shares["train"] / 1600 < 0.85
    assert shares["validation"] > 100
    assert shares["test"] > 100
