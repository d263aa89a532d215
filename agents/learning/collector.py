"""A rollout as training rows: plays, grows trees, asks the teacher and the credit.

The trainer hands out tasks and gets a `Batch`; it knows nothing of how the rows came about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from journeyman.agents.credit import Credit, Experience, TokenCredit
from journeyman.agents.errors import BrokenRolloutError, SettingError
from journeyman.agents.evaluation.remarks import NO_SIGNAL
from journeyman.agents.evaluation.scores import Scores
from journeyman.agents.learning.advantages import check_scale, scaled
from journeyman.agents.learning.curriculum import Curriculum
from journeyman.agents.learning.judgements import Judgement
from journeyman.agents.learning.losses import TeacherView
from journeyman.agents.learning.recorded import Recorded
from journeyman.agents.learning.rollout_figures import (
    rollout_figures,
    search_figures,
    version_figures,
)
from journeyman.agents.learning.samples import to_batch
from journeyman.agents.rollouts.guidance import GuidedPlayer
from journeyman.agents.rollouts.job import Job
from journeyman.agents.rollouts.prefixes import Prefixes
from journeyman.agents.rollouts.rollout import no_room, rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.rollouts.where import Elsewhere, Rollouts
from journeyman.agents.search.evidence import Forest, TreeEpisode, TreeRollouts
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.player import ModelPlayer, Player, Trainable
from journeyman.agents.teachers import Annotations, Detail, Teacher
from journeyman.envs import Episode, StopReason


@dataclass(frozen=True)
class Batch:
    """What came of a rollout."""

    rows: dict[str, Tensor]
    """See `to_batch`, and "row" [B]: the place of each row in `views`."""
    views: list[TeacherView]
    """What the teacher says of each row; empty without a teacher, or where no loss asks."""
    episodes: list[Episode]
    """Those played, without the blank rows that fill a batch up."""
    figures: dict[str, float] = field(default_factory=dict)
    """What there is to log."""
    judgements: list[Judgement] = field(default_factory=list)
    """What was said of each of the episodes."""

    def scores(self, dialect: Dialect) -> Iterator[Scores]:
        """The same in words, in the student's dialect; worked out as it is read."""
        return (judged.scores(dialect) for judged in self.judgements)


@dataclass(frozen=True)
class _Begun:
    """A rollout that workers play."""

    tasks: Sequence[TaskRef]
    version: int
    """Optimiser steps that the weights had taken."""
    wait: Callable[[], list[Episode]]


@dataclass(frozen=True)
class Collector:
    """Plays rollouts and turns them into rows."""

    student: Trainable
    """Plays; its model is trained."""
    credit: Credit
    """Token weights and advantages."""
    teacher: Teacher | None = None
    detail: Detail | None = None
    """What the loss must know of the teacher; None if it asks no teacher."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """For the environments."""
    rollout_batch: int = 64
    """Conversations side by side."""
    lmbda: float = 1.0
    """Chance of a task to be played by the student, as in TRL's GKD; the teacher plays the others
    (0 is distillation on the teacher's episodes)."""
    search: TreeRollouts | None = None
    """Grows each task's rows into a tree; None plays one episode a task."""
    curriculum: Curriculum = field(default_factory=Curriculum)
    """What of the episodes the student plays."""
    prefixes: Prefixes | None = None
    """Where rows begin that the curriculum lets begin inside an earlier episode."""
    recorded: Recorded | None = None
    """What was played before, in place of rollouts; None plays."""
    advantages: str = "none"
    """What advantages are divided by, see `scaled`."""
    job: Job = Job()  # noqa: RUF009 - frozen
    """Its processes have a share of each rollout; all of them call `collect` at once."""
    rollouts: Rollouts = rollout
    """Where episodes are played."""
    _begun: dict[int, _Begun] = field(default_factory=dict, init=False, repr=False)
    """Rollouts that are played ahead, by the optimiser step that first learns from them."""

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            SettingError: The student has a temperature; `lmbda` is no probability, or the teacher
                is to play where trees are to grow; advantages cannot be scaled so; or what is
                asked of the teacher is more than it can tell.
        """
        # Log-probabilities, advantages and importance weights are those of the model itself: the
        # mean of a policy gradient over samples of another temperature is that of no policy.
        temperature = self.student.sampling.temperature
        if temperature != 1:
            raise SettingError(
                f"student.temperature={temperature:g}: expected 1, since what is learned must be "
                f"what the student itself would say; an evaluation plays at evaluation.temperature"
            )
        if not isinstance(self.rollout_batch, int) or self.rollout_batch < 1:
            raise SettingError(
                f"trainer.rollout_batch={self.rollout_batch}: expected a whole number, 1 or more"
            )
        if not 0 <= self.lmbda <= 1:
            raise SettingError(f"trainer.lmbda={self.lmbda}: expected 0 (the teacher plays) to 1")
        if self.search is not None and self.lmbda < 1:
            raise SettingError(
                f"trainer.lmbda={self.lmbda}: a search grows trees of the student's own episodes; "
                f"expected 1, or no search"
            )
        if self.search is not None and self.curriculum.changes:
            name = self.curriculum.changes[0]
            raise SettingError(
                f"trainer.curriculum.{name}={getattr(self.curriculum, name)}: a search grows trees "
                f"of the student's own whole episodes; expected 0, or no search"
            )
        if self.recorded is not None and (
            self.search is not None or self.lmbda < 1 or self.curriculum.changes
        ):
            raise SettingError(
                "trainer.episodes: nothing is played there; leave out search, trainer.lmbda and "
                "trainer.curriculum"
            )
        check_scale(self.advantages, self.rows_a_task)
        self._check_ahead()
        self._check_teacher()

    def _check_ahead(self) -> None:
        """What is played ahead is played before it is known what comes of the rollouts before."""
        asking = {
            "search": self.search is not None,
            f"trainer.lmbda={self.lmbda}": self.lmbda < 1,
            f"trainer.curriculum.replay={self.curriculum.replay}": self.curriculum.replay > 0,
            f"trainer.curriculum.guidance={self.curriculum.guidance}": self._guided,
        }
        for name, asks in asking.items():
            if self.staleness and asks:
                raise SettingError(
                    f"rollouts.staleness={self.staleness}: only whole episodes of the student's "
                    f"own are played ahead, and {name} asks for others; expected 0"
                )

    def _check_teacher(self) -> None:
        teacher = self.teacher
        if teacher is None:
            asking = {
                "the loss": self.detail is not None,
                f"credit={type(self.credit).__name__}": self.credit.needs_teacher,
                f"trainer.lmbda={self.lmbda}": self.lmbda < 1,
                f"trainer.curriculum.guidance={self.curriculum.guidance}": self._guided,
            }
            for name, asks in asking.items():
                if asks:
                    raise SettingError(
                        f"teacher=none: {name} asks for a teacher; choose one, or learn from "
                        f"rewards alone: loss=none credit=outcome"
                    )
            return
        if self.detail is not None and self.detail > teacher.gives:
            raise SettingError(
                f"the loss needs {self.detail.name.lower()} of the teacher, and "
                f"{type(teacher).__name__} gives {teacher.gives.name.lower()}: choose another "
                f"loss=… or teacher=…"
            )
        if self.credit.needs_teacher and teacher.gives < Detail.SAMPLED:
            raise SettingError(
                f"credit={type(self.credit).__name__} reads the log-ratio of each token, and "
                f"{type(teacher).__name__} gives {teacher.gives.name.lower()}: choose another "
                f"credit=… or teacher=…"
            )
        if self.lmbda < 1 or self._guided:
            self._master()  # which says so if there is none

    @property
    def _guided(self) -> bool:
        return self.curriculum.guidance > 0

    @property
    def staleness(self) -> int:
        """Optimiser steps by which the student may be ahead of the weights that play."""
        elsewhere = isinstance(self.rollouts, Elsewhere) and self.recorded is None
        return self.rollouts.staleness if elsewhere else 0  # type: ignore[attr-defined]

    @property
    def rows_a_task(self) -> int:
        """Rows that a task gets."""
        return self.search.rows if self.search is not None else 1

    def collect(
        self,
        tasks: Sequence[TaskRef],
        learning: bool = True,
        step: int = 0,
        coming: Mapping[int, Sequence[TaskRef]] | None = None,
    ) -> Batch:
        """Play tasks and judge what was played.

        Args:
            tasks: One a row.
            learning: The rows will be learned from, so that the credit may learn too.
            step: Optimiser steps that the run has taken.
            coming: Step -> tasks of the rollouts after this one that are to be played ahead.

        Raises:
            BrokenRolloutError: Every episode broke.
        """
        started = time.perf_counter()
        if learning and self.teacher is not None:
            self.teacher.advance()
        model = self.student.model
        training = model.training
        model.eval()
        dialect = self.student.dialect
        annotations = Annotations(self.teacher, self.detail or Detail.SAMPLED, dialect)
        theirs = [_dice(task) >= self.lmbda for task in tasks]
        forest = self._play(tasks, theirs, annotations, step, coming or {})
        if isinstance(self.student, ModelPlayer):
            self.student.rest()
        rows, theirs = forest.rows, theirs[: len(forest.rows)]
        episodes = [row.episode for row in rows]
        evidence = None if self.search is None else [row.steps for row in rows]
        experience = Experience(episodes, evidence, annotations, model, step, job=self.job)
        credit = scaled(self.credit.assign(experience), episodes, self.advantages, self.job)
        if learning:
            self.credit.learn(experience)
            self._keep(episodes, theirs)
        views = self._views(episodes, annotations)
        if views:
            credit = [
                _heard(own, annotations, episode)
                for own, episode in zip(credit, episodes, strict=True)
            ]
        model.train(training)
        figures = rollout_figures(episodes, theirs, time.perf_counter() - started)
        self._note_curriculum(figures, episodes, theirs, step)
        figures |= experience.figures
        if self.teacher is not None:
            figures |= {f"teacher/{name}": it for name, it in self.teacher.figures().items()}
        figures |= version_figures(episodes, step)
        if learning and self.detail is None:
            figures[NO_SIGNAL] = float(not any(it.advantages.any() for it in credit))
        if self.search is not None:
            figures |= search_figures(forest)
        judged = [_judgement(*it, annotations) for it in zip(rows, credit, strict=True)]
        return self._batch(tasks, episodes, credit, views, figures, judged)

    def _play(
        self,
        tasks: Sequence[TaskRef],
        theirs: Sequence[bool],
        annotations: Annotations,
        step: int,
        coming: Mapping[int, Sequence[TaskRef]],
    ) -> Forest:
        """An episode a task; or trees, of fewer rows where a budget ends or something breaks."""
        if self.recorded is not None:
            return _alone([self.recorded.of(task) for task in tasks])
        if self.search is not None:
            greedy = self.student.at(temperature=0.0)
            master = None if self.teacher is None else self.teacher.player(greedy)
            forest = self.search.play(
                *(self.student, annotations, master, tasks, self.rollout_batch),
                *(self.env_kwargs, self._rollouts_at(step)),
            )
            _check_alive([row.episode for row in forest.rows], self.job)
            return forest
        if isinstance(self.rollouts, Elsewhere) and self.staleness:
            found = self._play_ahead(self.rollouts, {step: tasks, **coming}, step)
            return self._checked(found)
        episodes: dict[int, Episode] = {}
        for by_teacher in set(theirs):
            player = self._master() if by_teacher else self._student(step)
            places = [i for i, it in enumerate(theirs) if it is by_teacher]
            begun = [tasks[i] if by_teacher else self._beginning(tasks[i]) for i in places]
            played = self._rollouts_at(step)(
                player, begun, self.rollout_batch, self.env_kwargs, **self._limits(step)
            )
            episodes.update(zip(places, played, strict=True))
        return self._checked([episodes[i] for i in range(len(tasks))])

    def _rollouts_at(self, step: int) -> Rollouts:
        """Where episodes are played; those of workers say by which weights.

        They say so from the start: what is known of an episode hangs on its identity.
        """
        where = self.rollouts
        if not isinstance(where, Elsewhere):
            return where
        return lambda *args, **options: _versioned(where(*args, **options), step)

    def _play_ahead(
        self, rollouts: Elsewhere, wanted: Mapping[int, Sequence[TaskRef]], now: int
    ) -> list[Episode]:
        """Episodes of the rollout of this step; the others are begun with the weights of now."""
        for step, tasks in wanted.items():
            if step not in self._begun:
                wait = rollouts.begin(
                    *(self.student, tasks, self.rollout_batch, self.env_kwargs),
                    **self._limits(step),
                )
                self._begun[step] = _Begun(tasks, now, wait)
        begun = self._begun.pop(now)
        if list(begun.tasks) != list(wanted[now]):
            raise RuntimeError(f"step {now} learns from other tasks than were played ahead for it")
        return _versioned(begun.wait(), begun.version)

    def _checked(self, found: list[Episode]) -> Forest:
        _check_alive(found, self.job)
        _check_room(found, self.student.max_context, self.job)
        return _alone(found)

    def _student(self, step: int) -> Player:
        """The student; as long as the curriculum says so, with turns of the teacher's."""
        share = self.curriculum.guided(step)
        return GuidedPlayer(self.student, self._master(), share) if share else self.student

    def _beginning(self, task: TaskRef) -> TaskRef | Fork:
        """Where a row begins: with its task, or inside an earlier episode of any task."""
        if self.prefixes is None or not self.curriculum.replays(task.seed):
            return task
        return self.prefixes.draw(task.seed) or task

    def _limits(self, step: int) -> dict[str, Any]:
        """What the curriculum asks of a rollout."""
        asked: dict[str, Any] = {} if self.prefixes is None else {"keep": True}
        most = self.curriculum.most_turns(step)
        return asked if most is None else asked | {"most_turns": most}

    def _master(self) -> Player:
        """The teacher as one that plays, with the student's own dice."""
        player = self.teacher.player(self.student) if self.teacher is not None else None
        if player is None:
            name, expected = f"lmbda={self.lmbda}", 1
            if self._guided:
                name, expected = f"curriculum.guidance={self.curriculum.guidance}", 0
            raise SettingError(f"trainer.{name}: the teacher cannot play; expected {expected}")
        return player

    def _keep(self, episodes: Sequence[Episode], theirs: Sequence[bool]) -> None:
        """What later rows may begin inside of: the student's own episodes."""
        if self.prefixes is not None:
            self.prefixes.add(e for e, it in zip(episodes, theirs, strict=True) if not it)

    def _note_curriculum(
        self,
        figures: dict[str, float],
        episodes: Sequence[Episode],
        theirs: Sequence[bool],
        step: int,
    ) -> None:
        own = [e for e, it in zip(episodes, theirs, strict=True) if not it]
        if self._guided:
            turns = [e.mask[slice(*s.span)] for e in own for s in e.steps[e.first_step :]]
            given = [len(turn) for turn in turns if not any(turn)]
            figures["rollout/guided_turns"] = len(given) / max(1, len(turns))
            written = figures.get("rollout/teacher_tokens", 0.0) + sum(given)
            figures["rollout/teacher_tokens"] = written
        if (most := self.curriculum.most_turns(step)) is not None:
            figures["rollout/most_turns"] = float(most)
        if self.prefixes is not None:
            figures["rollout/replayed"] = float(sum(e.first_step > 0 for e in own))

    def _views(self, episodes: Sequence[Episode], annotations: Annotations) -> list[TeacherView]:
        if self.detail is None or not annotations.taught:
            return []
        trained = [e for e in episodes if e.stop is not StopReason.INFRA_ERROR]
        signals = iter(annotations.of(trained))
        return [
            TeacherView.nothing()
            if e.stop is StopReason.INFRA_ERROR
            else TeacherView.of(next(signals), e.mask)
            for e in episodes
        ]

    def _batch(
        self,
        tasks: Sequence[TaskRef],
        episodes: list[Episode],
        credit: list[TokenCredit],
        views: list[TeacherView],
        figures: dict[str, float],
        judged: list[Judgement],
    ) -> Batch:
        """A batch has as many rows as it has tasks; rows that are trained on nothing fill it up."""
        dialect = self.student.dialect
        missing = len(tasks) - len(episodes)
        blank = _blank(tasks[0], dialect.eos_id)
        zeros = torch.zeros(len(blank.tokens))
        nothing = TokenCredit(zeros, zeros)
        pad = dialect.tokenizer.pad_token_id
        rows = to_batch(
            episodes + [blank] * missing,
            credit + [nothing] * missing,
            dialect.eos_id if pad is None else pad,
        )
        rows["row"] = torch.arange(len(tasks))
        if views:
            views = views + [TeacherView.nothing()] * missing
        return Batch(rows, views, episodes, figures, judged)


def _alone(episodes: Sequence[Episode]) -> Forest:
    """Episodes of which no search knows more."""
    return Forest([TreeEpisode(e, (None,) * len(e.steps)) for e in episodes])


def _judgement(row: TreeEpisode, credit: TokenCredit, annotations: Annotations) -> Judgement:
    known = annotations.known(row.episode)
    searched = None if row.place is None else row
    if known is None:
        return Judgement(row.episode, credit, searched=searched)
    return Judgement(row.episode, credit, known.logprobs, known.spoken, searched)


def _heard(credit: TokenCredit, annotations: Annotations, episode: Episode) -> TokenCredit:
    """Credit whose weights are zero where the teacher is silent."""
    if episode.stop is StopReason.INFRA_ERROR:
        return credit
    (signal,) = annotations.of([episode])  # known already
    if signal.spoken is None:
        return credit
    return replace(credit, weights=credit.weights * signal.spoken)


def _versioned(episodes: Sequence[Episode], version: int) -> list[Episode]:
    return [replace(episode, version=version) for episode in episodes]


def _check_alive(episodes: Sequence[Episode], job: Job) -> None:
    """Stop a run whose environments do not work: nothing is left to learn from.

    Args:
        episodes: Of a rollout; a tree leaves out those that broke before their first step.
        job: Its processes have the others.

    Raises:
        BrokenRolloutError: Every episode broke.
    """
    if all(job.share([e.stop is StopReason.INFRA_ERROR for e in episodes])):
        what = episodes[0].error if episodes else "none could begin; see the warnings above"
        raise BrokenRolloutError(
            f"every episode of a rollout broke ({what}): mend the environment; the same command "
            f"goes on from the last checkpoint"
        )


def _check_room(episodes: Sequence[Episode], max_context: int, job: Job) -> None:
    """Stop a run in which nobody can say a word.

    Raises:
        SettingError: Every prompt is as long as the context.
    """
    sound = [e for e in episodes if e.stop is not StopReason.INFRA_ERROR]
    told = job.share([(bool(e.steps), len(e.tokens)) for e in sound])
    if not any(spoke for spoke, _ in told):
        shortest = min(length for _, length in told)
        raise SettingError(no_room("training", len(told), shortest, max_context))


def _dice(task: TaskRef) -> float:
    """Says who plays a row: a number in [0, 1) that follows from its seed."""
    return float(np.random.default_rng((task.seed, 1)).random())


def _blank(task: TaskRef, token: int) -> Episode:
    return Episode(task.env_id, task.task_id, (token,), (0.0,), (False,), (), StopReason.MAX_TURNS)
