"""A player as a parcel: what it is made of goes once, and its weights where they changed.

A player is a value. `Packer` pickles it with two kinds of things taken out. Large things that stay
as they are (a tokenizer, the skeleton of a model) are parts, known by the digest of their bytes.
Tensors are known by a key for as long as they live, and go in layers: the first has all of a
player's, each later one those that have changed since. So under LoRA a step costs its adapter, and
whoever comes late reads the first layer and the last. Two players of one model share its tensors
here and there. What a layer or a part lies in (`put`, `get`) is the caller's: an object store, a
file, or the parcel itself.
"""

from __future__ import annotations

import copyreg
import hashlib
import io
import pickle
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedTokenizerBase

from journeyman.agents.errors import ParcelError
from journeyman.agents.rollouts.workers.skeletons import skeleton
from journeyman.agents.students.player import Player
from journeyman.agents.students.reuse import sums_of_bits

KEPT = 8
"""Parts, players among them, that are kept at least; those not used for longest go first."""
_ALIGNED = 64
"""Bytes: torch's own tensors lie so, and what is computed may hang on it in the last bit."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor's bits, of any type that torch has."""

    data: NDArray[np.uint8]
    """[bytes]"""
    shape: tuple[int, ...]
    dtype: str
    """Such as "bfloat16", for which numpy has no name."""

    @classmethod
    def of(cls, tensor: Tensor) -> Raw:
        """The bits of a tensor; those of one that is not trained, and lies on the CPU, in place."""
        found = tensor.detach()
        flat = found.cpu().contiguous().reshape(-1).view(torch.uint8)
        if tensor.requires_grad and flat.data_ptr() == found.data_ptr():
            flat = flat.clone()  # the next step writes over it
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(flat.numpy(), tuple(tensor.shape), dtype)

    def tensor(self, device: torch.device) -> Tensor:
        """The tensor; on the CPU it lies where the bits do, and is to be read only."""
        with warnings.catch_warnings():  # the store may be read-only, and nobody writes here
            warnings.simplefilter("ignore", UserWarning)
            flat = torch.from_numpy(self.data)
        if flat.data_ptr() % _ALIGNED:
            flat = flat.clone()
        return flat.view(getattr(torch, self.dtype)).reshape(self.shape).to(device)


Layer = Mapping[str, Raw]
"""Tensors by their keys: those that changed at one time."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A player on its way; a few kilobytes, beside what `put` made of parts and layers."""

    origin: str
    """Of the `Packer`: keys, layers and versions are its own."""
    player: bytes
    parts: Mapping[str, Any]
    """By digest: what `Packer.put` gave for the bytes; None if they are known to be there."""
    layers: Mapping[int, Any]
    """By version: what `Packer.put` gave for a `Layer`; None if it is known to be there."""
    version: int
    """Of the weights, from 1 on: it grows by one whenever a tensor of any player differs from what
    was packed last. 0 of players without weights."""

    @property
    def digest(self) -> str:
        """Tells it from other players of the same origin."""
        return _digest(self.player)

    def without(self, parts: Collection[str] = (), layers: Collection[int] = ()) -> Parcel:
        """The same for one who has these already."""
        return replace(
            self,
            parts={key: None if key in parts else it for key, it in self.parts.items()},
            layers={key: None if key in layers else it for key, it in self.layers.items()},
        )


class Packer:
    """Makes parcels of players; one for a driver, since it knows what has changed."""

    def __init__(self, put: Callable[[Any], Any] | None = None) -> None:
        """Nothing is packed yet.

        Args:
            put: Lays bytes or a `Layer` where workers find them (`ray.put`), once each, and gives
                what is found by. None leaves them in the parcel.
        """
        self.pushed = 0
        """Bytes of weights in all layers so far."""
        self._put = put or (lambda it: it)
        self._origin = uuid.uuid4().hex
        self._version = 0
        self._keys = WeakIdKeyDictionary()
        self._seen: dict[str, tuple[object, int]] = {}
        """By key: what a tensor was when it was packed last, and the version of that."""
        self._layers: dict[int, Any] = {}
        self._parts: OrderedDict[str, Any] = OrderedDict()
        self._tokenizers = WeakIdKeyDictionary()
        """The digests of those that were packed: they take long, and do not change."""

    def pack(self, player: Player) -> Parcel:
        """A parcel of a player as it is now; call it anew after each change of the weights.

        Raises:
            ParcelError: Something in it cannot leave this process.
        """
        tensors: dict[str, Tensor] = {}
        parts: dict[str, Any] = {}
        data = _pickled(player, lambda it: self._named(it, player, tensors, parts))
        self._note(tensors)
        versions = {self._seen[key][1] for key in tensors}
        layers = {number: self._layers[number] for number in sorted(versions)}
        return Parcel(self._origin, data, parts, layers, max(versions, default=0))

    def _named(
        self, it: Any, root: Any, tensors: dict[str, Tensor], parts: dict[str, Any]
    ) -> tuple[str, ...] | None:
        """What stands for a thing that is taken out; None for all else."""
        if isinstance(it, Tensor):
            key = self._key(it)
            tensors[key] = it
            kind = "parameter" if isinstance(it, nn.Parameter) else "tensor"
            return kind, key, "trained" if it.requires_grad else ""
        if it is root or not isinstance(it, nn.Module | PreTrainedTokenizerBase):
            return None
        digest = self._tokenizers.get(it)
        if digest is None or digest not in self._parts:
            inner = isinstance(it, nn.Module)
            data = _pickled(it, lambda sub: self._named(sub, sub if inner else it, tensors, parts))
            digest = _digest(data)
            if digest not in self._parts:
                self._parts[digest] = self._put(data)
            if not inner:
                self._tokenizers[it] = digest
        self._parts.move_to_end(digest)
        parts[digest] = self._parts[digest]
        while len(self._parts) > max(KEPT, len(parts)):
            self._parts.popitem(last=False)
        return "part", digest

    def _key(self, tensor: Tensor) -> str:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            raise ParcelError(
                f"weights of type {type(tensor).__name__} cannot be sent to a worker (they are "
                f"quantised, or spread over processes); expected plain tensors: leave out "
                f"student.quantization, or play here (rollouts=local)"
            )
        key = self._keys.get(tensor)
        if key is None:
            key = self._keys[tensor] = uuid.uuid4().hex[:16]
        return cast(str, key)

    def _note(self, tensors: Mapping[str, Tensor]) -> None:
        """Make a layer of what has changed."""
        sums = sums_of_bits(list(tensors.values()))
        now = {
            key: (it.data_ptr(), None if it.is_inference() else it._version, total)
            for (key, it), total in zip(tensors.items(), sums, strict=True)
        }
        changed = [key for key in tensors if self._seen.get(key, (None,))[0] != now[key]]
        if not changed:
            return
        self._version += 1
        layer = {key: Raw.of(tensors[key]) for key in changed}
        self.pushed += sum(it.data.nbytes for it in layer.values())
        self._layers[self._version] = self._put(layer)
        self._seen |= {key: (now[key], self._version) for key in changed}
        alive = set(self._keys.values())
        self._seen = {key: it for key, it in self._seen.items() if key in alive}
        needed = {version for _, version in self._seen.values()}
        self._layers = {number: it for number, it in self._layers.items() if number in needed}


class Unpacker:
    """Makes players of parcels, at the worker; it keeps parts and weights from one to the next."""

    def __init__(
        self, get: Callable[[Any], Any] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """Nothing is there yet.

        Args:
            get: Finds what `Packer.put` laid down (`ray.get`). None takes it from the parcel.
            device: Where weights are to lie.
        """
        self.received = 0
        """Bytes of weights that were read so far."""
        self._get = get or (lambda it: it)
        self._device = torch.device(device)
        self._begin("")

    def _begin(self, origin: str) -> None:
        """Forget what another driver sent."""
        self._origin = origin
        self._arrays: dict[str, Raw] = {}
        """Of tensors that nothing here was made of yet."""
        self._tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        """By key: the layer that a tensor was read from."""
        self.layers: set[int] = set()
        """Those that were read."""
        self._parts: OrderedDict[str, tuple[Any, frozenset[str]]] = OrderedDict()
        """By digest: what was made of it, and the keys of its tensors."""

    @property
    def parts(self) -> Collection[str]:
        """The digests that need not be sent again."""
        return self._parts.keys()

    def open(self, parcel: Parcel) -> Player:
        """The player, with the weights of the parcel's version; the same object for the same one.

        Raises:
            ParcelError: Something in it is not there, or its weights are older than those here.
        """
        if parcel.origin != self._origin:
            self._begin(parcel.origin)
        self._read(parcel)
        player, keys = self._made(parcel.digest, lambda: parcel.player, parcel.parts)
        self._tidy(len(parcel.parts) + 1)
        there = max((self._versions[key] for key in keys), default=0)
        if there != parcel.version:
            raise ParcelError(
                f"the player is to be played with weights of version {parcel.version}, and this "
                f"worker has version {there} by now: pack it again"
            )
        return cast(Player, player)

    def _read(self, parcel: Parcel) -> None:
        """Take in the layers that are new here."""
        for number, box in sorted(parcel.layers.items()):
            if number in self.layers:
                continue
            if box is None:
                raise ParcelError(
                    f"weights of version {number} are not at this worker (it has "
                    f"{sorted(self.layers) or 'none'}), and the parcel leaves them out: send them"
                )
            layer: Layer = self._get(box)
            for key, raw in layer.items():
                if self._versions.get(key, 0) < number:
                    self._versions[key] = number
                    self.received += raw.data.nbytes
                    self._lay(key, raw)
            self.layers.add(number)

    def _lay(self, key: str, raw: Raw) -> None:
        tensor = self._tensors.get(key)
        if tensor is None:
            self._arrays[key] = raw
        else:
            tensor.data = raw.tensor(self._device)

    def _made(
        self, digest: str, data: Callable[[], Any], parts: Mapping[str, Any]
    ) -> tuple[Any, frozenset[str]]:
        """What bytes stand for, and the keys of the tensors in it."""
        found = self._parts.get(digest)
        if found is None:
            given = data()
            if given is None:
                raise ParcelError(
                    f"a part of the player ({digest}) is not at this worker, and the parcel leaves "
                    f"it out: send it"
                )
            keys: set[str] = set()
            reader = _Reader(io.BytesIO(given), lambda name: self._found(name, parts, keys))
            found = self._parts[digest] = reader.load(), frozenset(keys)
        self._parts.move_to_end(digest)
        return found

    def _tidy(self, needed: int) -> None:
        """Let go what was not used for long, and the weights that nothing else is made of."""
        while len(self._parts) > max(KEPT, needed):
            self._parts.popitem(last=False)
        used = frozenset[str]().union(*(keys for _, keys in self._parts.values()))
        for key in self._tensors.keys() - used:
            del self._tensors[key]
            self.layers.discard(self._versions.pop(key))  # to be read again by who needs it

    def _found(self, name: tuple[str, ...], parts: Mapping[str, Any], keys: set[str]) -> Any:
        kind, key, *how = name
        if kind == "part":
            part, inner = self._made(key, lambda: _opened(parts.get(key), self._get), parts)
            keys |= inner
            return part
        keys.add(key)
        if key not in self._tensors:
            tensor = self._arrays.pop(key).tensor(self._device)
            if kind == "parameter":
                tensor = nn.Parameter(tensor, requires_grad=how == ["trained"])
            self._tensors[key] = tensor
        return self._tensors[key]


def _opened(box: Any, get: Callable[[Any], Any]) -> Any:
    return None if box is None else get(box)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _pickled(it: Any, name: Callable[[Any], Any]) -> bytes:
    file = io.BytesIO()
    try:
        _Writer(file, name).dump(it)
    except ParcelError:  # which says it better
        raise
    except Exception as error:  # pickle raises what it likes
        raise ParcelError(
            f"{type(it).__name__} cannot be sent to a worker ({type(error).__name__}: {error}); "
            f"expected what can be pickled, such as functions at the top of a module: mend it, or "
            f"play here (rollouts=local)"
        ) from error
    return file.getvalue()


class _Writer(pickle.Pickler):
    """A pickler that takes out what has a name, and leaves behind what hangs on this process."""

    def __init__(self, file: io.BytesIO, name: Callable[[Any], Any]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._name = name

    def persistent_id(self, it: Any) -> Any:
        return self._name(it)

    def reducer_override(self, it: Any) -> Any:
        if isinstance(it, nn.Module):
            return copyreg.__newobj__, (type(it),), skeleton(it)  # type: ignore[attr-defined]
        return NotImplemented


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, found: Callable[[tuple[str, ...]], Any]) -> None:
        super().__init__(file)
        self._found = found

    def persistent_load(self, name: tuple[str, ...]) -> Any:
        return self._found(name)
