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
from journeyman.agents.students.dialect import (
    FAMILIES,
    Dialect,
    Hermes,
    ToolRender,
    dialect_of,
    dialects,
    family_of,
)
from journeyman.agents.students.scripted import ScriptedPlayer, oracle
from journeyman.envs import Message, StopReason, ToolEnv, make
from journeyman.tools import CallStatus, ToolCall, ToolSpec, parse_hermes, render_hermes
from journeyman.tools.parsing import PARSERS, get_parser

from ..tools.test_chat_templates import TEMPLATES as PARSED
from .tiny import BUILTIN, chat, tokenizer

TOOL = ToolSpec(
    "pay",
    "Pay.",
    {"properties": {"owner": {"type": "string"}, "amount": {"type": "integer"}}},
)
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
    dialect = Dialect(tokenizer(), render)
    env = make(env_id)
    messages, _ = env.reset(options={"task_id": "test/1"})
    tokens = dialect.opening(messages, env.tools)
    opening_text = dialect.decode(tokens)
    turns: list[Message] = []
    for text in [*(render_hermes(c) for c in env.oracle()), "Answer: 12"]:
        tokens += dialect.turn(text)
        replies, *_ = env.step(text)
        turns += [Message("assistant", text), *replies]
        if replies:
            tokens += dialect.reply(replies)

    system = opening_text.partition("system\n")[2].partition("<|im_end|>")[0]
    if render == "full":  # the template shows the tools, not the message
        whole = one_shot([*messages, *turns], tools=[t.as_function() for t in env.tools])
    else:
        whole = one_shot([Message("system", system), *messages[1:], *turns])
    newline = dialect.tokenizer.encode("\n")
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
    dialect = Dialect(tokenizer(), render)
    return dialect.decode(dialect.opening(messages, make("journeyman/Bank-v0").tools))


def test_names_only() -> None:
    text = opening("names", Message("system", "Be brief."), Message("user", "hi"))
    names = " ".join(t.name for t in make("journeyman/Bank-v0").tools)
    assert f"system\nBe brief.\nTools: {names}<|im_end|>" in text
    assert "source" not in text


def test_signatures_say_how_to_call() -> None:
    text = opening("signature", Message("system", "Be brief."), Message("user", "hi"))
    for tool in make("journeyman/Bank-v0").tools:
        assert f"\n{tool.signature()}: {tool.description}\n" in text
    assert text.count(chat().how_to_call) == 1
    assert '"properties"' not in text


def test_how_to_call_is_said_in_the_familys_form() -> None:
    assert Hermes(tokenizer()).how_to_call == (
        "To use a tool, write only: <tool_call>\n"
        '{"name": "<tool>", "arguments": {"<argument>": <value>}}\n</tool_call>'
    )
    for family in FAMILIES:
        dialect = family(tokenizer(), "signature")
        said, _, example = dialect.how_to_call.partition("write only: ")
        assert said == "To use a tool, "
        for stand_in, value in (("<tool>", "pay"), ("<argument>", "amount"), ("<value>", "3")):
            assert stand_in in example
            example = example.replace(stand_in, value)
        (call,) = dialect.read(example, [TOOL]).calls
        assert (call.name, set(call.arguments), call.error) == ("pay", {"amount"}, None)
        shown = dialect.decode(dialect.opening([Message("user", "hi")], [TOOL]))
        assert shown.count(dialect.how_to_call) == 1


def test_schemas_come_from_the_template() -> None:
    text = opening("full", Message("system", "Be brief."), Message("user", "hi"))
    assert text.count('"type": "function"') == len(make("journeyman/Bank-v0").tools)
    assert chat().how_to_call not in text


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


@pytest.mark.parametrize(
    "wrong", ["{{ bos_token + '' }}", "{% if %}", "{{ raise_exception('no') }}"]
)
def test_a_template_that_cannot_be_rendered(wrong: str) -> None:
    """Such as Llama 3's with a tokenizer that has no bos_token."""
    assert "cannot be used with this tokenizer: " in error(wrong + CHATML, "names")


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


DROPS = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
REFUSES = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}",
)


@pytest.mark.parametrize("template", [DROPS, REFUSES])
def test_where_a_template_takes_no_results_the_user_tells_them(template: str) -> None:
    dialect = Dialect(with_template(template), "names")
    text = dialect.decode(dialect.reply([Message("tool", "1", "add"), Message("tool", "2", "add")]))
    assert text == "\n<|im_start|>user\n1\n2<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_takes_no_results() -> None:
    """Not even of a user."""
    once = "(m.role != 'user' or loop.first)"
    drops = DROPS.replace(
        "m.role != 'tool'",
        f"m.role != 'tool' and {once}".replace("loop.first", "m.content == 'hi'"),
    )
    assert "does not show a message of the role tool" in error(drops, "names")
    again = "{% if m.role == 'user' and not loop.first %}{{ raise_exception('again') }}{% endif %}"
    refuses = REFUSES.replace("{{ m.content }}", again + "{{ m.content }}")
    assert "refuses a tool's result (no tools)" in error(refuses, "names")


TEMPLATES = {
    file.name.removesuffix(".jinja"): file.read_text("utf-8")
    for file in (files("trl") / "chat_templates").iterdir()
    if file.name.endswith(".jinja")
}
QWEN = sorted(name for name in TEMPLATES if name.startswith("qwen") and "tools" in TEMPLATES[name])
ENDS = {"llama3_1": "<|eot_id|>", "llama3_2": "<|eot_id|>"}
"""What ends a turn, if not <|im_end|>."""
SHIPPED = [*QWEN, "lfm2_v2", "nemotron_3_nano", "nemotron_3_super_training", *ENDS]


def of_family(name: str, form: str | None = None, **variables: Any) -> Dialect:
    """A model's template with the embedded tokenizer, in its own form unless another is named."""
    changed = with_template(TEMPLATES[name])
    changed.add_special_tokens({"eos_token": ENDS.get(name, "<|im_end|>")})
    return dialect_of(changed, form, template_kwargs=variables)


def stumble_then_solve(env: ToolEnv) -> Iterator[ToolCall | str]:
    yield ToolCall("no_such_tool")
    yield from oracle(env)


@pytest.mark.parametrize("form", ["hermes", None])
@pytest.mark.parametrize("name", SHIPPED)
def test_episodes_under_the_templates_of_models(name: str, form: str | None) -> None:
    """With an error in them: every turn stands as it was written, every result is shown."""
    dialect = of_family(name, form)
    (episode,) = rollout(
        ScriptedPlayer(dialect, stumble_then_solve), [TaskRef("journeyman/Bank-v0", "test/1")]
    )
    assert (episode.stop, episode.success, episode.error) == (StopReason.ANSWERED, True, None)
    text = dialect.decode(episode.tokens)
    for step in episode.steps:
        assert dialect.decode(episode.tokens[slice(*step.span)]) == step.text + ENDS.get(
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
        dialect = of_family("qwen3", **variables)
        for tokens in (dialect.opening(messages, []), dialect.reply([Message("tool", "1")])):
            assert dialect.decode(tokens).endswith(f"<|im_start|>assistant\n{ending}")


# Families


TOLD = [(template, family) for family, (_, names) in PARSED.items() for template in names]


@pytest.mark.parametrize(("template", "family"), TOLD)
def test_a_template_tells_its_family(template: str, family: str) -> None:
    found = family_of(with_template(TEMPLATES[template]))
    assert (found.name, found.form.name) == (family, family)


def test_where_no_template_tells_it_is_hermes() -> None:
    for template in (CHATML, None, tokenizer().chat_template):
        assert family_of(with_template(template)) is Hermes
    assert type(dialect_of(tokenizer())) is Hermes


def test_templates_of_mistral() -> None:
    """TRL ships none; theirs all have the marker."""
    marked = CHATML.replace("{% for", "{% set marker = '[TOOL_CALLS]' %}{% for", 1)
    assert family_of(with_template(marked)).name == "mistral"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda it: it.name)
def test_a_family_by_name_whatever_the_template_tells(family: type[Dialect]) -> None:
    assert dialects()[family.name] is family
    assert type(dialect_of(tokenizer(), family.name)) is family
    assert family.form is get_parser(family.name)


def test_every_form_has_its_family() -> None:
    assert {family.name for family in FAMILIES} == set(PARSERS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("herms", "did you mean 'hermes'?"),
        ("glm4", "did you mean 'glm45'?"),
        ("", "there are: .*hermes, qwen3_coder, glm45, mistral, harmony, .*llama3_json, pythonic$"),
    ],
)
def test_a_family_that_there_is_not(name: str, hint: str) -> None:
    with pytest.raises(DialectError, match=rf"^no dialect '{name}'; {hint}") as caught:
        dialect_of(tokenizer(), name)
    assert isinstance(caught.value, AgentError)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda it: it.name)
def test_a_turn_is_read_as_its_family_writes(family: type[Dialect]) -> None:
    dialect = family(tokenizer(), "names")
    call = ToolCall("pay", {"owner": "Zoë", "amount": 3})
    text = f"<think>\nmaybe {CONSIDERED}?\n</think>\n{dialect.write_call(call)}"
    turn = dialect.read(text, [TOOL])
    (read,) = turn.calls
    assert (read.name, read.arguments, read.error) == (call.name, call.arguments, None)
    assert turn.text == text
    assert read.span is not None and text[read.span[0] :] == dialect.write_call(call)
    answered = dialect.read("<think>\nAnswer: 3\n</think>\nAnswer: 4", [TOOL])
    assert answered.calls == ()
    assert "3" not in answered.answer and answered.answer.endswith("Answer: 4")


def test_plain_dialects_are_of_hermes() -> None:
    call = ToolCall("pay", {"amount": 3})
    assert chat().write_call(call) == render_hermes(call)
    assert chat().read(render_hermes(call)).calls == tuple(parse_hermes(render_hermes(call)))


# How the tools are shown, where nobody says


def test_tools_in_full_where_the_template_shows_them_and_else_by_signature() -> None:
    messages = [Message("user", "hi")]
    for template, render in ((tokenizer().chat_template, "full"), (CHATML, "signature")):
        dialect, named = (Dialect(with_template(template), it) for it in (None, render))
        assert dialect.render == render
        assert dialect.opening(messages, [TOOL]) == named.opening(messages, [TOOL])
        assert dialect_of(with_template(template), None, None).render == render


# What ends a turn


def test_end_tokens_of_a_dialect() -> None:
    eos = chat().eos_id
    assert chat().end_ids == (eos,)
    for ends, expected in (((7,), (eos, 7)), ((7, eos, 7, 9), (eos, 7, 9)), ((eos,), (eos,))):
        assert Dialect(tokenizer(), "names", ends=ends).end_ids == expected
        assert dialect_of(tokenizer(), None, "names", None, ends).end_ids == expected
    several = Dialect(tokenizer(), "names", ends=(7,))
    assert several.turn("hi")[-1] == several.eos_id == eos  # what is written ends by the template's


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
        turns = (t if isinstance(t, str) else chat().write_call(t) for t in oracle(env))
        return (reasoning + text for text in turns)

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
    messages, _, terminated, _, info = env.step(f"<think>\n{CONSIDERED}\nAnswer: 9")
    assert not terminated  # it is no answer either
    assert [(r.call.status, r.call.name) for r in info["calls"]] == [(CallStatus.UNCLOSED, "")]
    assert "reasoning was not closed with </think>" in messages[0].content


def test_markers_in_arguments_are_not_reasoning() -> None:
    env = make("journeyman/Bank-v0")
    for text in ("<think>", "</think>", "a <think> b </think>"):
        env.reset(options={"task_id": "test/1"})
        call = ToolCall("find_account", {"owner": text})
        (result,) = env.step(render_hermes(call))[-1]["calls"]
        assert result.call.arguments == call.arguments
