"""Model text to calls and back, by family: every attempted call comes out, malformed ones too.

A parser never raises and never drops an attempt: a body that cannot be read, a call that was never
closed, one without a name each become a `ToolCall` with a status, an error message and a span.

That is why these are not transformers' response templates (`tokenizer.parse_response`): there a
body that is not JSON fails the whole turn, an unclosed call or one without a marker becomes prose,
a closing marker inside a string ends the call, and nothing says where a call stood. Where both can
read a turn they agree, which the tests check with TRL's chat and response templates.

One file a family, each a `CallFormat`; `scanning.py` is what their scanners stand on.
"""

from __future__ import annotations

from journeyman.tools.errors import UnknownParserError
from journeyman.tools.parsing.body import MAX_DEPTH
from journeyman.tools.parsing.form import CallFormat, Scanner
from journeyman.tools.parsing.gemma4 import GEMMA4
from journeyman.tools.parsing.glm45 import GLM45
from journeyman.tools.parsing.harmony import HARMONY
from journeyman.tools.parsing.hermes import HERMES
from journeyman.tools.parsing.listed import COHERE, GRANITE, PHI4
from journeyman.tools.parsing.llama3 import LLAMA3_JSON
from journeyman.tools.parsing.minimax import MINIMAX_M2
from journeyman.tools.parsing.mistral import MISTRAL
from journeyman.tools.parsing.pythonic import PYTHONIC
from journeyman.tools.parsing.qwen3_coder import QWEN3_CODER
from journeyman.tools.parsing.reasoning import (
    ANALYSIS,
    MARKS,
    THINK,
    Marks,
    begun_in,
    read_turn,
    reasoning_in,
)
from journeyman.tools.parsing.sections import DEEPSEEK_V3, DEEPSEEK_V31, KIMI_K2
from journeyman.tools.parsing.tokens import covering, locate, token_ends
from journeyman.tools.parsing.within import CallPlaces

__all__ = [
    "ANALYSIS",
    "MARKS",
    "MAX_DEPTH",
    "PARSERS",
    "THINK",
    "CallFormat",
    "CallPlaces",
    "Marks",
    "Scanner",
    "begun_in",
    "covering",
    "get_parser",
    "locate",
    "parse_hermes",
    "read_turn",
    "reasoning_in",
    "render_hermes",
    "token_ends",
]

PARSERS: dict[str, CallFormat] = {
    form.name: form
    for form in (
        *(HERMES, LLAMA3_JSON, PYTHONIC, QWEN3_CODER, MISTRAL, HARMONY, GLM45, GEMMA4, COHERE),
        *(DEEPSEEK_V3, DEEPSEEK_V31, KIMI_K2, MINIMAX_M2, GRANITE, PHI4),
    )
}
"""Call forms by the name that configs use (`student.parser=hermes`)."""

parse_hermes = HERMES
render_hermes = HERMES.render


def get_parser(name: str) -> CallFormat:
    """The call form of that name: parses a turn, and renders calls.

    Raises:
        UnknownParserError: No such parser; the message lists the names there are.
    """
    try:
        return PARSERS[name]
    except KeyError:
        known = ", ".join(sorted(PARSERS))
        raise UnknownParserError(f"no parser {name!r}; there are: {known}") from None
