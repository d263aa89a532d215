"""Episodes in little room: the numbers of every token stay packed until somebody looks at them.

An evaluation holds all that it played for its figures, which look at turns and calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Generic, TypeVar

from journeyman.envs import Episode, StopReason
from journeyman.envs.types import unfold, unpack

T = TypeVar("T")
_PACKED = ("tokens", "logprobs", "mask")


class _Unpacked(Generic[T]):
    """A field that is unpacked at every look; one that was set, as by `replace`, stands before it.

    So it has no `__set__`.
    """

    def __init__(self, read: Callable[[Mapping[str, Any]], T]) -> None:
        self._read = read

    def __get__(self, episode: StoredEpisode, kind: type) -> T:
        return self._read(episode.packed())


def _mask(packed: Mapping[str, Any]) -> tuple[bool, ...]:
    mask = [False] * (len(unfold(packed["tokens"])) // 4)
    for start, end in packed["mask"]:
        mask[start:end] = [True] * (end - start)
    return tuple(mask)


class StoredEpisode(Episode):
    """An episode as its line on disk holds it: equal to the one that was written.

    `tokens`, `logprobs` (float32) and `mask` are made at every look: hold on to what is looked at
    more than once.
    """

    tokens = _Unpacked(lambda packed: tuple(unpack("I", packed["tokens"])))
    logprobs = _Unpacked(lambda packed: tuple(unpack("f", packed["logprobs"])))
    mask = _Unpacked(_mask)

    @classmethod
    def of(cls, episode: Episode) -> StoredEpisode:
        """The same episode in less room."""
        found = object.__new__(cls)
        found.__dict__.update(episode.__dict__)
        found._hold(episode.packed())
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StoredEpisode:
        """Read what `to_dict` wrote, as `Episode.from_dict` does; damage shows here too.

        Raises:
            KeyError: A key is missing.
            ValueError: A value is none that `to_dict` writes.
        """
        tokens, logprobs = (len(unfold(data[name])) // 4 for name in ("tokens", "logprobs"))
        if tokens != logprobs:
            raise ValueError(
                f"episode {data['task_id']}: {tokens} tokens and {logprobs} logprobs; they must be "
                f"as many"
            )
        for start, end in data["mask"]:
            if not 0 <= start <= end <= tokens:
                raise ValueError(f"mask {start}..{end} of an episode of {tokens} tokens")
        found = object.__new__(cls)
        found.__dict__.update(Episode.from_dict({**data, **_EMPTY}).__dict__)
        found._hold({name: data[name] for name in _PACKED})
        return found

    def _hold(self, packed: Mapping[str, Any]) -> None:
        for name in _PACKED:
            self.__dict__.pop(name, None)
        self.__dict__["_packed"] = packed

    @property
    def chosen(self) -> int:
        """How many tokens the student chose."""
        held = self.__dict__.get("_packed")
        return super().chosen if held is None else sum(end - at for at, end in held["mask"])

    def packed(self) -> Mapping[str, Any]:
        """The numbers of every token as they lie on disk."""
        held: Mapping[str, Any] | None = self.__dict__.get("_packed")
        return super().packed() if held is None else held

    def __eq__(self, other: object) -> bool:
        """As episodes are equal, whichever of the two is packed."""
        if not isinstance(other, Episode):
            return NotImplemented
        return bool(_whole(self) == _whole(other))

    __hash__ = Episode.__hash__


def _whole(episode: Episode) -> Episode:
    return Episode(**{field.name: getattr(episode, field.name) for field in fields(Episode)})


_EMPTY = Episode("", "", (), (), (), (), StopReason.ANSWERED).packed()
