"""The built-in generators: solvable, not by doing nothing, and nothing held out leaks."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from journeyman.envs import Split, Task, ToolEnv, env_class, make
from journeyman.envs.hashing import digest
from journeyman.envs.nearmiss import program
from journeyman.envs.task import ANSWER, answer_text
from journeyman.envs.tasks.entities import (
    CITIES,
    DOCUMENTS,
    FIRST_NAMES,
    ITEMS,
    LAST_NAMES,
    MEETINGS,
    QUALIFIERS,
    TOPICS,
    split_of,
)
from journeyman.envs.types import SPLITS, Level
from journeyman.tools import ToolCall, execute

from .conftest import BUILTIN, OFFICE

TASKS = 200
"""Of a split; of a domain with levels, half as many over all of them."""
ALL = (*BUILTIN, "journeyman/Analyst-v0", "journeyman/Python-v0")
"""The last two generate their tasks without a sandbox; files of their own play them in one."""


OLDER = (*OFFICE, "journeyman/Python-v0")
"""Their upper levels are of another making: test_levels.py and test_python.py look at these."""


def levels(*env_ids: str) -> list[tuple[str, Level]]:
    return [
        (env_id, level)
        for env_id in env_ids
        for level in env_class(env_id).levels[: 1 if env_id in OLDER else None]
    ]


def tasks(env_id: str, level: Level, split: Split) -> Iterator[Task]:
    cls = env_class(env_id)
    count = TASKS if len(cls.levels) == 1 else TASKS // (2 * len(cls.levels))
    ids = itertools.islice(cls.tasks(f"{split}/{level}"), count)
    return map(cls.load_task, ids)


def gold(task: Task) -> list[ToolCall]:
    return [call for turn in task.turns for call in turn.gold]


def play(env: ToolEnv, task: Task, drop: int | None = None) -> float:
    env.begin(task)
    number = itertools.count()
    reward = 0.0
    for turn in task.turns:
        for call in turn.gold:
            if next(number) != drop:
                env.step([call])
        reward = env.step(answer_text(turn))[1]
    return reward


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("env_id", "level"), levels(*BUILTIN))
def test_gold_solves_every_task_and_nothing_less_does(
    env_id: str, level: Level, split: Split
) -> None:
    env = make(env_id)
    tools = {t.name: t for t in env.toolset}
    for task in tasks(env_id, level, split):
        assert play(env, task) == 1.0, task
        env.begin(task)
        assert [env.step(f"{ANSWER} done")[1] for _ in task.turns][-1] == 0.0, task
        state, changed = task.state, 0
        for i, call in enumerate(gold(task)):
            after, _ = execute(call, tools, state)
            if digest(env.outcome(after)) != digest(env.outcome(state)):
                changed += 1
                assert play(env, task, drop=i) == 0.0, (task, i)
            state = after
        if gold(task) and not changed:  # only to be read: then the answer must need the reading
            assert task.answer is not None
            assert task.answer.casefold() not in task.prompt.casefold(), task


def asks(prompt: str) -> bool:
    """A prompt asks for a value."""
    return re.search(r"\?|[Tt]ell |[Ll]ook up|asks for|to know|Add up", prompt) is not None


@pytest.mark.parametrize(
    ("env_id", "level"), [(env_id, level) for env_id in ALL for level in env_class(env_id).levels]
)
def test_no_answer_is_demanded_that_nobody_asked_for(env_id: str, level: Level) -> None:
    for split in SPLITS:
        for task in tasks(env_id, level, split):
            for turn in task.turns:
                if turn.answer is not None:
                    assert asks(turn.prompt) or "answer" in task.policy, (task, turn)


@pytest.mark.parametrize(
    ("env_id", "level"), [(env_id, level) for env_id in ALL for level in env_class(env_id).levels]
)
def test_there_are_turns_to_err(env_id: str, level: Level) -> None:
    room = make(env_id).max_turns
    for task in tasks(env_id, level, "train"):
        assert 3 * len(list(program(task.turns))) <= 2 * room, task  # half as many again, at least


WORDS = {"active", "frozen"}
"""Answers that are words of a domain."""


@pytest.mark.parametrize(("env_id", "level"), levels(*BUILTIN))
def test_gold_calls_hold_no_guess(env_id: str, level: Level) -> None:
    """What a gold call names was in a prompt, a result or the rules, or is a domain's word."""
    env = make(env_id)
    for split in SPLITS:
        for task in tasks(env_id, level, split):
            env.begin(task)
            known = task.policy
            for turn in task.turns:
                known += f"\n{turn.prompt}"
                for call in turn.gold:
                    for value in call.arguments.values():
                        assert says(known, value) or value in WORDS, (task, call)
                    known += "".join(f"\n{m.content}" for m in env.step([call])[0])
                assert turn.answer is None or says(known, turn.answer), (task, turn)
                env.step(answer_text(turn))


def says(known: str, value: object) -> bool:
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", known) is not None


@pytest.mark.parametrize(("env_id", "level"), levels(*ALL))
def test_tasks_vary(env_id: str, level: Level) -> None:
    drawn = list(tasks(env_id, level, "train"))
    kinds = Counter(t.kind for t in drawn)
    assert min(kinds.values()) >= len(drawn) // 50, kinds
    assert len(kinds) >= 4
    lengths = {len(gold(t)) for t in drawn}
    assert lengths <= {"easy": set(range(2, 7)), "medium": set(range(2, 8))}.get(
        level, set(range(9))
    )
    assert len(lengths) > 1


@pytest.mark.parametrize(
    "env_id", [e for e in ALL if "hard" in env_class(e).levels and e not in OLDER]
)
def test_hard_tasks_have_rules_no_call_and_more_user_turns(env_id: str) -> None:
    drawn = list(tasks(env_id, "hard", "train"))
    assert any(task.policy for task in drawn)
    assert any(not gold(task) for task in drawn)
    assert any(len(task.then) >= 2 for task in drawn)
    assert any(len(gold(task)) >= 6 for task in drawn)


@pytest.mark.parametrize(("env_id", "level"), levels(*ALL))
def test_splits_share_no_task(env_id: str, level: Level) -> None:
    seen: dict[str, Split] = {}
    for split in SPLITS:
        for task in tasks(env_id, level, split):
            assert seen.setdefault(digest((task.prompt, task.state)), split) == split, task
    prompts = {s: {t.prompt for t in tasks(env_id, level, s) if '"' in t.prompt} for s in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not prompts[one] & prompts[other]


@pytest.mark.parametrize(("env_id", "level"), levels(*ALL))
def test_an_id_names_one_task(env_id: str, level: Level) -> None:
    cls = env_class(env_id)
    for split in SPLITS:
        ids = list(itertools.islice(cls.tasks(f"{split}/{level}"), 20))
        assert len(set(ids)) == 20
        for task_id in ids:
            one, other = cls.load_task(task_id), cls.load_task(task_id)
            assert one == other
            assert one.id == task_id


def pairs(left: list[str], right: list[str]) -> str:
    return rf"\b(?:{'|'.join(left)})[ -](?:{'|'.join(right)})\b"


@pytest.mark.parametrize(("env_id", "level"), levels(*ALL))
def test_held_out_values_stay_in_their_split(env_id: str, level: Level) -> None:
    patterns = (
        pairs(FIRST_NAMES, LAST_NAMES),
        pairs(TOPICS, MEETINGS),
        pairs(QUALIFIERS, DOCUMENTS),
        r"\b[ABCEFHKMORV][1-9]\d{3}\b",
        r"(?<=[ =])[1-9]\d{2}(?=\D)",  # amounts, prices
    )
    found: dict[Split, set[str]] = {}
    for split in SPLITS:
        text = "\n".join(
            f"{t.policy} {t.state} {turn}" for t in tasks(env_id, level, split) for turn in t.turns
        )
        if env_id == "journeyman/Calendar-v0":
            text = re.sub(r"'(day|hour)': \S+", "", text)
        text = re.sub(r"quota=\d+", "", text)  # the sum of what is there
        found[split] = {m.replace("-", " ") for p in patterns for m in re.findall(p, text)}
        assert len(found[split]) > 80
        assert {split_of(value) for value in found[split]} == {split}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not found[one] & found[other]


@pytest.mark.parametrize(
    ("left", "right", "most"), [(TOPICS, MEETINGS, 6), (QUALIFIERS, DOCUMENTS, 8)]
)
@pytest.mark.parametrize("split", SPLITS)
def test_titles_never_run_out(split: Split, left: list[str], right: list[str], most: int) -> None:
    """A drawn title takes its two words away; with too few left, drawing would never end.

    One task draws `most` at most. One fewer takes twice as many words, and these cannot touch every
    title of the split if its largest matching has more than that (König's theorem).
    """
    partner: dict[str, str] = {}

    def match(word: str, seen: set[str]) -> bool:
        for other in right:
            if split_of(f"{word} {other}") == split and other not in seen:
                seen.add(other)
                if other not in partner or match(partner[other], seen):
                    partner[other] = word
                    return True
        return False

    assert sum(match(word, set()) for word in left) > 2 * (most - 1)


ALL_WORDS = (FIRST_NAMES, LAST_NAMES, ITEMS, CITIES, TOPICS, MEETINGS, QUALIFIERS, DOCUMENTS)


def test_words_are_different() -> None:
    for words in ALL_WORDS:
        assert len(set(words)) == len(words)


def test_about_a_tenth_is_held_out() -> None:
    shares = Counter(split_of(f"{a} {b}") for a in FIRST_NAMES for b in LAST_NAMES)
    assert 0.75 < shares["train"] / 1600 < 0.85
    assert shares["validation"] > 100
    assert shares["test"] > 100
