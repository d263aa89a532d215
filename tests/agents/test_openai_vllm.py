"""vLLM's own server of chat completions against the same weights in here (`make test-vllm`)."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeyman.agents.evaluation.metrics import summarise
from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.hf import HFPlayer, load_student
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.envs import Episode

from .tiny import BUILTIN

pytest.importorskip("openai")  # of the developer's tools

from .openai_agent import Agent, client
from .test_proxy import judge, played_in, proxy
from .vllm_serving import CACHE, OPTIONS, serving

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

TEMPLATE = r"""
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}
{%- if loop.first and tools %}
{{- '\nTools:' }}
{%- for t in tools %}{{- ' ' + t.function.name }}{%- endfor %}
{%- endif %}
{%- for c in m.tool_calls or [] %}
{{- '\n' if m.content or not loop.first else '' }}
{{- '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
"""The embedded student's, with names of tools as `student.render=names` shows them, and calls."""
COUNT = 48
TURN, CONTEXT = 48, 640


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded student on vLLM's server, until the tests are done."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "template.jinja").write_text(TEMPLATE.strip())
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *(f"--model={resolve('embedded-student')}", "--served-model-name=embedded-student"),
        *("--host=127.0.0.1", f"--max-model-len={CONTEXT + TURN}"),
        *(*OPTIONS, CACHE, f"--chat-template={folder / 'template.jinja'}"),
        *("--enable-auto-tool-choice", "--tool-call-parser=hermes"),
    ]
    with serving(command, folder) as address:
        yield address


@pytest.fixture(scope="module")
def student() -> HFPlayer:
    loaded = load_student(
        "embedded-student", render="names", max_turn_tokens=TURN, max_context=CONTEXT, device="cpu"
    )
    return loaded.at(temperature=0.0)


TASKS = [TaskRef(BUILTIN[i % len(BUILTIN)], f"test/{i}", seed=i) for i in range(COUNT)]
KWARGS = {"max_turns": 6}


@pytest.fixture(scope="module")
def ours(student: HFPlayer) -> list[Episode]:
    return rollout(student, TASKS, env_kwargs=KWARGS)


def acts(episode: Episode) -> list[str]:
    """What was called, and what was answered last."""
    return [r.call.canonical() for r in episode.calls] + [episode.steps[-1].said.strip()]


def test_the_table_is_that_of_the_student_in_this_process(url: str, ours: list[Episode]) -> None:
    """Greedily; but for ties, and for calls that vLLM's parser cannot read and takes for an end."""
    it = OpenAIPlayer(url, max_turn_tokens=TURN).at(temperature=0.0)
    it.check()
    theirs = rollout(it, TASKS, env_kwargs=KWARGS)
    mine, other = summarise(ours), summarise(theirs)
    alike = sum(acts(a) == acts(b) for a, b in zip(ours, theirs, strict=True))
    print(f"{alike} of {COUNT} alike; success {mine.success.value} and {other.success.value}")
    assert other.infra_failures == 0 and 0 < mine.success.value < 1
    assert alike >= 0.85 * COUNT
    assert abs(mine.success.value - other.success.value) <= 1.5 / COUNT
    assert all(s.usage and s.usage.completion for e in theirs for s in e.steps)


def test_the_proxy_before_it_records_its_tokens(
    url: str, ours: list[Episode], tmp_path: Path
) -> None:
    given = ("student=openai", f"student.base_url={url}", f"student.max_turn_tokens={TURN}")
    with proxy(tmp_path, *given) as here, client(here) as to:
        for i, task in enumerate(TASKS[:6]):
            headers = {"journeyman-episode": f"e{i}"}
            agent = Agent(to, task.env_id, task.task_id, 6, extra_headers=headers, max_tokens=TURN)
            agent.play()
            judge(here, f"e{i}", {"success": agent.success})
    found = [p.episode for p in played_in(tmp_path) if p.row == "agent"]
    assert len(found) == 6
    same = 0
    for mine, theirs in zip(ours, found, strict=False):
        length = min(len(mine.tokens), len(theirs.tokens))
        same += mine.tokens[:length] == theirs.tokens[:length]
        if mine.tokens[:length] == theirs.tokens[:length]:
            chosen = [i for i in range(length) if theirs.mask[i] and mine.mask[i]]
            assert [theirs.logprobs[i] for i in chosen] == pytest.approx(
                [mine.logprobs[i] for i in chosen], abs=1e-2
            )
    assert same >= 4
