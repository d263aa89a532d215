"""Conversations as token ids: what a policy reads and how its next prompt continues.

Token-in token-out: the opening is rendered once; after each student turn only the NEW messages are
rendered and appended, so the student's own tokens are never decoded and encoded again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import ChatFormatError
from journeyman.envs.types import Message
from journeyman.tools import ToolSpec

ToolRender = Literal["full", "signature", "names"]
"""How the prompt shows the tools: JSON schemas through the chat template; one signature a line with
a note on the call form; or names only, for students trained on these very tools."""

HOW_TO_CALL = (
    'To use a tool, write only: <tool_call>\n{"name": "<tool>", "arguments": {"<argument>": '
    "<value>}}\n</tool_call>"
)


class ChatFormat:
    """Renders one model family's conversations, by its tokenizer's chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        render: ToolRender = "full",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the template.

        Args:
            tokenizer: Has the chat template.
            render: How the prompt shows the tools.
            template_kwargs: Variables for the template, such as `enable_thinking` for Qwen3's.

        Raises:
            ChatFormatError: No such `render`; or the tokenizer has no chat template, or none that
                shows tools while `render` is "full", or no end-of-turn token that it ends turns by,
                or it cannot go on from a turn with what a tool said.
        """
        template = tokenizer.chat_template
        if not template:
            raise ChatFormatError(
                "the tokenizer has no chat template; set tokenizer.chat_template or use an "
                "instruction-tuned model"
            )
        if render not in ("full", "signature", "names"):
            raise ChatFormatError(f"tools render {render!r}: use full, signature or names")
        if render == "full" and "tools" not in str(template):
            raise ChatFormatError(
                "the chat template shows no tools; use render=signature to list them in the system "
                "message"
            )
        self.tokenizer = tokenizer
        self.render = render
        self.eos_id = _token_id(tokenizer)
        self._variables = dict(template_kwargs or {})
        end = str(tokenizer.convert_ids_to_tokens(self.eos_id))
        self._ended = _PROBE_TEXT + end
        if self._ended not in self._template(list(_PROBE), False):
            raise ChatFormatError(
                f"the chat template does not end an assistant's turn with {end!r}"
            )
        self._check_results()
        # Templates and tokenizers take their time, and forks of an episode hear the same again.
        self._piece = functools.lru_cache(1 << 16)(self._decode)
        self._reply = functools.lru_cache(1 << 12)(self._render_reply)

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Tokens of the first prompt, up to where the student starts to write."""
        conversation = [m.as_dict() for m in messages]
        schemas: list[Any] | None = None
        if self.render == "full":
            schemas = [t.as_function() for t in tools]
        else:
            conversation = self._list_tools(conversation, tools)
        return self._encode(self._template(conversation, True, schemas))

    def reply(self, messages: Sequence[Message]) -> list[int]:
        """Tokens between the student's end-of-turn token and its next turn.

        Args:
            messages: The environment's new messages; at least one.
        """
        return list(self._reply(tuple(messages)))

    def _render_reply(self, messages: tuple[Message, ...]) -> list[int]:
        return self._encode(self._continuation(messages))

    def _continuation(self, messages: Sequence[Message]) -> str:
        text = self._template([*_PROBE, *(m.as_dict() for m in messages)], True)
        # What stands before the end of the probe's turn does not matter: a template may write the
        # last turn with reasoning (be it none) and earlier ones without.
        _, ended, new = text.partition(self._ended)
        if not ended:
            raise ChatFormatError(
                "the chat template rewrites earlier turns; it cannot be continued"
            )
        return new

    def _check_results(self) -> None:
        try:
            shown = _RESULT in self._continuation([Message("tool", _RESULT, "probe")])
        except TemplateError as error:
            raise ChatFormatError(
                f"the chat template refuses a tool's result ({error}); use a model trained on tools"
            ) from error
        if not shown:
            raise ChatFormatError(
                "the chat template does not show a message of the role tool; use a model whose "
                "template does"
            )

    def turn(self, text: str) -> list[int]:
        """Tokens of a whole student turn, end-of-turn token included (for demonstrations)."""
        return [*self._encode(text), self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of student tokens, markers kept."""
        return self._piece(ids[0]) if len(ids) == 1 else self._decode(*ids)

    def _decode(self, *ids: int) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _list_tools(
        self, conversation: list[dict[str, str]], tools: Sequence[ToolSpec]
    ) -> list[dict[str, str]]:
        if self.render == "names":
            listing = "Tools: " + " ".join(t.name for t in tools)
        else:
            lines = (f"{t.signature()}: {t.description}" for t in tools)
            listing = "\n".join(("Tools:", *lines, HOW_TO_CALL))
        if conversation and conversation[0]["role"] == "system":
            content = f"{conversation[0]['content']}\n{listing}"
            return [{"role": "system", "content": content}, *conversation[1:]]
        return [{"role": "system", "content": listing}, *conversation]

    def _template(
        self, conversation: list[dict[str, str]], prompt: bool, tools: list[Any] | None = None
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                conversation,
                tools=tools,
                tokenize=False,
                add_generation_prompt=prompt,
                **self._variables,
            )
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


_RESULT = "1024"
_PROBE_TEXT = "ok"
_PROBE = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": _PROBE_TEXT})


def _token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    token_id = tokenizer.eos_token_id
    if not isinstance(token_id, int):
        raise ChatFormatError("the tokenizer has no single eos_token that ends a turn")
    return token_id
