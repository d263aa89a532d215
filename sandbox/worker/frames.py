"""Messages as they travel: a length, then JSON. The host's side speaks it too."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

HEADER = struct.Struct(">I")
MAX_FRAME = 16 << 20
# Requests may be longer than a datagram: they go in pieces.
PIECE = 64 << 10


def encode(message: dict[str, Any]) -> bytes:
    """Frames a message: its length, then JSON in ASCII."""
    body = json.dumps(message).encode("ascii")
    if len(body) > MAX_FRAME:
        raise ValueError(f"a message of {len(body)} bytes; the most is {MAX_FRAME}")
    return HEADER.pack(len(body)) + body


def receive(fd: int) -> dict[str, Any] | None:
    """Reads one framed message from a blocking descriptor; None at its end."""
    head = _read_exactly(fd, HEADER.size)
    if head is None:
        return None
    (length,) = HEADER.unpack(head)
    body = _read_exactly(fd, length)
    if body is None:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _read_exactly(fd: int, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(fd, count - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def write_all(fd: int, data: bytes) -> None:
    """Writes all of it to a blocking descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def receive_pieces(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Reads one framed message that came in datagrams, and the descriptors that came along."""
    piece, fds, _, _ = socket.recv_fds(channel, PIECE, 1)
    if not piece:
        return None, fds
    (length,) = HEADER.unpack_from(piece)
    data = bytearray(piece)
    while len(data) < HEADER.size + length:
        data += channel.recv(PIECE)
    message: dict[str, Any] = json.loads(data[HEADER.size :])
    return message, fds
