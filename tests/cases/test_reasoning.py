"""What a student only considers is not done: reasoning ends where its family says, or nowhere."""

import copy
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from journeyman.agents.rollouts.demonstrations import demonstrate
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import Fork, TaskRef
from journeyman.agents.search.language import LanguageWorld
from journeyman.agents.students.dialect import Dialect, Mistral, dialect_of
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Sampling
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.agents.students.spoken import SpokenPlayer
from journeyman.envs import Episode, StopReason, ToolEnv, make
from journeyman.tools import CallStatus, ToolCall, get_parser, render_hermes
from journeyman.tools.parsing import begun_in, read_turn
from journeyman.tools.parsing.reasoning import ANALYSIS, MARKS, THINK

from ..agents.tiny import llama, tokenizer

BANK = "journeyman/Bank-v0"
DRAFT = ToolCall("freeze", {"account": "x"})
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPEN{% endif %}"
)


def with_template(template: str) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer())
    changed.chat_template = template
    return changed


def shipped(name: str, **variables: Any) -> Dialect:
    source = (files("trl") / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    return dialect_of(with_template(source), template_kwargs=variables)


OPENED = {
    "qwen3_5_think": {},
    "qwen3_6": {},
    "qwen3_8": {},
    "nemotron_3_nano": {"enable_thinking": True},
    "nemotron_3_super": {},
    "nemotron_3_ultra": {},
}
"""Templates that begin reasoning in the prompt, with what makes them."""


def opened() -> list[Dialect]:
    """A dialect of each way to begin reasoning in the prompt."""
    found = [shipped(name, **variables) for name, variables in OPENED.items()]
    marked = CHATML.replace("OPEN", "[THINK]")
    return [*found, Mistral(with_template(marked), "names")]


DIALECTS = [pytest.param(it, id=f"{i}-{it.name}") for i, it in enumerate(opened())]
# What stands before and after the end of reasoning; {draft} is a call that is only considered.
WAYS = {
    "on its own line": "I could {draft} but no.\n{close}\n\n",
    "at the end of a line": "I could {draft} but no.{close}\n\n",
    "right before what is done": "I could {draft} but no.\n{close}",
    "in the middle of a line": "I could {draft} but no.{close}",
    "after a carriage return": "I could {draft} but no.\r\n{close}\r\n",
    "opened once more": "{open}\n{draft}\n{close}\n\n",
    "after prose": "Hm.\n{open}\n{draft}\n{close}\n\n",
    "twice": "a\n{close}\n\n{open}\n{draft}\n{close}\n\n",
    "twice, on one line": "a{close}{open}{draft}{close}",
    "mentioned before it ends": "`{close}` ends it. {draft}\n{close}\n\n",
    "with an answer": "Answer: 7 maybe. No.{close}\n\n",
    "empty": "\n{close}\n\n",
}


def marks(dialect: Dialect) -> tuple[str, str]:
    pair = dialect._begins[0]
    assert pair is not None
    return pair.open, pair.close


def reasoned(way: str, dialect: Dialect) -> str:
    start, end = marks(dialect)
    draft = dialect.write_call(DRAFT).replace("\n", "")
    return WAYS[way].format(draft=draft, open=start, close=end)


class Thinker(SpokenPlayer):
    """Plays the gold turns behind some reasoning, or what it is given."""

    def __init__(self, dialect: Dialect, before: str, turns: list[str] | None = None) -> None:
        super().__init__(dialect, side_by_side=1)
        self.before = before
        self.turns = turns

    def turn(self, messages: Any, tools: Any, seed: int) -> str:
        said = sum(m.role == "assistant" for m in messages)
        if self.turns is not None:
            return self.turns[min(said, len(self.turns) - 1)]
        env = make(BANK)
        env.reset(options={"task_id": "test/1"})
        gold = list(oracle(env))[said]
        text = gold if isinstance(gold, str) else self.dialect.write_call(gold)
        return self.before + text


def played(player: Any, **kwargs: Any) -> Episode:
    (episode,) = rollout(player, [TaskRef(BANK, "test/1")], **kwargs)
    return episode


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_draft_is_not_executed(dialect: Dialect) -> None:
    gold = make(BANK).load_task("test/1").gold
    for way in WAYS:
        episode = played(Thinker(dialect, reasoned(way, dialect)))
        made = [(r.call.name, r.call.arguments) for r in episode.calls]
        assert (episode.success, made) == (True, [(c.name, c.arguments) for c in gold]), way
        for step in episode.steps:  # and what is done is found where it stands
            for span in step.parts["call"]:
                found = dialect.decode(episode.tokens[slice(*span)])
                assert found.strip() == step.text[len(reasoned(way, dialect)) :].strip(), way


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reasoning_that_is_cut_off_is_neither_call_nor_answer(dialect: Dialect) -> None:
    start, end = marks(dialect)
    draft = dialect.write_call(DRAFT)
    cuts = (f"I could {draft} but maybe Answer: 7", f"{start}\n{draft}", "Answer: 7", draft, "")
    for cut in cuts:
        episode = played(Thinker(dialect, "", [cut, f"{end}\nAnswer: 8"]))
        first, second = episode.steps
        (result,) = first.results
        assert (result.call.name, result.call.status) == ("", CallStatus.UNCLOSED), cut
        assert f"not closed with {end}" in first.reply[0].content
        assert "answer" not in first.parts or not cut
        assert (second.results, second.said) == ((), "Answer: 8")
        assert episode.stop is StopReason.ANSWERED


def test_a_model_is_read_from_its_prompt_on() -> None:
    """A model that never ends its reasoning does nothing, whatever it writes there."""
    dialect = shipped("qwen3_5_think")
    model = llama(len(tokenizer()), seed=3)
    player = HFPlayer(model, dialect, Sampling(max_tokens=5), max_context=100_000)
    model.config.max_position_embeddings = 8192
    player = HFPlayer(model, dialect, Sampling(max_tokens=5))
    with torch.no_grad():
        episode = played(player, env_kwargs={"max_turns": 2})
    assert len(episode.steps) == 2
    assert {r.call.status for r in episode.calls} == {CallStatus.UNCLOSED}
    assert episode.stop is StopReason.MAX_TURNS


@pytest.mark.parametrize("dialect", DIALECTS)
def test_who_says_only_what_it_means_ends_reasoning_first(dialect: Dialect) -> None:
    """Scripts and demonstrations: their turns are what the family writes that does not reason."""
    _, end = marks(dialect)
    episode = played(ScriptedPlayer(dialect, oracle))
    assert episode.success
    assert all(step.text.startswith(f"\n{end}\n\n") for step in episode.steps)
    shown = demonstrate(make(BANK), "test/1", dialect)
    assert shown.tokens[: len(episode.tokens)] == episode.tokens
    spoilt = demonstrate(make(BANK), "test/1", dialect, error_rate=0.6)
    assert len(spoilt.tokens) > len(shown.tokens)


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6"])
def test_what_a_turn_without_reasoning_begins_with_is_the_templates(name: str) -> None:
    dialect = shipped(name)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    whole = dialect.tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = dialect.tokenizer.apply_chat_template(
        messages[:1], tokenize=False, add_generation_prompt=True
    )
    assert prompt + dialect.spoken("ho") + "<|im_end|>\n" == whole


def test_a_script_may_reason_by_itself() -> None:
    dialect = shipped("qwen3_5_think")

    def cut(env: ToolEnv) -> Iterator[ToolCall | str]:
        yield f"<think>\n{dialect.write_call(DRAFT)}"
        yield from oracle(env)

    episode = played(ScriptedPlayer(dialect, cut))
    assert [r.call.status for r in episode.steps[0].results] == [CallStatus.UNCLOSED]
    assert episode.success


def test_the_prompt_decides_turn_by_turn() -> None:
    """Switched off by a template's variable, or where only some prompts begin it."""
    off = shipped("qwen3_5_think", enable_thinking=False)
    assert off.spoken("Answer: 7") == "Answer: 7"
    assert off.read("Answer: 7").answer == "Answer: 7"
    after_users = CHATML.replace("OPEN", "{% if messages[-1].role == 'user' %}<think>\n{% endif %}")
    dialect = Dialect(with_template(after_users), "names")
    prompts = {"user": "<|im_start|>assistant\n<think>\n", "tool": "<|im_start|>assistant\n"}
    for role, ending in prompts.items():
        ids = dialect.tokenizer.encode(f"42<|im_end|>\n{ending}")
        assert dialect.read("Answer: 7", (), ids).answer == ("" if role == "user" else "Answer: 7")
    assert played(ScriptedPlayer(dialect, oracle)).success


def test_a_content_cannot_begin_reasoning() -> None:
    bare = CHATML.replace("<|im_start|>assistant\nOPEN", "")  # its prompts end with contents' ends
    dialect = Dialect(with_template(bare), "names")
    ids = dialect.tokenizer.encode("<think>")
    assert dialect.read("Answer: 7", (), ids).answer == "Answer: 7"


# Without a prompt: text handed to an environment


@pytest.mark.parametrize("way", [w for w in WAYS if "mention" not in w and w != "twice"])
def test_text_for_an_environment(way: str) -> None:
    """Nobody knows its prompt: a closing mark ends reasoning that nothing opened."""
    env = make(BANK)
    env.reset(options={"task_id": "test/1"})
    before = WAYS[way].format(draft=render_hermes(DRAFT), open="<think>", close="</think>")
    info = env.step(before + render_hermes(env.oracle()[0]))[-1]
    assert [(r.call.name, r.ok) for r in info["calls"]] == [(env.oracle()[0].name, True)]


ANSWERS = {
    "The sum is wrong, Answer: 7 maybe. No.</think>\n\nAnswer: 8": "Answer: 8",
    "Answer: use </think> here": "Answer: use </think> here",
    "Answer: </think>": "Answer: </think>",
    "Answer: a <think> tag": "Answer: a <think> tag",
    "<think>\n7\n</think>\n\nAnswer: [/THINK]": "Answer: [/THINK]",
    "Answer: 3": "Answer: 3",
}


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_beside_reasoning(text: str) -> None:
    calls, visible = read_turn(text, get_parser("hermes"))
    assert calls == ()
    assert (visible.strip(), len(visible)) == (ANSWERS[text], len(text))


VALUES = ["<think>", "</think>", "a\n</think>\nb", "\n<think>\n", "x</think>"]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("form", ["hermes", "qwen3_coder", "glm45", "mistral", "llama3_json"])
def test_marks_in_arguments_are_arguments(form: str, value: str) -> None:
    parser = get_parser(form)
    call = parser.render(ToolCall("write", {"text": value}))
    for before, begun in (("", None), ("hm\n</think>\n\n", None), ("hm</think>", THINK)):
        (read,), _ = read_turn(before + call, parser, (THINK,), begun)
        assert (read.error, read.arguments) == (None, {"text": value})


@pytest.mark.parametrize("pair", MARKS, ids=lambda it: it.open)
def test_marks_of_families(pair: Any) -> None:
    """Known by the template; what a turn opens, and what its prompt does."""
    template = f"{{# {pair.open} {pair.close} #}}{CHATML.replace('OPEN', '')}"
    dialect = Dialect(with_template(template), "names")
    draft, call = render_hermes(DRAFT), render_hermes(ToolCall("now", {}))
    text = f"{pair.open}\n{draft}\n{pair.close}\n{call}"
    assert [c.name for c in dialect.read(text).calls] == ["now"]
    assert begun_in(f"assistant\n{pair.open}\n", MARKS) is pair
    calls, _ = read_turn(f"{draft}{pair.close}{call}", get_parser("hermes"), MARKS, pair)
    assert [c.name for c in calls] == ["now"]
    (cut,), said = read_turn(f"{draft} Answer: 1", get_parser("hermes"), MARKS, pair)
    assert (cut.status, said) == (CallStatus.UNCLOSED, "")


def test_an_analysis_is_not_said() -> None:
    form = get_parser("harmony")
    thought, call = "<|channel|>analysis<|message|>I could {}", form.render(ToolCall("now", {}))
    draft = 'to=functions.freeze {"account": "x"}, Answer: 7'
    final = "<|start|>assistant<|channel|>final<|message|>Answer: 8"
    ended = thought.format(draft) + "<|end|>"
    calls, _ = read_turn(f"{ended}<|start|>assistant{call}", form, (ANALYSIS,))
    assert [(c.name, c.error) for c in calls] == [("now", None)]
    calls, said = read_turn(f"{ended}{final}", form, (ANALYSIS,))
    assert calls == ()
    assert "7" not in said and said.endswith("Answer: 8")
    (cut,), said = read_turn(thought.format(draft), form, (ANALYSIS,))
    assert (cut.status, said) == (CallStatus.UNCLOSED, "")
    # A message that another follows has ended.
    calls, _ = read_turn(f"{thought.format('')}{call}", form, (ANALYSIS,))
    assert [c.name for c in calls] == ["now"]


# Search sees what was said, not what was considered


def test_answers_are_one_action_whatever_was_considered() -> None:
    dialect = shipped("qwen3_5_think")
    turns = ["It may be 7.\n</think>\n\nEight, it seems.", "Or not.</think>Eight, it seems."]
    worlds = [LanguageWorld(Thinker(dialect, "", [turn])) for turn in turns]
    trees = [world.begin([TaskRef(BANK, "test/1")])[0] for world in worlds]
    actions = [[*tree.nodes[tree.root].edges] for tree in trees]
    assert actions[0] == actions[1]
    handle = trees[0].nodes[trees[0].root].handle
    assert isinstance(handle, Fork)
    proposed = worlds[0].propose(Thinker(dialect, "", turns[1:]), [(trees[0].root, handle)])
    assert proposed == actions[0]


def test_what_was_said_is_kept_on_disk() -> None:
    episode = played(Thinker(shipped("qwen3_5_think"), "", ["hm</think>\nAnswer: 8"]))
    assert [step.said for step in episode.steps] == ["Answer: 8"]
    assert Episode.from_dict(episode.to_dict()).steps == episode.steps
