"""TRL's own GRPO trainer on our environments."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.networks.loading import load_model
from journeyman.envs.trl import trl_environment, trl_reward, trl_rows

BANK = "journeyman/Bank-v0"

# As the embedded student knows conversations, and with calls in the form TRL keeps them.
TEMPLATE = """\
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}
{%- if loop.first and tools %}{{- '\nTools:' }}
{%- for t in tools %}{{- ' ' + t.function.name }}{%- endfor %}{%- endif %}
{%- for c in m.tool_calls or [] %}{{- '<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two optimiser steps on the bank: tools are called, tasks are solved, weights move."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded-student"))
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE
    model = load_model("embedded-student", device="cpu")
    before = copy.deepcopy(model.state_dict())
    trainer = GRPOTrainer(
        model,
        reward_funcs=trl_reward,
        environment_factory=trl_environment(BANK),
        train_dataset=Dataset.from_list(trl_rows(BANK, "train", 8)),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=256,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
            seed=3,
        ),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert len(logs) == 2
    assert sum(log["tools/call_frequency"] for log in logs) > 0
    assert sum(log["reward"] for log in logs) > 0
    after = model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
