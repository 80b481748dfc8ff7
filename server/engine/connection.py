"""Length-prefixed msgpack frames over a stream socket; knows nothing of what the messages mean."""

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence

from weft.server.engine.messages import Command, Event, decode_commands, encode

HEADER = struct.Struct("<I")
MAX_FRAME = 1 << 30
_SEND_BUFFER = 4 << 20


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets: one for each process."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return near, far


def frame(messages: Sequence[Command] | Sequence[Event]) -> bytes:
    """The bytes of one frame on the wire."""
    payload = encode(messages)
    return HEADER.pack(len(payload)) + payload


class EngineConnection:
    """The engine's end: blocking reads of commands, blocking writes of events."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = sock.makefile("rb")

    def send(self, events: Sequence[Event]) -> None:
        """Writes one frame; raises OSError where the other end is gone."""
        if events:
            self._sock.sendall(frame(events))

    def commands(self) -> Iterator[list[Command]]:
        """Yields each frame's commands until the other end closes."""
        while header := self._reader.read(HEADER.size):
            (size,) = HEADER.unpack(header)
            yield decode_commands(self._reader.read(size))

    def close(self) -> None:
        """Ends both directions: whoever reads, here or at the other end, reads an end of file."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.close()
        self._sock.close()
