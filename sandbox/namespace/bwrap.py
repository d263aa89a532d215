"""Bubblewrap's command line: what the sandboxed processes see of the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from journeyman.sandbox.base import Limits
from journeyman.sandbox.namespace.interpreter import Interpreter
from journeyman.sandbox.worker import ENVIRONMENT, OPTIONS

WORKER = "/run/worker.py"
# A mount point: nobody can remove or rename it.
WORKDIR = "/tmp"
_INSIDE_ID = "1000"
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ENVIRONMENT = {
    "HOME": WORKDIR,
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TMPDIR": WORKDIR,
    # Thread pools would eat the pids and, by their stacks, the address space.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    **ENVIRONMENT,
}


def arguments(
    bwrap: str,
    interpreter: Interpreter,
    limits: Limits,
    *,
    packages: Mapping[str, str],
    source_fd: int,
    seccomp_fd: int,
    info_fd: int,
    control_fd: int,
) -> list[str]:
    """Builds the whole command.

    Args:
        bwrap: The program.
        interpreter: The Python to run inside.
        limits: Sizes the writable directory.
        packages: Further directories to show, by the names they have inside.
        source_fd: Holds the worker's source, which the sandbox's user may not be able to read.
        seccomp_fd: Holds the filter.
        info_fd: Is told process 1's id on the host.
        control_fd: The worker's end of the control socket.
    """
    command = [bwrap]
    # --unshare-all would go on without a user namespace where there is none.
    for kind in ("user", "ipc", "pid", "net", "uts"):
        command += [f"--unshare-{kind}"]
    command += ["--unshare-cgroup-try", "--disable-userns"]
    command += ["--uid", _INSIDE_ID, "--gid", _INSIDE_ID, "--hostname", "sandbox"]
    # The supervisor is process 1 itself: no signal from within can end or stop it.
    command += ["--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += _writable(limits)
    command += _files(interpreter, packages)
    command += ["--perms", "0444", "--ro-bind-data", str(source_fd), WORKER]
    command += ["--remount-ro", "/", "--chdir", WORKDIR, "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        command += ["--setenv", name, value]
    command += ["--seccomp", str(seccomp_fd), "--info-fd", str(info_fd), "--"]
    command += [interpreter.executable, *OPTIONS, WORKER, str(control_fd)]
    return command


def _files(interpreter: Interpreter, packages: Mapping[str, str]) -> list[str]:
    command = ["--ro-bind", "/usr", "/usr"]
    for path in _SYSTEM:
        if os.path.islink(path):  # merged /usr
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    for path, name in {**{path: path for path in interpreter.mounts}, **packages}.items():
        command += ["--ro-bind", path, name]
    return command


def _writable(limits: Limits) -> list[str]:
    """One directory, sized, for all that is written; bwrap's own /dev would add another."""
    # Of the settings that go by other rules than file modes, none may even be opened.
    command = ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dir", "/dev"]
    for device in _DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for name, target in {
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
        "shm": WORKDIR,
    }.items():
        command += ["--symlink", target, f"/dev/{name}"]
    size = str(limits.workdir_mb << 20)
    return [*command, "--perms", "0700", "--size", size, "--tmpfs", WORKDIR]
