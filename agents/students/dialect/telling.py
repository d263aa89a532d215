"""How a prompt goes on after a turn: what ends the turn, and in whose name results are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from journeyman.agents.errors import DialectError
from journeyman.agents.students.contents import ContentGuard
from journeyman.agents.students.dialect.template import (
    GOLD,
    RESULT,
    SAID,
    SPOKEN,
    USER,
    ChatTemplate,
    after_answer,
    as_call,
    first_that_works,
    gold_in,
)
from journeyman.agents.students.dialect.traits import FamilyTraits
from journeyman.tools import ToolCall


class Telling:
    """A chat template's way to tell what others say to the student."""

    def __init__(
        self,
        chat: ChatTemplate,
        family: type[FamilyTraits],
        guard: ContentGuard,
        probed: str,
        eos: str,
    ) -> None:
        """Try it out.

        Args:
            chat: The template.
            family: Of the student.
            guard: Knows the control tokens.
            probed: A user's message and an answer, rendered.
            eos: The tokenizer's own end.

        Raises:
            DialectError: The template ends a turn by no token that is known, or shows a tool's
                result in no way.
        """
        self._chat, self._family, self._guard = chat, family, guard
        self.closing, end = self._ending(probed)
        """What closes an answer."""
        self.end = end or eos
        """The token that ends a turn, with the space before it."""
        if end is None and f"{SAID}{self.closing}{eos}" not in probed:
            raise DialectError(f"the chat template does not end an assistant's turn with {eos!r}")
        self.call_end, self._tail = self.end, ""
        """The token that ends a turn which calls."""
        self.results, self.after_result = self._check_results()
        """In whose name results are told, and how a prompt goes on after one."""

    def _ending(self, probed: str) -> tuple[str, str | None]:
        """What closes an answer, and the token that ends its turn where it is a control token.

        A template may end a turn by nothing but the mark that begins the next message.
        """
        after = probed.rpartition(SAID)[2]
        if not after.strip():
            after = self._chat.shown([USER, SPOKEN, USER]).rpartition(SAID)[2]
        closers = [
            closer for _, closer in self._family.answers if closer and after.startswith(closer)
        ]
        return "".join(closers[:1]), after_answer(after, self._guard, closers)[0]

    def alternating(self, conversation: list[dict[str, str]]) -> list[dict[str, str]]:
        """Messages in the roles that the template knows; it may ask that they alternate."""
        if not conversation:
            return conversation
        folds = conversation[0]["role"] == "system" and not self._chat.takes_system
        if self.results != "user" and not folds:
            return conversation
        others = {"tool"} if self.results == "user" else set()
        others |= {"system"} if folds else set()
        told: list[dict[str, str]] = []
        for message in conversation:
            role = "user" if message["role"] in others else message["role"]
            if told and told[-1]["role"] == role:
                told[-1] = {**told[-1], "content": f"{told[-1]['content']}\n{message['content']}"}
            else:
                told.append({"role": role, "content": message["content"]})
        return told

    def continued(self, told: Sequence[dict[str, Any]]) -> str:
        """How a prompt goes on after the token that ended the student's turn.

        Args:
            told: What is said then, as `alternating` gives it.
        """
        called = self.results == "calls" and told[0]["role"] == "tool"
        return (self._after_calls(told) if called else self._after_answer(told))[1]

    def _after_answer(self, told: Sequence[dict[str, Any]]) -> tuple[str, str]:
        text = self._chat.render([USER, SPOKEN, *told], True)
        # What stands before the end of the probe's turn does not matter: a template may write the
        # last turn with reasoning (be it none) and earlier ones without.
        _, said, new = text.partition(SAID)
        if not said:
            raise DialectError("the chat template rewrites earlier turns; it cannot be continued")
        end, after = after_answer(new, self._guard, [self.closing])
        if end is None and not after.startswith(self.end):
            raise DialectError("the chat template does not end a turn before the next message")
        return (end, after) if end else (self.end, after.removeprefix(self.end))

    def _after_calls(self, told: Sequence[dict[str, Any]]) -> tuple[str, str]:
        calls = []
        for number, message in enumerate(told):
            if message["role"] != "tool":
                break
            name = message.get("name", GOLD.name)
            message["tool_call_id"] = self._family.id_of(name, number)
            call = ToolCall(name, GOLD.arguments)
            calls.append(as_call(message["tool_call_id"], call))
        text = self._chat.calling(*calls, results=told)
        last = self._end_of_calls(text, len(calls))
        # The mark that ends a call may be the one that ends its turn.
        ended = next((end for end in self._family.call_ends if text.endswith(end, 0, last)), None)
        end, after = after_answer(text[last:], self._guard, ())
        return (ended, text[last:]) if ended else (end or self.end, after)

    def _end_of_calls(self, text: str, count: int) -> int:
        """Where the calls end that were put before some results.

        A call is known by its argument and what was seen to follow it, as its name is anybody's.
        """
        end, place = None, -1
        for _ in range(count):
            place = text.find(SAID, place + 1)
            if place >= 0 and self._tail and text.startswith(self._tail, place + len(SAID)):
                end = place + len(SAID) + len(self._tail)
        if end is None:
            call = gold_in(text, self._family.form)
            if call is None or call.span is None:
                raise DialectError("the chat template shows no call before a tool's result")
            end = call.span[1]
            self._tail = self._tail or text[text.index(SAID) + len(SAID) : end]
        return end

    def _check_results(self) -> tuple[str, str]:
        result = {"role": "tool", "content": RESULT, "name": "probe"}

        def attempt(way: str) -> str:
            self.results = way
            told = self.alternating([dict(result)])
            end, text = (self._after_calls if way == "calls" else self._after_answer)(told)
            if RESULT not in text:
                raise DialectError(
                    "the chat template does not show a message of the role tool; use a model whose "
                    "template does"
                )
            self.call_end = end
            return text

        ways = ["calls", "tool"] if self._family.calls_before_results else ["tool", "calls"]
        ways = [*ways, "user"] if self._family.results_as == "tool" else ["user"]
        return first_that_works(ways, attempt)
