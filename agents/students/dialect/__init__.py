"""Dialects: what a student of each model family reads and writes, as token ids.

`conversing.py` speaks, by what `template.py` has found out about the chat template; `families.py`
says what each family's calls, reasoning and answers look like; `checking.py` is `journeyman models
check`.
"""

from journeyman.agents.students.dialect.conversing import Dialect, ToolRender
from journeyman.agents.students.dialect.families import (
    FAMILIES,
    Hermes,
    Llama3,
    Mistral,
    Pythonic,
    dialect_of,
    dialects,
    family_of,
    how_told,
)
from journeyman.agents.students.dialect.template import REASONING_FIELDS

__all__ = [
    "FAMILIES",
    "REASONING_FIELDS",
    "Dialect",
    "Hermes",
    "Llama3",
    "Mistral",
    "Pythonic",
    "ToolRender",
    "dialect_of",
    "dialects",
    "family_of",
    "how_told",
]
