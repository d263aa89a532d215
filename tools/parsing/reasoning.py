r"""Reasoning before a turn's calls: `<think>\n…\n</think>`, as Qwen3 and GLM-4.5 write it.

Calls that a model only considers there are not calls. Only what begins the turn is reasoning: a
marker further on may stand in a call's argument.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"

# The second form: some templates write the opening marker into the prompt, so that a turn has the
# closing one alone; it then has a line of its own, as no text in JSON's quotes could give it.
_REASONING = re.compile(
    rf"\s*{OPEN}.*?(?:{CLOSE}|\Z)|(?:(?!{OPEN}).)*?(?:\A|(?<=\n)){CLOSE}[ \t]*(?:\n|\Z)", re.DOTALL
)
_VISIBLE = re.compile(r"[^\n]")


def blank_reasoning(text: str) -> str:
    """An assistant's turn with its reasoning as blanks: all else keeps its place, and its span.

    Args:
        text: The turn. Reasoning that was never closed goes to its end.
    """
    if "think>" not in text:
        return text
    found = _REASONING.match(text)
    return _VISIBLE.sub(" ", found[0]) + text[found.end() :] if found else text
