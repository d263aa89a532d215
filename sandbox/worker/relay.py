"""All channels of a worker over the one stream that some hosts have."""

from __future__ import annotations

import _thread  # `threading` would double what a copy does after its fork
import os
import select
import socket
import struct

from journeyman.sandbox.worker.frames import PIECE, write_all

# A pipe holds 1 MiB at most (/proc/sys/fs/pipe-max-size): 256 pages, of which one read takes no
# more than one if whoever wrote made packets of them (O_DIRECT).
_MOST_READS = 1024


class Relay:  # pragma: no cover - runs inside the sandbox
    """Carries the control channel and the code's output over the one stream that there is.

    For a worker whose host is at the other end of its standard input and output. What the code
    wrote goes before the answer that came after it.
    """

    HEADER = struct.Struct(">BI")
    CONTROL = 0

    def __init__(self) -> None:
        self.inward, self.outward = os.dup(0), os.dup(1)
        self.ours, self.theirs = socket.socketpair()
        self.ended = _thread.allocate_lock()
        self.streams: dict[int, int] = {}
        for number in (1, 2):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            os.dup2(writer, number)
            os.close(writer)
            self.streams[reader] = number
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)

    def start(self) -> None:
        """Starts the thread that carries."""
        self.ended.acquire()
        _thread.start_new_thread(self._run, ())

    def finish(self) -> None:
        """Waits until the last word is passed on."""
        self.theirs.close()
        self.ended.acquire()

    def _run(self) -> None:
        try:
            self._carry()
        finally:
            self.ended.release()

    def _carry(self) -> None:
        poller = select.poll()
        for fd in (self.inward, self.ours.fileno(), *self.streams):
            poller.register(fd, select.POLLIN)
        while True:
            events = dict(poller.poll())
            answered = self.ours.fileno() in events
            for fd in [fd for fd in self.streams if fd in events or answered]:
                if not self._pass_on(fd, all_of_it=answered):
                    poller.unregister(fd)
                    del self.streams[fd]
            if answered:
                data = self.ours.recv(PIECE)
                if not data:
                    return
                self._send(self.CONTROL, data)
            if self.inward in events:
                data = os.read(self.inward, PIECE)
                if not data:
                    os._exit(0)  # the host is gone, and with process 1 all the rest goes
                self.ours.sendall(data)

    def _pass_on(self, fd: int, all_of_it: bool) -> bool:
        """Passes on what is in a pipe; False at its end.

        Once the supervisor answers, whoever wrote is stopped and all of it is at most what a pipe
        holds; before that it may never end, and the host's word to stop must be heard.
        """
        for _ in range(_MOST_READS if all_of_it else 1):
            try:
                data = os.read(fd, PIECE)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._send(self.streams[fd], data)
        return True

    def _send(self, kind: int, data: bytes) -> None:
        write_all(self.outward, self.HEADER.pack(kind, len(data)) + data)
