"""Gold episodes that are shown with a hint: the prompts that the self-teacher reads."""

from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from journeyman.agents.errors import SettingError
from journeyman.agents.learning.trainers import sft
from journeyman.agents.rollouts.demonstrations import demonstrate
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.agents.teachers.hints import GoldProgram, Hint, hint_of
from journeyman.agents.teachers.privileged import SelfTeacher
from journeyman.envs import UserTurn, env_class, make

from .test_trainers import ENV, babbler, bank_tasks, make_parts, tuning
from .tiny import chat

GOLD = GoldProgram()


def rows(tasks: list[TaskRef], hint: Hint | None, hinted: float = 1.0) -> list[list[int]]:
    made: Dataset = sft.demonstration_rows(tasks, chat(), hint=hint, hinted=hinted)
    return [list(row) for row in made["input_ids"]]


def test_they_have_the_prompt_that_the_self_teacher_reads() -> None:
    """The very row that it makes of a student's episode with the same turns."""
    (played,) = rollout(ScriptedPlayer(chat(), oracle), bank_tasks(1))
    teacher = SelfTeacher("gold")
    teacher.check(make_parts(babbler()).student)
    read = teacher._known().prompts.row(played, 10_000)
    assert read is not None
    task = env_class(ENV).load_task(played.task_id)
    told = GOLD.tell(task, chat(), None)
    shown = demonstrate(make(ENV), task.id, chat(), hint=lambda _: told)
    assert (shown.tokens, shown.mask) == (tuple(read.tokens), tuple(read.mask))


def test_loss_falls_on_the_same_turns() -> None:
    env = make(ENV, max_turns=64)
    task = env_class(ENV).load_task("train/3")
    told = GOLD.tell(task, chat(), None)
    plain = demonstrate(env, task.id, chat(), 0.5)
    shown = demonstrate(env, task.id, chat(), 0.5, lambda _: told)
    assert demonstrate(env, task.id, chat(), 0.5, lambda _: None) == plain
    more = len(shown.tokens) - len(plain.tokens)
    assert more > 0
    first = plain.mask.index(True)  # prompts have no loss
    assert shown.mask.index(True) == first + more
    assert shown.tokens[first + more :] == plain.tokens[first:]
    assert shown.mask[first + more :] == plain.mask[first:]


def test_a_share_of_them_has_it() -> None:
    tasks = bank_tasks(30)
    without, told, some = rows(tasks, None), rows(tasks, GOLD), rows(tasks, GOLD, 0.5)
    assert rows(tasks, GOLD, 0.0) == without
    assert all(len(one) > len(other) for one, other in zip(told, without, strict=True))
    picked = [row == one for row, one in zip(some, told, strict=True)]
    assert all(
        row == (one if has else other)
        for row, one, other, has in zip(some, told, without, picked, strict=True)
    )
    assert 5 <= sum(picked) <= 25  # of 30; what a task gets hangs on the task alone
    assert rows(tasks[20:], GOLD, 0.5) == some[20:]


def test_a_hint_that_is_made_is_taken_as_it_is() -> None:
    class Terse(GoldProgram):
        pass

    terse = Terse()
    assert hint_of(terse) is terse
    with pytest.raises(SettingError, match=r"^hint=\['gold'\]: no such hint"):
        hint_of(["gold"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hint": "error"}, r"^trainer\.hint=error tells of an episode that was played: "),
        ({"hint": "golden"}, r"^hint=golden: no such hint; did you mean 'gold'\?"),
        ({"hint": "gold", "hinted": 1.5}, r"^trainer\.hinted=1\.5: expected 0 to 1"),
        ({"hint": "gold", "data": "a.jsonl"}, r"^trainer\.hint=gold .* trainer\.data=a\.jsonl "),
    ],
)
def test_what_cannot_be_told_is_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        sft.build(make_parts(babbler()), tuning(tmp_path), **settings)  # type: ignore[arg-type]


def test_the_answer_is_told_where_a_value_is_asked_for() -> None:
    hint = hint_of("answer")
    assert hint.ahead
    tasks = [env_class(ENV).load_task(f"train/{i}") for i in range(12)]
    asked = {task.kind: hint.tell(task, chat(), None) for task in tasks}
    (balance, *_) = (task for task in tasks if task.kind == "balance")
    assert hint.tell(balance, chat(), None) == f"It ends with:\nAnswer: {balance.answer}"
    assert asked["transfer"] is None  # "done" is no secret
    two = replace(balance, then=(UserTurn("And?", (), None), UserTurn("And now?", (), "7")))
    assert hint.tell(two, chat(), None) == f"It ends with:\nAnswer: {balance.answer}\nAnswer: 7"
