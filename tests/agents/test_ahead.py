"""Rollouts that are played ahead of the trainer, by somebody who writes down what he was asked."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from journeyman.agents.errors import SettingError
from journeyman.agents.learning.collector import Collector
from journeyman.agents.learning.losses.functions import visits
from journeyman.agents.learning.trainers import distill
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.search.evidence import TreeRollouts
from journeyman.agents.teachers.local import LocalTeacher
from journeyman.envs import Episode
from tests.agents.test_trainers import babbler, distillation, make_parts, steps


class Noted:
    """Plays at once what is begun, with the weights of then."""

    def __init__(self, staleness: int) -> None:
        self.staleness = staleness
        self.begun: list[list[TaskRef]] = []
        self.under_way = 0
        self.most = 0

    def __call__(self, player: Any, tasks: Sequence[Any], *rest: Any, **how: Any) -> list[Episode]:
        return rollout(player, tasks, *rest, **how)

    def begin(
        self, player: Any, tasks: Sequence[Any], *rest: Any, **how: Any
    ) -> Callable[[], list[Episode]]:
        self.begun.append(list(tasks))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        training = player.model.training
        player.model.eval()
        played = rollout(player, tasks, *rest, **how)
        player.model.train(training)

        def wait() -> list[Episode]:
            self.under_way -= 1
            return played

        return wait


def trainer(folder: Path, staleness: int, **settings: Any) -> tuple[Any, Noted]:
    noted = Noted(staleness)
    parts = dataclasses.replace(make_parts(babbler()), rollouts=noted)
    args = distillation(folder, max_steps=settings.pop("max_steps", 5))
    return distill.build(parts, args, **settings), noted


@pytest.mark.parametrize(("staleness", "ages"), [(1, [0, 1, 1, 1, 1]), (3, [0, 1, 2, 3, 3])])
def test_rollouts_are_as_old_as_is_allowed_and_each_is_played_once(
    staleness: int, ages: list[int], tmp_path: Path
) -> None:
    learned, noted = trainer(tmp_path, staleness)
    learned.train()
    figures = steps(learned)
    assert [it["rollout/staleness"] for it in figures] == ages
    assert [it["rollout/version"] for it in figures] == [i - age for i, age in enumerate(ages)]
    assert noted.most == staleness + 1
    assert noted.under_way == 0
    # The same tasks and dice in the same order as without: `collect` refuses others.
    seeds = [task.seed for tasks in noted.begun for task in tasks]
    assert len(noted.begun) == 5
    assert len(set(seeds)) == len(seeds)
    assert figures[0]["rollout/visits"] == pytest.approx(1, abs=1e-4)
    assert figures[-1]["rollout/visits"] != pytest.approx(1, abs=1e-4)


def test_where_a_rollout_serves_several_steps_the_next_is_needed_after_them(tmp_path: Path) -> None:
    learned, noted = trainer(tmp_path, 4, steps_per_generation=2, num_iterations=1, max_steps=6)
    learned.train()
    figures = steps(learned)
    known = [it["rollout/staleness"] for it in figures if "rollout/staleness" in it]
    assert known == [0, 2, 4]
    assert len(noted.begun) == 3


def test_nobody_plays_ahead_what_hangs_on_what_was_played(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"rollouts\.staleness=1: a rollout serves 2 steps"):
        trainer(tmp_path, 1, steps_per_generation=2)
    with pytest.raises(SettingError, match=r"rollouts\.staleness=1.*trainer\.lmbda=0\.5"):
        trainer(tmp_path, 1, lmbda=0.5)
    parts = make_parts(babbler())
    with pytest.raises(SettingError, match=r"rollouts\.staleness=2.*search"):
        Collector(
            *(parts.student, parts.credit, parts.teacher),
            search=TreeRollouts(rows=2, trajectories=1),
            rollouts=Noted(2),
        )


def test_the_teacher_reads_what_workers_played_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees ask for the rows first, the loss afterwards: they are the same rows."""
    read: list[Episode] = []
    annotate = LocalTeacher.annotate
    monkeypatch.setattr(
        LocalTeacher,
        "annotate",
        lambda self, rows, detail: read.extend(rows) or annotate(self, rows, detail),
    )
    parts = dataclasses.replace(
        make_parts(babbler()), rollouts=Noted(0), search=TreeRollouts(rows=4, trajectories=2)
    )
    learned = distill.build(parts, distillation(tmp_path, max_steps=2))
    learned.train()
    assert {it.version for it in read} == {0, 1}
    assert len({id(it) for it in read}) == len(read)
    places = [(it.version, it.task_id, it.seed, it.tokens) for it in read]
    assert len(set(places)) == len(places)


def test_visits_correct_a_mean_over_states_that_another_policy_came_to() -> None:
    """Two turns of two tokens each: the second's state is the first's token."""
    old, new = torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.3])
    values = torch.tensor([3.0, -1.0])  # of the second turn, by the state it stands in
    chosen = torch.tensor([[True, False, True], [True, False, True]])
    # One row of each first token; the second token is as probable as it was.
    sampled = torch.stack([old.log(), torch.zeros(2)], 1).flatten()
    now = torch.stack([new.log(), torch.zeros(2)], 1).flatten()
    weights = visits(now, sampled, chosen).reshape(2, 2)
    assert weights[:, 0].tolist() == [1.0, 1.0]  # all begin in the same state
    assert float((old * weights[:, 1] * values).sum()) == pytest.approx(float((new * values).sum()))
    far = visits(torch.tensor([0.0, 0.0]), torch.tensor([-9.0, 0.0]), torch.tensor([[True, True]]))
    assert far.tolist() == pytest.approx([1.0, 2.0])
    assert visits(-now * 0 - math.inf, sampled, chosen).isfinite().all()
