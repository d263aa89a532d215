"""A run that unlearns what its student could do says so, and no other run does."""

import json
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.remarks import remarks
from journeyman.agents.learning.collapse import Detector
from journeyman.agents.learning.trainers.watching import CollapseWatch

STEPS = 150


def played(chance: float, tasks: int, alike: int, dice: random.Random) -> float:
    """Success of a rollout of `tasks` tasks, each in `alike` rows that end all in one way."""
    del alike  # the share is the same: rows of a task are no news
    return sum(dice.random() < chance for _ in range(tasks)) / tasks


def first_said(tasks: int, curve: Iterator[dict[str, float]]) -> int | None:
    """The line at which a detector speaks; never twice."""
    detector = Detector(tasks)
    said = [line for line, figures in enumerate(curve) if detector.hear(figures) is not None]
    assert len(said) <= 1
    return said[0] if said else None


@pytest.mark.parametrize("tasks", [2, 4, 16, 64])
@pytest.mark.parametrize("chance", [0.0, 0.05, 0.3, 0.5, 0.75, 0.95, 1.0])
def test_a_noisy_flat_curve_is_no_collapse(chance: float, tasks: int) -> None:
    for seed in range(5):
        dice = random.Random(f"{chance} {tasks} {seed}")
        curve = (
            {
                "rollout/success": played(chance, tasks, 8, dice),
                "rollout/turns": max(1.0, dice.gauss(5, 1.5)),
                "entropy": abs(dice.gauss(0.1, 0.05)),
            }
            for _ in range(STEPS)
        )
        assert first_said(tasks, curve) is None, seed


@pytest.mark.parametrize("tasks", [2, 16])
@pytest.mark.parametrize("begin", [0.0, 0.1, 0.44, 0.75])
def test_slow_learning_is_no_collapse(begin: float, tasks: int) -> None:
    """Not even where a student grows sure and brief while it learns."""
    for seed in range(5):
        dice = random.Random(f"{begin} {tasks} {seed}")
        curve = (
            {
                "rollout/success": played(begin + 0.25 * i / STEPS, tasks, 8, dice),
                "rollout/turns": 6 - 2 * i / STEPS,
                "entropy": 0.3 * math.exp(-i / STEPS),
            }
            for i in range(STEPS)
        )
        assert first_said(tasks, curve) is None, seed


def test_mastery_is_no_collapse() -> None:
    """From 44% to 100%, with a hundredth of the entropy and a third of the turns."""
    dice = random.Random(0)
    curve = (
        {
            "rollout/success": played(min(1.0, 0.44 + 0.02 * i), 16, 1, dice),
            "rollout/turns": 9 - 6 * i / STEPS,
            "entropy": 0.3 * 0.96**i,
        }
        for i in range(STEPS)
    )
    assert first_said(16, curve) is None


@pytest.mark.parametrize(("tasks", "soon"), [(2, 16), (4, 8), (16, 3), (64, 1)])
@pytest.mark.parametrize("begin", [0.44, 0.75, 0.95])
def test_a_fall_to_nothing_is_a_collapse(begin: float, tasks: int, soon: int) -> None:
    for seed in range(5):
        dice = random.Random(f"{begin} {tasks} {seed}")
        curve = ({"rollout/success": played(begin, tasks, 1, dice)} for _ in range(40))
        ruin = ({"rollout/success": 0.0} for _ in range(60))
        said = first_said(tasks, iter([*curve, *ruin]))
        assert said is not None
        assert 40 <= said < 40 + (soon if begin > 0.5 else 3 * soon), seed


def test_what_was_learned_can_be_lost_again() -> None:
    """From 10% to 80% and back: below its best, though not below where it began."""
    dice = random.Random(1)
    chances = [0.1] * 10 + [0.8] * 20 + [0.1] * 20
    curve = ({"rollout/success": played(chance, 16, 1, dice)} for chance in chances)
    said = first_said(16, curve)
    assert said is not None
    assert 30 < said < 40


@pytest.mark.parametrize(("name", "then", "now"), [("rollout/turns", 5, 1), ("entropy", 1, 0.05)])
def test_a_student_that_falls_silent_is_told_of(name: str, then: float, now: float) -> None:
    """With a success of 5%, whose end no count of successes would show soon."""
    curve = [{"rollout/success": 0.05, name: then}] * 20 + [{"rollout/success": 0.0, name: now}] * 9
    said = first_said(16, iter(curve))
    assert said is not None
    assert 20 < said < 29
    learning = [{"rollout/success": 0.05, name: then}] * 20
    learning += [{"rollout/success": 0.5, name: now}] * 20
    assert first_said(16, iter(learning)) is None


def test_one_look_at_validation_tasks_is_enough_if_it_is_large() -> None:
    looks = [{"eval/success": it, "eval/tasks": 100} for it in (0.7, 0.72, 0.55, 0.2)]
    assert first_said(16, iter(looks)) == 3
    few = [{"eval/success": it, "eval/tasks": 10} for it in (0.7, 0.7, 0.5, 0.2)]
    assert first_said(16, iter(few)) is None


def test_teacher_s_turns_that_fade_are_no_collapse() -> None:
    curve = [{"rollout/success": 0.9 - i / 100, "rollout/guided_turns": 0.5} for i in range(90)]
    assert first_said(64, iter(curve)) is None


def test_figures_that_are_none_are_passed_over() -> None:
    lines = [{"rollout/success": None, "loss": 1.0}, {"loss": None}, {"rollout/success": math.nan}]
    assert first_said(16, iter(lines * 20)) is None  # type: ignore[arg-type]


def run(watch: CollapseWatch, folder: Path, curve: list[float], begin: int = 0) -> list[Any]:
    """What is logged of each step, and whether the run was to stop there."""
    args: Any = SimpleNamespace(output_dir=str(folder / "checkpoints"))
    state: Any = SimpleNamespace(global_step=begin, is_world_process_zero=True)
    control: Any = SimpleNamespace(should_training_stop=False)
    watch.on_train_begin(args, state, control)
    lines = []
    for success in curve[begin:]:
        state.global_step += 1
        logs: dict[str, Any] = {"rollout/success": success}
        watch.on_log(args, state, control, logs)
        lines.append({"step": state.global_step, **logs})
        if control.should_training_stop:
            break
    watch.on_log(args, state, control, {"train_runtime": 1.0})
    return lines


FALL = [0.75] * 6 + [0.0] * 10


@pytest.mark.parametrize("do", ["warn", "stop"])
def test_it_is_said_once_and_marked(
    do: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        lines = run(CollapseWatch(do, 16), tmp_path, FALL)
    (said,) = [it.getMessage() for it in caplog.records]
    (marked,) = [line["step"] for line in lines if line.get("collapsed") == 1]
    assert said.startswith(f"step {marked}: training collapses: success is 0% and was 75%; ")
    assert "\n" not in said
    assert len(lines) == (marked if do == "stop" else len(FALL))
    assert "trainer.on_collapse=stop" in said
    (remark,) = remarks({}, lines)
    assert remark.startswith(f"training: collapsed, as was seen at step {marked}")


def test_a_resumed_run_says_what_an_unbroken_one_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(CollapseWatch("warn", 16), tmp_path, FALL)
    (at,) = [line["step"] for line in whole if line.get("collapsed") == 1]
    for broken in (at - 2, at + 2):
        kept = "".join(json.dumps(line) + "\n" for line in whole)  # later lines are forgotten
        (tmp_path / "metrics.jsonl").write_text(kept)
        assert run(CollapseWatch("warn", 16), tmp_path, FALL, broken) == whole[broken:]
        stopped = run(CollapseWatch("stop", 16), tmp_path, FALL, broken)
        assert stopped == whole[broken : max(at, broken + 1)]
    assert len(caplog.records) == 3  # whole, and both that were broken before


def test_what_else_to_do_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^trainer\.on_collapse=halt: expected warn or stop"):
        CollapseWatch("halt")
