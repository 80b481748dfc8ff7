import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from weft.server.engine.loader.channel import Channel

BIG = "x" * (8 << 20)  # more than a socket holds


class Word(msgspec.Struct, tag=True):
    text: str


class Number(msgspec.Struct, tag=True):
    value: int


Said = Word | Number
Pair = tuple[Channel[Said], Channel[Said]]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = (Channel[Said](sock, Said) for sock in socket.socketpair())
    with near, far:
        yield near, far


def test_messages_come_in_order_with_their_files(pair: Pair) -> None:
    near, far = pair
    file = os.memfd_create("x")
    os.write(file, b"content")
    near.send(Word("a"))
    near.send(Number(1), file)
    near.send(Word("b"))
    os.close(file)
    assert far.receive() == (Word("a"), None)
    message, received = far.receive()
    assert message == Number(1)
    assert received is not None
    assert os.pread(received, 100, 0) == b"content"
    os.close(received)
    assert far.receive() == (Word("b"), None)


def test_a_message_may_be_larger_than_the_socket(pair: Pair) -> None:
    near, far = pair
    sender = threading.Thread(target=near.send, args=(Word(BIG),))
    sender.start()
    assert far.receive() == (Word(BIG), None)
    sender.join()


def test_the_end_is_no_message(pair: Pair) -> None:
    near, far = pair
    near.close()
    assert far.receive() == (None, None)


def test_an_end_in_the_middle_is_an_error() -> None:
    near, sock = socket.socketpair()
    with Channel[Said](sock, Said) as far:
        near.sendall((100).to_bytes(4, "little") + b"half")
        near.close()
        with pytest.raises(ConnectionResetError):
            far.receive()


@pytest.mark.parametrize(
    "data",
    [(1 << 31).to_bytes(4, "little"), b"\1\0\0\0\xc1", b"\5\0\0\0hello"],
    ids=["too long", "no msgpack", "no message"],
)
def test_what_is_no_message_is_refused_and_its_file_closed(data: bytes) -> None:
    near, sock = socket.socketpair()
    with Channel[Said](sock, Said) as far, near:
        before = open_files()
        file = os.memfd_create("x")
        socket.send_fds(near, [data], [file])
        os.close(file)
        with pytest.raises(ValueError, match=r"a message of|MessagePack|Expected"):
            far.receive()
        assert open_files() == before


def test_a_thread_that_waits_can_be_let_go(pair: Pair) -> None:
    near, _ = pair
    ends: list[object] = []
    waiter = threading.Thread(target=lambda: ends.append(near.receive()))
    waiter.start()
    near.shutdown()
    waiter.join()
    assert ends == [(None, None)]
