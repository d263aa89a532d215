"""Three ways to play the same conversations: our loop, TRL's own, and `generate` turn by turn."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from harness.lookups import Dictated, Prompter, Script
from journeyman.agents.rollouts.occupancy import Occupancy
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.envs import make
from journeyman.envs.trl import trl_environment, trl_reward

LONGEST_TURN = 128
"""Tokens; none of the script's turns comes to it."""
Streams = list[list[int]]
"""The sampled tokens of each conversation, one turn after the other."""


def student(model: PreTrainedModel, script: Script) -> HFPlayer:
    """A model as it plays in this process."""
    return HFPlayer(model, script.dialect, Sampling(max_tokens=LONGEST_TURN))


def ours(
    model: PreTrainedModel,
    script: Script,
    refs: Sequence[TaskRef],
    places: int,
    occupancy: Occupancy | None = None,
) -> Streams:
    """Our rollout loop; the student is made anew, so that nothing of an earlier call is known.

    Args:
        model: The student's.
        script: What it says.
        refs: Which conversations.
        places: How many are played side by side.
        occupancy: Is told how many places were taken.
    """
    with script.dictated():
        played = rollout(
            student(model, script), refs, places, {"max_turns": 99}, occupancy=occupancy
        )
    for episode in played:
        if episode.error is not None:
            raise RuntimeError(episode.error)
    return [[token for token, own in zip(e.tokens, e.mask, strict=True) if own] for e in played]


class Reencoding:
    """A loop of `generate` that is given the whole conversation again for each turn."""

    def __init__(self, model: PreTrainedModel, script: Script) -> None:
        """Play with a model."""
        self._model = model
        self._script = script
        self._dialect = script.dialect

    def __call__(self, refs: Sequence[TaskRef]) -> Streams:
        """Play conversations side by side, each turn in all of them at once."""
        dialect, turns = self._dialect, [self._script.of(ref.seed) for ref in refs]
        envs = [make(ref.env_id, max_turns=99) for ref in refs]
        rows: list[list[int]] = []
        sampled: Streams = [[] for _ in refs]
        for env, ref in zip(envs, refs, strict=True):
            messages, _ = env.reset(options={"task_id": ref.task_id})
            rows.append(list(dialect.opening(messages, env.tools)))
        for at in range(self._script.turns):
            for i, written in enumerate(self._written(rows, [turn[at] for turn in turns])):
                rows[i] += written
                sampled[i] += written
                text = dialect.decode(written[:-1])
                messages, *_ = envs[i].step(dialect.read(text, envs[i].tools, rows[i]))
                rows[i] += dialect.reply(messages)
        for env in envs:
            env.close()
        return sampled

    @torch.inference_mode()
    def _written(self, rows: Sequence[Sequence[int]], turns: Sequence[Sequence[int]]) -> Streams:
        """The turn that each row gets."""
        pad, end = self._dialect.tokenizer.pad_token_id, self._dialect.eos_id
        length = max(map(len, rows))
        ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        written = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=LONGEST_TURN,
            eos_token_id=end,
            pad_token_id=pad,
            logits_processor=[Dictated(turns, length, end)],
        )[:, length:].tolist()
        return [row[: row.index(end) + 1] for row in written]


class _Played(Exception):
    """The conversations are over: the rest of TRL's step is not asked for."""


class TRLLoop:
    """`GRPOTrainer(environment_factory=…)`, up to where its conversations are over."""

    def __init__(self, model: PreTrainedModel, script: Script, env_id: str) -> None:
        """Make the trainer.

        Args:
            model: Plays.
            script: What it says.
            env_id: In which environment.
        """
        self._model: Any = model
        self._script = script
        self._env_id = env_id
        self._folder = tempfile.TemporaryDirectory()
        row = {"prompt": [{"role": "user", "content": ""}], "task_id": ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that environment_factory is experimental
            self._trainer: Any = GRPOTrainer(
                self._model,
                reward_funcs=trl_reward,
                environment_factory=trl_environment(env_id, max_turns=99),
                train_dataset=Dataset.from_list([row, row]),
                processing_class=script.dialect.tokenizer,
                args=GRPOConfig(
                    output_dir=self._folder.name,
                    max_steps=1,
                    per_device_train_batch_size=2,
                    num_generations=2,
                    max_completion_length=int(model.config.max_position_embeddings),
                    use_cpu=True,
                    bf16=False,
                    gradient_checkpointing=False,
                    report_to="none",
                    disable_tqdm=True,
                    save_strategy="no",
                ),
            )
        self._trainer.generation_config.max_new_tokens = LONGEST_TURN
        self._model.eval()

    def rows(self, refs: Sequence[TaskRef]) -> list[dict[str, Any]]:
        """What TRL takes for tasks."""
        with make(self._env_id) as env:
            messages, _ = env.reset(options={"task_id": refs[0].task_id})
        prompt = [messages[0].as_dict(), {"role": "user", "content": ""}]
        return [{"prompt": prompt, "task_id": ref.task_id} for ref in refs]

    def known(self, refs: Sequence[TaskRef]) -> Prompter:
        """What tells the turns to be written in these conversations."""
        openings = {}
        with make(self._env_id) as env:
            for ref in refs:
                messages, _ = env.reset(options={"task_id": ref.task_id})
                openings[tuple(self._script.dialect.opening(messages, env.tools))] = ref.seed
        return Prompter(self._script, openings)

    def __call__(self, rows: list[dict[str, Any]], known: Prompter) -> Streams:
        """Play conversations side by side.

        Args:
            rows: Of `rows`.
            known: Of `known`.
        """
        generate, played = self._trainer._generate, []

        def only(prompts: Any) -> Any:
            played.append(generate(prompts))
            raise _Played

        with (
            self._dictated(known),
            mock.patch.object(self._trainer, "_generate", only),
            contextlib.suppress(_Played),
        ):
            self._trainer._generate_and_score_completions(rows)
        _, completions, masks, *_ = played[0]
        return [
            [token for token, own in zip(ids, mask, strict=True) if own]
            for ids, mask in zip(completions, masks, strict=True)
        ]

    @contextlib.contextmanager
    def _dictated(self, known: Prompter) -> Iterator[None]:
        """Let TRL's calls of `generate` write the script's turns."""
        real, end = self._model.generate, self._script.dialect.eos_id

        def generate(**asked: Any) -> Any:
            rows = zip(asked["input_ids"].tolist(), asked["attention_mask"].tolist(), strict=True)
            turns = [
                known.next_turn([i for i, shown in zip(*row, strict=True) if shown]) for row in rows
            ]
            told = Dictated(turns, asked["input_ids"].shape[1], end)
            return real(**asked, logits_processor=[told])

        with mock.patch.object(self._model, "generate", generate):
            yield
