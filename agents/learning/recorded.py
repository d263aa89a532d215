"""Episodes of a run folder, to be learned from as they are: nothing is played.

`trainer.episodes=RUN` deals them out where a rollout would be played; teacher, credit and loss are
those of any distillation. What another program played by `journeyman serve proxy` is learned from
so. It is on policy as far as the weights are those that played it: a step or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from journeyman.agents.errors import SettingError
from journeyman.agents.evaluation.records import EpisodeFile, find_run
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.player import Trainable
from journeyman.envs import Episode


@dataclass(frozen=True)
class Recorded:
    """Episodes that were played before."""

    episodes: tuple[Episode, ...]

    @classmethod
    def read(cls, run: str, student: Trainable) -> Recorded:
        """What models played in a run, judged or not; nothing that infrastructure broke.

        Args:
            run: Its folder, or its name under `runs/`.
            student: Is to learn from them; their tokens must be its own.

        Raises:
            SettingError: There are none, or their tokens are not the student's.
            RunDirError: There is no such run.
            RunFileError: It is damaged.
        """
        file = EpisodeFile(find_run(run))
        # Scripts have no weights, and what they say is not the student's.
        found = [p.episode for p in file.read() if p.weights and not p.broken and p.episode.steps]
        if not found:
            raise SettingError(
                f"trainer.episodes={run}: {file.path} has no episode of a model: expected a run of "
                f"`journeyman serve proxy` or `journeyman eval`"
            )
        if not any(logprob for episode in found for logprob in episode.logprobs):
            raise SettingError(
                f"trainer.episodes={run}: no token has a log-probability, since a server played "
                f"that tells none; to learn from what was said: journeyman collect, trainer.data=…"
            )
        _check(run, found, student)
        return cls(tuple(found))

    def tasks(self, count: int) -> list[TaskRef]:
        """So many rows, in the order of the file, from the beginning again at its end."""
        return [TaskRef(_ROW, str(i % len(self.episodes))) for i in range(count)]

    def of(self, task: TaskRef) -> Episode:
        """The episode of a row."""
        return self.episodes[int(task.task_id)]


_ROW = "recorded"


def _check(run: str, episodes: Sequence[Episode], student: Trainable) -> None:
    size = 1 + max(student.dialect.tokenizer.get_vocab().values())
    room = student.max_context + student.sampling.max_tokens
    for episode in episodes:
        where = f"trainer.episodes={run}: the episode of {episode.env_id} {episode.task_id}"
        if max(episode.tokens) >= size:
            raise SettingError(
                f"{where} has a token {max(episode.tokens)}, and the student knows {size}: "
                f"expected what a model with the student's own tokenizer played"
            )
        if len(episode.tokens) > room:
            raise SettingError(
                f"{where} has {len(episode.tokens)} tokens, and the student reads {room}: raise "
                f"student.max_context"
            )
