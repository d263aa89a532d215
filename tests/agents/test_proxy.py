"""`journeyman serve proxy`: what a program plays that knows nothing of us is recorded as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from journeyman.agents.evaluation.records import EpisodeFile, Played
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.runs.config import ProxyConfig, read
from journeyman.agents.runs.folder import RunFolder
from journeyman.agents.runs.proxy.command import open_gateway
from journeyman.agents.students.hf import HFPlayer, load_student

pytest.importorskip("openai")  # of the developer's tools

from .openai_agent import Agent, client, served

BANK, CALENDAR, ORDERS = (f"journeyman/{name}-v0" for name in ("Bank", "Calendar", "Orders"))


def composed(run: Path, *overrides: str) -> DictConfig:
    with initialize_config_module(version_base="1.3", config_module="journeyman.conf"):
        return compose("proxy", overrides=[f"run_dir={run}", *overrides])


@contextmanager
def proxy(run: Path, *overrides: str) -> Iterator[str]:
    config = composed(run, *overrides)
    folder = RunFolder(config)
    gateway = open_gateway(read(ProxyConfig, config), folder)
    with served(gateway.app) as url:
        yield url
    del folder


@pytest.fixture(scope="module")
def student() -> HFPlayer:
    return load_student(
        "embedded-student", render="names", max_turn_tokens=48, max_context=640, device="cpu"
    )


def judge(url: str, name: str, body: Any) -> httpx.Response:
    return httpx.post(f"{url}/episodes/{name}", json=body)


def played_in(run: Path) -> list[Played]:
    return EpisodeFile(run).read()


def test_a_program_plays_twenty_tasks(student: HFPlayer, tmp_path: Path) -> None:
    """The same tokens, log-probabilities and ends as when the student plays in this process."""
    tasks = [TaskRef((BANK, CALENDAR, ORDERS)[i % 3], f"test/{i}") for i in range(20)]
    verdicts = []
    with proxy(tmp_path) as url:
        for i, task in enumerate(tasks):
            name = f"episode-{i}"
            headers = {
                "journeyman-episode": name,
                "journeyman-env": task.env_id,
                "journeyman-task": task.task_id,
            }
            agent = Agent(client(url), task.env_id, task.task_id, extra_headers=headers)
            verdicts.append(agent.play())
            told = judge(url, name, {"success": agent.success, "reward": agent.reward}).json()
            assert (told["success"], told["streams"]) == (agent.success, 1)
    found = played_in(tmp_path)
    assert [p.episode.success for p in found] == verdicts
    assert {p.row for p in found} == {"agent"} and all(p.kind for p in found)
    greedy = student.at(temperature=0.0)
    ours = [rollout(greedy, [task])[0] for task in tasks]
    for mine, theirs in zip(ours, (p.episode for p in found), strict=True):
        assert theirs.tokens == mine.tokens and theirs.mask == mine.mask
        assert theirs.logprobs == pytest.approx(mine.logprobs, abs=1e-4)
        assert (theirs.success, theirs.reward, theirs.stop) == (
            mine.success,
            mine.reward,
            mine.stop,
        )
        assert theirs.opening == mine.opening
        assert [s.span for s in theirs.steps] == [s.span for s in mine.steps]
        assert [s.parts for s in theirs.steps] == [s.parts for s in mine.steps]
        pairs = zip(theirs.calls, mine.calls, strict=True)
        assert all(a.call.canonical() == b.call.canonical() for a, b in pairs)
