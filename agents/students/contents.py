"""Contents stay text: no word of a user, a tool or a student becomes a control token.

A tokenizer takes `<|im_end|>` for the end of a turn wherever it stands. So what a chat template
writes by itself must be told from what was put into it: a conversation is rendered a second time
with the critical characters of its contents under a veil, which keeps every character's place, and
a control token that would be made of any of them is cut in two. Contents without such characters
take the usual way, token for token.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from journeyman.envs import Message

# Some vocabularies add runs of spaces, whole words and the tags of HTML; nothing hangs on those.
_HTML = "a b i u p s em br hr li ol td th tr ul sub sup code span strong table tbody tfoot thead"
_TAGS = "|".join((*_HTML.split(), "blockquote", "caption", "div", "h[1-6]"))
_HARMLESS = re.compile(rf"\s+|[▁Ġ]+|\w+|</?(?:{_TAGS})>")
# Forms of ASCII that tokenizers which normalise take for it.
_WIDE = [*map(chr, (*range(0xFE50, 0xFE70), *range(0xFF01, 0xFF5F)))]
_EDGE = re.compile(r"[^\w\s▁Ġ]")
# No text that can be encoded has surrogates: they are free to stand for other characters.
_VEIL = 0xD800
_SURROGATES = re.compile("[\\ud800-\\udfff]")
_ESCAPED = re.compile(r"\\u(d[89][0-9a-f]{2})")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def clean(text: str) -> str:
    """Text without halves of characters, which no tokenizer takes."""
    return _SURROGATES.sub(_UNKNOWN, text)


def with_hint(opening: Sequence[Message], text: str) -> list[Message]:
    """A prompt with a hint at the end of its last message, for whoever reads or plays by one."""
    *before, last = opening
    return [*before, dataclasses.replace(last, content=f"{last.content}\n\n{text}")]


def unescaped(veiled: str) -> str:
    """A veiled text whose veils were written as JSON does in ASCII."""
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), veiled)


def mapped(value: Any, change: Callable[[str], str], named: bool = True) -> Any:
    """A JSON value with every text in it changed, names too.

    Args:
        value: Arguments; or a tool's schema, whose own vocabulary stays: templates ask for it.
        change: What to do to a text.
        named: Its keys are names that somebody chose, not the vocabulary of schemas.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            str(k) if not named and k in _KEYS else change(str(k)): (
                v if not named and k == "type" and v in _KINDS else mapped(v, change, k in _NAMES)
            )
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [mapped(item, change, named) for item in value]
    return value


_NAMES = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_KEYS = _NAMES | {
    *("function", "name", "description", "parameters", "type", "required", "enum", "const", "not"),
    *("default", "title", "examples", "items", "prefixItems", "anyOf", "oneOf", "allOf", "format"),
    *("minimum", "maximum", "strict", "nullable", "return"),
}
_KINDS = ("string", "number", "integer", "boolean", "array", "object", "null", "function")


class ContentGuard:
    """What a tokenizer takes for more than text, and how to write it as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, own: str = "") -> None:
        """Look at the added tokens.

        Args:
            tokenizer: Of the model.
            own: What the family's template and marks are written with: every added token in it
                counts, others if they are special or look it.
        """
        self._tokenizer = tokenizer
        self.ids: dict[str, int] = {
            token.content: token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if len(token.content) > 1
            and (token.special or not _HARMLESS.fullmatch(token.content) or _in(token.content, own))
        }
        """Control tokens."""
        self._values = frozenset(self.ids.values())
        longest_first = sorted(self.ids, key=len, reverse=True)
        nothing = "(?!)"
        self._tokens = re.compile("|".join(map(re.escape, longest_first)) or nothing)
        edges = {c for token in self.ids for c in (token[0], token[-1]) if _EDGE.fullmatch(c)}
        edges |= {c for c in _WIDE if unicodedata.normalize("NFKC", c) in edges}
        inner = {re.sub(r"^[\W_]+|[\W_]+$", "", token) for token in self.ids} - {""}
        words = "|".join(map(re.escape, sorted(inner, key=len, reverse=True)))
        parts = [re.escape(c) for c in sorted(edges)]
        parts += [rf"(?<!\w)(?:{words})(?!\w)"] if words else []
        # Every control token begins or ends with an edge or holds its inner word: with those under
        # a veil none can be made, of a content's characters alone or together with the template's.
        self._critical = re.compile("|".join(parts) or nothing)
        self._edges = re.compile("|".join(map(re.escape, sorted(edges))) or nothing)
        firsts = sorted(edges | {word[0] for word in inner})
        self._veiled = {c: chr(_VEIL + i) for i, c in enumerate(firsts)}
        self._bare = {ord(veil): c for c, veil in self._veiled.items()}

    def found(self, text: str) -> list[str]:
        """The control tokens in a text, in order."""
        return self._tokens.findall(text)

    def places(self, text: str) -> list[tuple[int, int, str]]:
        """The same with where they stand."""
        return [(*match.span(), match[0]) for match in self._tokens.finditer(text)]

    def veil(self, text: str) -> str:
        """A content with its critical characters replaced, each by one that no text has."""
        return self._critical.sub(lambda m: self._veiled[m[0][0]] + m[0][1:], clean(text))

    def veil_edges(self, text: str) -> str:
        """The same for where markers begin and end alone: templates ask for some words in them."""
        return self._edges.sub(lambda m: self._veiled[m[0]], clean(text))

    def unveil(self, text: str) -> str:
        """The text under the veil."""
        return text.translate(self._bare)

    def end_after(self, text: str) -> str | None:
        """The control token that a text begins with, and the whitespace before it."""
        start = len(text) - len(text.lstrip())
        match = self._tokens.match(text, start)
        return match and text[: match.end()]

    def encode(self, text: str, veiled: str | None = None) -> list[int]:
        """Tokens of a text, in which control tokens are only what stands in it unveiled.

        Args:
            text: As it is to be read.
            veiled: The same with its contents veiled; None if it has none that are critical.
        """
        if veiled is None:
            veiled = text
        own = self.found(veiled)
        if veiled != text and own != self.found(text):
            # A template that looks into contents was swayed by them: what it writes without
            # seeing them holds.
            text = self.unveil(veiled)
        elif veiled != text and self.unveil(veiled) != text:
            veiled = text  # it changes contents, and nothing critical is in them
        ids = self._join(self._pieces(text, veiled))
        if veiled != text and self._controls(ids) != self._controls(self._plain(clean(veiled))):
            # The tokenizer sees more in a text than stands there, as one that normalises does.
            ids = self._join(self._characters(text, veiled))
        return ids

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._values]

    def _pieces(self, text: str, veiled: str) -> list[str]:
        """The text, cut after the first character of each control token that is not its own."""
        pieces: list[str] = []
        begin = start = 0
        while match := self._tokens.search(text, start):
            first, start = match.span()
            if veiled[first:start] != match[0]:
                start = first + 1
                pieces.append(text[begin:start])
                begin = start
        return [*pieces, text[begin:]]

    def _characters(self, text: str, veiled: str) -> list[str]:
        """The template's own control tokens, and all between them character by character."""
        pieces: list[str] = []
        start = 0
        for match in self._tokens.finditer(veiled):
            pieces += [*text[start : match.start()], match[0]]
            start = match.end()
        return [*pieces, *text[start:]]

    def _join(self, pieces: Sequence[str]) -> list[int]:
        ids = self._plain(pieces[0])
        for piece in pieces[1:]:
            ids += self._after(ids, piece)
        return ids

    def _after(self, before: Sequence[int], piece: str) -> list[int]:
        """Tokens of a text that goes on from others: some tokenizers begin a text with a space."""
        control = self._tokens.search(piece)
        end = control.start() if control else len(piece)
        text, rest = piece[:end], self._plain(piece[end:]) if control else []
        last = list(before[-8:])
        wanted = self._decode(last) + text
        plain = self._plain(text)
        if self._decode([*last, *plain]) == wanted:
            return plain + rest
        for anchor in ("\n", "a", "1", ".", "="):
            begun, whole = self._plain(anchor), self._plain(anchor + text)
            after = whole[len(begun) :]
            if whole[: len(begun)] == begun and self._decode([*last, *after]) == wanted:
                return after + rest
        return plain + rest

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


def _in(token: str, own: str) -> bool:
    return bool(token.strip()) and not token.isalnum() and token in own
