"""What settings say of a model's server: where it is, and the variable with the key it asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import httpx

from journeyman.agents.errors import SettingError

_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
"""What names of environment variables look like; all else may be a key, and is not repeated."""


def addresses(base_url: str | Sequence[str]) -> list[str]:
    """All that a setting names: one, or a list of different ones.

    Raises:
        SettingError: See `address`; or one is there twice.
    """
    several = isinstance(base_url, Sequence) and not isinstance(base_url, str) and len(base_url)
    urls = [address(it) for it in (base_url if several else [base_url])]
    seen: set[httpx.URL] = set()
    for url in map(httpx.URL, urls):  # as it is written otherwise, too
        if url in seen:
            raise SettingError(f"base_url={urls}: {url} is there twice; expected each replica once")
        seen.add(url)
    return urls


def address(base_url: object) -> str:
    """One, as paths are written behind it.

    Raises:
        SettingError: It is none, or holds a password.
    """
    if "@" in str(base_url):  # not repeated
        raise SettingError("base_url: expected no password in it: use key")
    if not isinstance(base_url, str) or not _is_address(base_url):
        raise SettingError(
            f"base_url={base_url}: expected http://… or https://…, with /v1; replicas are a list, "
            f"[http://a:8000/v1,http://b:8000/v1]"
        )
    return base_url.rstrip("/")


def _is_address(url: str) -> bool:
    try:
        read = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    # Several in one text would pass for the path of the first.
    alone = not re.search(r"[,;\s]", url)
    return (
        read.scheme in ("http", "https")
        and bool(read.host)
        and (read.port or 0) < 1 << 16
        and alone
    )


def secret_in(key: str) -> str:
    """What an environment variable holds that a key is named by.

    Args:
        key: The variable's name; not repeated if it looks like a key itself.

    Raises:
        SettingError: There is no such variable, or it holds what no header may have.
    """
    named = f"key={key}" if _NAME.fullmatch(key) else "key"
    value = os.environ.get(key, "").strip()
    if not value:
        raise SettingError(
            f"{named}: no environment variable of that name; it holds the server's key"
        )
    if not (value.isascii() and value.isprintable()):  # errors of headers repeat them
        raise SettingError(f"{named}: it holds characters that no header may have")
    return value
