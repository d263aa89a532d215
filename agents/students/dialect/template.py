"""What a tokenizer's chat template does, found out by rendering with it: no template is read.

How it ends a turn, whether it shows tools and calls, and in whose name it tells a tool's result.
A dialect asks once, when it is made.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, TemplateError
from jinja2.meta import find_undeclared_variables
from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import DialectError
from journeyman.agents.students.contents import ContentGuard
from journeyman.tools import ToolCall
from journeyman.tools.parsing import CallFormat

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""What chat templates and servers call the reasoning of a message."""

REFUSALS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)
"""What a template raises that was not written for what it is given."""

SAID, THOUGHT, RESULT = "saidbefore", "thoughtbefore", "1024"
USER: Mapping[str, Any] = {"role": "user", "content": "hi"}
_SYSTEM: Mapping[str, Any] = {"role": "system", "content": SAID}
SPOKEN: Mapping[str, Any] = {"role": "assistant", "content": SAID}
GOLD = ToolCall("tool", {"argument": SAID})
"""The call that a template is asked to show."""

Json = dict[str, Any]


class ChatTemplate:
    """A chat template with its variables."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> None:
        """Take a tokenizer's template.

        Raises:
            DialectError: It has none.
        """
        if not tokenizer.chat_template:
            raise DialectError(
                "the tokenizer has no chat template; set tokenizer.chat_template or use an "
                "instruction-tuned model"
            )
        self._tokenizer = tokenizer
        self.text = str(tokenizer.chat_template)
        self.variables = dict(variables)

    def render(
        self, conversation: Sequence[Any], prompt: bool, tools: Sequence[Any] | None = None
    ) -> str:
        """A conversation as text; with `prompt`, up to where the student starts to write."""
        return str(
            self._tokenizer.apply_chat_template(
                list(conversation),
                tools=None if tools is None else list(tools),
                tokenize=False,
                add_generation_prompt=prompt,
                **self.variables,
            )
        )

    def shown(
        self, conversation: Sequence[Any], prompt: bool = False, tools: Sequence[Any] | None = None
    ) -> str:
        """The same; "" if the template refuses."""
        try:
            return self.render(conversation, prompt, tools)
        except REFUSALS:
            return ""

    def opened(self, conversation: Sequence[Any], prompt: bool, tools: Sequence[Any] | None) -> str:
        """A conversation as text, before anything is played.

        Raises:
            DialectError: The template refuses it.
        """
        try:
            return self.render(conversation, prompt, tools)
        except REFUSALS as error:
            raise DialectError(
                f"the chat template refuses a first prompt ({error}); student.render=signature "
                f"lists tools in the system message instead"
            ) from error

    @functools.cached_property
    def shows_tools(self) -> bool:
        """A prompt says what may be called."""
        if "tools" not in self.text:
            return False
        # One that refuses so plain a conversation is left to say so where it is used.
        return self._shown_tools([USER]) or self.shows_tools_with_system

    @functools.cached_property
    def shows_tools_with_system(self) -> bool:
        """It does so in its system message alone: without one nothing is said of tools."""
        return not self._shown_tools([USER]) and self._shown_tools([_SYSTEM, USER])

    def _shown_tools(self, conversation: Sequence[Any]) -> bool:
        function = {"name": THOUGHT, "description": "", "parameters": {"type": "object"}}
        text = self.shown(conversation, True, [{"type": "function", "function": function}])
        return not text or THOUGHT in text

    @functools.cached_property
    def variables_asked(self) -> frozenset[str]:
        """Names that the template asks for and does not set itself."""
        environment = Environment(extensions=["jinja2.ext.loopcontrols"])
        try:
            return frozenset(find_undeclared_variables(environment.parse(self.text)))
        except TemplateError:
            return frozenset()  # it is written in more than Jinja

    @functools.cached_property
    def takes_system(self) -> bool:
        """A conversation may begin with a system message."""
        return SAID in self.shown([_SYSTEM, USER], True)

    def with_calls(
        self, conversation: Sequence[Json], prompt: bool, tools: Sequence[Any] | None = None
    ) -> str:
        """A conversation with calls in it: most templates take arguments as they are, some as JSON.

        Raises:
            Exception: One of `REFUSALS`: the template takes them in no way.
        """
        try:
            return self.render(conversation, prompt, tools)
        except REFUSALS:
            return self.render([_in_json(message) for message in conversation], prompt, tools)

    def calling(
        self,
        *calls: Json,
        content: str = "",
        results: Sequence[Json] = (),
        must_show: str = SAID,
    ) -> str:
        """A turn that calls, and what the tools say after it; "" if the template does not show it.

        Args:
            calls: As `as_call` gives them.
            content: What is said before them.
            results: What the tools say; with them it is a prompt.
            must_show: A text that stands in one of the calls.
        """
        turn = {"role": "assistant", "content": content, "tool_calls": list(calls)}
        for told in (turn, _in_json(turn)):
            text = self.shown([USER, told, *results], bool(results))
            if text and must_show in text:
                return text
        return ""


def _in_json(message: Json) -> Json:
    if "tool_calls" not in message:
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def as_call(call_id: str, call: ToolCall) -> Json:
    """A call as chat templates take it."""
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {"type": "function", "id": call_id, "function": function}


def gold_in(text: str, form: CallFormat) -> ToolCall | None:
    """The call of a rendered conversation that holds the gold argument, if it is read at all."""
    place = text.rfind(SAID)
    for call in form(text):
        if call.span is not None and call.span[0] <= place < call.span[1]:
            return call
    return None


def after_answer(text: str, guard: ContentGuard, closers: Sequence[str]) -> tuple[str | None, str]:
    """The token that ends a turn at which a text begins, space before it included; and the rest.

    Args:
        text: What stands after what the turn says.
        guard: Knows the control tokens.
        closers: Control tokens of which an answer is written, that do not end the turn.
    """
    for closer in closers:
        text = text.removeprefix(closer)
    end = guard.end_after(text)
    return end, text[len(end or "") :]


def first_that_works(ways: Sequence[str], attempt: Callable[[str], str]) -> tuple[str, str]:
    """The first way in which something can be rendered, and the text.

    Raises:
        DialectError: There is none; it says why the first one failed.
    """
    failures: list[str] = []
    for way in ways:
        try:
            return way, attempt(way)
        except DialectError as error:
            failures.append(str(error))
        except REFUSALS as error:
            failures.append(f"the chat template refuses a tool's result ({error})")
    raise DialectError(failures[0])
