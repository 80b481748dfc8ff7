"""Length-prefixed msgpack over a Unix socket, each message with at most one open file beside it.

Knows not what the messages mean.
"""

import contextlib
import os
import select
import socket
import struct
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec

_HEADER = struct.Struct("<I")
_LARGEST = 64 << 20

Received = TypeVar("Received")


class Channel(Generic[Received]):
    """One end of a socket pair that receives messages of one type. Owns the socket."""

    def __init__(self, sock: socket.socket, receives: Any) -> None:
        """receives: the type, or union of types, of what comes in"""
        self._sock = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(receives)

    def fileno(self) -> int:
        """Of the socket, for a selector."""
        return self._sock.fileno()

    def send(self, message: msgspec.Struct, file: int | None = None) -> None:
        """Sends a message, and a copy of the descriptor `file`; raises OSError."""
        payload = self._encoder.encode(message)
        header = _HEADER.pack(len(payload))
        if file is None:
            self._sock.sendall(header + payload)
        else:
            socket.send_fds(self._sock, [header], [file])
            self._sock.sendall(payload)

    def receive(self) -> tuple[Received | None, int | None]:
        """The next message and the file that came with it; no message where the other end closed.

        Whoever receives a file closes it. Raises OSError, TimeoutError, or ValueError for what is
        no message.
        """
        header, files, _, _ = socket.recv_fds(self._sock, _HEADER.size, 1)
        file = files[0] if files else None
        try:
            header += self._read(_HEADER.size - len(header)) if header else b""
            if not header:
                return None, file
            (size,) = _HEADER.unpack(header)
            if size > _LARGEST:
                raise ValueError(f"a message of {size} bytes")
            return self._decoder.decode(self._read(size)), file
        except BaseException:
            if file is not None:
                os.close(file)
            raise

    def wait_for_end(self) -> None:
        """Waits until the other end is closed or shut down, whatever is received meanwhile."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        poll.poll()

    def shutdown(self) -> None:
        """Ends both directions, also for a thread that waits in `receive`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes this end."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._sock.recv(min(size - len(data), 1 << 20))
            if not part:
                raise ConnectionResetError("the other end closed in the middle of a message")
            data += part
        return bytes(data)
