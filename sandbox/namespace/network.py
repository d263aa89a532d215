"""The session's network namespace: connections that are closed leave nothing in it.

A closed TCP connection keeps its port for a minute (TIME_WAIT), and so would keep it from the next
program of the same sandbox. A network namespace for each program would take 0.8 ms and more to make
and one of the foreign interpreter's own calls to enter, with a capability to allow it; so there is
one for each session, which is told to keep no closed connections. That takes a right inside of it
which only the caller has, and a process of its own to take that right on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess

from journeyman.sandbox import spawn
from journeyman.sandbox.errors import SandboxError
from journeyman.sandbox.namespace.interpreter import find_interpreter

_NS_GET_USERNS = 0xB701
_WAIT_S = 10.0
# Root is root in every namespace; others must enter the user namespace that owns it.
_CODE = """
import ctypes, os, sys
user, net = map(int, sys.argv[1:])
libc = ctypes.CDLL(None)
if (os.geteuid() and libc.setns(user, 0x10000000)) or libc.setns(net, 0x40000000):
    sys.exit(1)
with open("/proc/sys/net/ipv4/tcp_max_tw_buckets", "w") as file:
    file.write("0")
"""


def _is_ours(kind: str, namespace: int) -> bool:
    """Whether a namespace is the one that the caller itself is in."""
    return os.path.samestat(os.fstat(namespace), os.stat(f"/proc/self/ns/{kind}"))


class Settings:
    """Changes the network namespace of a process while that starts; `finish` waits for it.

    Where it cannot be done all else holds, and ports are free again after a minute.
    """

    def __init__(self, pid: int) -> None:
        """Starts.

        Args:
            pid: Whose network namespace it is, seen from the host.
        """
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError, SandboxError), contextlib.ExitStack() as stack:
            net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            stack.callback(os.close, net)
            user = fcntl.ioctl(net, _NS_GET_USERNS)
            stack.callback(os.close, user)
            if _is_ours("net", net) or _is_ours("user", user):
                return  # a wall is missing: nothing of the host's is to be changed
            self._process = spawn.popen(
                [find_interpreter(None).executable, "-I", "-S", "-c", _CODE, str(user), str(net)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(user, net),
                start_new_session=True,
            )

    def finish(self) -> None:
        """Returns once they are made, or cannot be."""
        if self._process is not None:
            try:
                self._process.wait(_WAIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
