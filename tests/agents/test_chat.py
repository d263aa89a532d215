import copy
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from journeyman.agents.errors import AgentError, DialectError
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.students.dialect import HOW_TO_CALL, Dialect, ToolRender
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.envs import Message, StopReason, ToolEnv, make
from journeyman.tools import ToolCall, render_hermes

from .tiny import BUILTIN, chat, tokenizer

RENDERS: tuple[ToolRender, ...] = ("full", "signature", "names")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer())
    changed.chat_template = template
    return changed


def one_shot(conversation: list[Message], **kwargs: Any) -> list[int]:
    text = tokenizer().apply_chat_template(
        [m.as_dict() for m in conversation], tokenize=False, **kwargs
    )
    return list(tokenizer().encode(text, add_special_tokens=False))


@pytest.mark.parametrize("render", RENDERS)
@pytest.mark.parametrize("env_id", BUILTIN)
def test_an_episode_in_pieces_is_the_conversation_in_one(env_id: str, render: ToolRender) -> None:
    format = Dialect(tokenizer(), render)
    env = make(env_id)
    messages, _ = env.reset(options={"task_id": "test/1"})
    tokens = format.opening(messages, env.tools)
    opening_text = format.decode(tokens)
    turns: list[Message] = []
    for text in [*(render_hermes(c) for c in env.oracle()), "Answer: 12"]:
        tokens += format.turn(text)
        replies, *_ = env.step(text)
        turns += [Message("assistant", text), *replies]
        if replies:
            tokens += format.reply(replies)

    system = opening_text.partition("system\n")[2].partition("<|im_end|>")[0]
    if render == "full":  # the template shows the tools, not the message
        whole = one_shot([*messages, *turns], tools=[t.as_function() for t in env.tools])
    else:
        whole = one_shot([Message("system", system), *messages[1:], *turns])
    newline = format.tokenizer.encode("\n")
    assert [*tokens, *newline] == whole


def test_several_results_come_in_one_reply() -> None:
    first, second = Message("tool", "1", "add"), Message("tool", "2", "add")
    text = chat().decode(chat().reply([first, second]))
    assert text == (
        "\n<|im_start|>tool\n1<|im_end|>\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_turn_is_its_text_and_one_end() -> None:
    text = 'Tschüß <tool_call>\n{"name": "a"}\n</tool_call> 東京'
    turn = chat().turn(text)
    assert turn.count(chat().eos_id) == 1
    assert turn[-1] == chat().eos_id
    assert chat().decode(turn[:-1]) == text


def opening(render: ToolRender, *messages: Message) -> str:
    format = Dialect(tokenizer(), render)
    return format.decode(format.opening(messages, make("journeyman/Bank-v0").tools))


def test_names_only() -> None:
    text = opening("names", Message("system", "Be brief."), Message("user", "hi"))
    names = " ".join(t.name for t in make("journeyman/Bank-v0").tools)
    assert f"system\nBe brief.\nTools: {names}<|im_end|>" in text
    assert "source" not in text


def test_signatures_say_how_to_call() -> None:
    text = opening("signature", Message("system", "Be brief."), Message("user", "hi"))
    for tool in make("journeyman/Bank-v0").tools:
        assert f"\n{tool.signature()}: {tool.description}\n" in text
    assert text.count(HOW_TO_CALL) == 1
    assert '"properties"' not in text


def test_schemas_come_from_the_template() -> None:
    text = opening("full", Message("system", "Be brief."), Message("user", "hi"))
    assert text.count('"type": "function"') == len(make("journeyman/Bank-v0").tools)
    assert HOW_TO_CALL not in text


@pytest.mark.parametrize("render", ["signature", "names"])
def test_tools_are_listed_without_a_system_message_too(render: ToolRender) -> None:
    text = opening(render, Message("user", "hi"))
    assert text.startswith("<|im_start|>system\nTools:")
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_the_environments_messages_stay_as_they_are() -> None:
    message = Message("system", "Be brief.")
    opening("names", message, Message("user", "hi"))
    assert message == Message("system", "Be brief.")


def error(template: str | None, render: str) -> str:
    with pytest.raises(DialectError) as caught:
        Dialect(with_template(template), render)  # type: ignore[arg-type]
    assert isinstance(caught.value, AgentError)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_template() -> None:
    assert "no chat template" in error(None, "names")


def test_a_template_without_tools() -> None:
    assert "render=signature" in error(CHATML, "full")
    assert Dialect(with_template(CHATML), "signature").render == "signature"


def test_an_unknown_render() -> None:
    assert "'short': use full, signature or names" in error(CHATML, "short")


def test_a_template_that_ends_turns_its_own_way() -> None:
    template = CHATML.replace("<|im_end|>", "</s>")
    assert "does not end an assistant's turn with '<|im_end|>'" in error(template, "names")


def test_a_tokenizer_without_an_end_token() -> None:
    changed = with_template(CHATML)
    changed.eos_token = None
    with pytest.raises(DialectError, match="no single eos_token"):
        Dialect(changed, "names")


def test_a_template_that_rewrites_earlier_turns() -> None:
    # As templates do that drop the reasoning of all but the last turn.
    hides = CHATML.replace(
        "{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else '...' }}"
    )
    assert "rewrites earlier turns" in error(hides, "names")


def test_a_template_that_takes_no_results() -> None:
    drops = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    assert "does not show a message of the role tool" in error(drops, "names")
    refuses = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}",
    )
    assert "refuses a tool's result (no tools)" in error(refuses, "names")


TEMPLATES = {
    file.name.removesuffix(".jinja"): file.read_text("utf-8")
    for file in (files("trl") / "chat_templates").iterdir()
    if file.name.endswith(".jinja")
}
QWEN = sorted(name for name in TEMPLATES if name.startswith("qwen") and "tools" in TEMPLATES[name])
ENDS = {"llama3_1": "<|eot_id|>", "llama3_2": "<|eot_id|>"}
"""What ends a turn, if not <|im_end|>."""
FAMILIES = [*QWEN, "lfm2_v2", "nemotron_3_nano", "nemotron_3_super_training", *ENDS]


def of_family(name: str, **variables: Any) -> Dialect:
    """A model's template with the embedded tokenizer."""
    changed = with_template(TEMPLATES[name])
    changed.add_special_tokens({"eos_token": ENDS.get(name, "<|im_end|>")})
    return Dialect(changed, template_kwargs=variables)


def stumble_then_solve(env: ToolEnv) -> Iterator[str]:
    yield render_hermes(ToolCall("no_such_tool"))
    yield from oracle(env)


@pytest.mark.parametrize("name", FAMILIES)
def test_episodes_under_the_templates_of_models(name: str) -> None:
    """With an error in them: every turn stands as it was written, every result is shown."""
    format = of_family(name)
    (episode,) = rollout(
        ScriptedPlayer(format, stumble_then_solve), [TaskRef("journeyman/Bank-v0", "test/1")]
    )
    assert (episode.stop, episode.success, episode.error) == (StopReason.ANSWERED, True, None)
    text = format.decode(episode.tokens)
    for step in episode.steps:
        assert format.decode(episode.tokens[slice(*step.span)]) == step.text + ENDS.get(
            name, "<|im_end|>"
        )
    results = [result for step in episode.steps for result in step.results]
    assert len(results) > 2
    shown = [json.dumps(r.content) if name in ENDS else r.content for r in results]
    assert [content in text for content in shown] == [True] * len(results)


def test_a_templates_variables() -> None:
    empty = "<think>\n\n</think>\n\n"
    messages = [Message("user", "hi")]
    for variables, ending in (({}, ""), ({"enable_thinking": False}, empty)):
        format = of_family("qwen3", **variables)
        for tokens in (format.opening(messages, []), format.reply([Message("tool", "1")])):
            assert format.decode(tokens).endswith(f"<|im_start|>assistant\n{ending}")


CONSIDERED = '<tool_call>\n{"name": "transfer", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    "reasoning",
    [
        f"<think>\nmaybe {CONSIDERED}?\nAnswer: 9\n</think>\n\n",
        f"maybe {CONSIDERED}?\nAnswer: 9\n</think>\n\n",  # the prompt opens it
    ],
)
def test_what_is_only_considered_is_not_done(reasoning: str) -> None:
    def think_first(env: ToolEnv) -> Iterator[str]:
        return (reasoning + text for text in oracle(env))

    (episode,) = rollout(
        ScriptedPlayer(chat(), think_first), [TaskRef("journeyman/Bank-v0", "test/1")]
    )
    assert episode.success
    for step in episode.steps:
        assert step.text.startswith(reasoning)
        assert len(step.results) == step.text.count("<tool_call>") - 1
        for span in step.parts.get("call", ()):  # and what is done is found where it stands
            text = chat().decode(episode.tokens[slice(*span)])
            assert text == step.text[len(reasoning) :]


def test_reasoning_without_an_end_does_nothing() -> None:
    env = make("journeyman/Bank-v0")
    env.reset(options={"task_id": "test/1"})
    _, _, terminated, _, info = env.step(f"<think>\n{CONSIDERED}\nAnswer: 9")
    assert terminated
    assert info["calls"] == ()


def test_markers_in_arguments_are_not_reasoning() -> None:
    env = make("journeyman/Bank-v0")
    for text in ("<think>", "</think>", "a <think> b </think>"):
        env.reset(options={"task_id": "test/1"})
        call = ToolCall("find_account", {"owner": text})
        (result,) = env.step(render_hermes(call))[-1]["calls"]
        assert result.call.arguments == call.arguments
