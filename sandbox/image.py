"""The image that the docker backend runs: built from the Dockerfile, or copied from the host."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from journeyman.sandbox.errors import IsolationUnavailable
from journeyman.sandbox.namespace.interpreter import find_interpreter

NAME = "journeyman-sandbox"
_PROGRAMS = """
    awk basename cat chmod cp cut date diff dirname echo env expr find grep head ln ls mkdir mv
    printf pwd rm rmdir sed seq sleep sort tail tee touch tr true uniq wc xargs
""".split()  # noqa: SIM905 - a table in words, for the eye
_DIRECTORIES = ("dev", "etc", "proc", "sys", "tmp")
_LEFT_OUT = re.compile(
    r"/(?:test|tests|idlelib|tkinter|turtledemo|ensurepip|lib2to3|config-[^/]*|site-packages"
    r"|dist-packages|__pycache__)(?:/|$)|\.a$"
)
_ASK = "import json, sys, sysconfig as c; print(json.dumps([c.get_path('stdlib'), sys.version]))"


def ensure(client: Any) -> str:
    """Finds the default image, or makes it.

    Args:
        client: A `docker.DockerClient`.

    Returns:
        Its name and tag.

    Raises:
        IsolationUnavailable: It can neither be built nor copied.
    """
    import docker

    dockerfile = files("journeyman.sandbox").joinpath("Dockerfile").read_bytes()
    interpreter = find_interpreter(None).executable
    asked = subprocess.run([interpreter, "-I", "-c", _ASK], capture_output=True, check=True)
    stdlib, version = json.loads(asked.stdout)
    recipe = (dockerfile, Path(__file__).read_bytes(), interpreter.encode(), version.encode())
    name = f"{NAME}:{hashlib.sha256(b' '.join(recipe)).hexdigest()[:12]}"
    try:
        client.images.get(name)
        return name
    except docker.errors.ImageNotFound:
        pass
    try:
        client.images.build(fileobj=io.BytesIO(dockerfile), tag=name, rm=True)
    except (docker.errors.BuildError, docker.errors.APIError):  # no registry, as a rule
        _copy(client, name, interpreter, stdlib)
    return name


def _copy(client: Any, name: str, interpreter: str, stdlib: str) -> None:
    import docker

    repository, _, tag = name.partition(":")
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            _pack(archive, _contents(interpreter, stdlib))
            for command in ("python", "python3"):  # as in the image that the Dockerfile names
                link = tarfile.TarInfo(f"/usr/local/bin/{command}")
                link.type, link.linkname = tarfile.SYMTYPE, interpreter
                archive.addfile(link)
        file.seek(0)
        try:
            client.api.import_image_from_data(file, repository=repository, tag=tag)
            client.images.get(name)
        except docker.errors.APIError as error:
            raise IsolationUnavailable(
                f"no image can be built from the Dockerfile or from {interpreter} ({error})",
                "let the engine reach a registry, or name an image with Python in it",
            ) from error


def _contents(interpreter: str, stdlib: str) -> Iterator[Path]:
    """Files of the host's Python and a few programs, with the libraries they load."""
    found = [shutil.which(name) for name in _PROGRAMS]
    programs = [Path(name) for name in (interpreter, "/bin/sh", *found) if name]
    yield from programs
    binaries = [str(path.resolve()) for path in programs]
    for directory, folders, names in os.walk(stdlib):
        folders[:] = [name for name in folders if not _LEFT_OUT.search(f"{directory}/{name}")]
        for name in names:
            path = Path(directory, name)
            if not _LEFT_OUT.search(str(path)):
                yield path
                if path.suffix == ".so":
                    binaries.append(str(path))
    listed = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False)
    libraries = re.findall(r"(?:=>\s*|^\s*)(/\S+)\s+\(", listed.stdout, re.MULTILINE)
    yield from map(Path, sorted(set(libraries)))


def _pack(archive: tarfile.TarFile, paths: Iterator[Path]) -> None:
    """Adds files under their paths, links resolved, for all users to read."""
    known = set()
    for path in (*(Path("/", name, "x") for name in _DIRECTORIES), *paths):
        for parent in reversed(path.parents[:-1]):
            if parent not in known:
                known.add(parent)
                folder = tarfile.TarInfo(str(parent))
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
        if path.is_file() and path not in known:
            known.add(path)
            entry = tarfile.TarInfo(str(path))
            entry.size = path.stat().st_size
            entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
