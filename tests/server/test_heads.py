"""Connections that send no request, or never all of its head: closed, in time and bytes."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from weft.server import heads
from weft.server.heads import MAX_HEAD_BYTES, LimitedHeads

HEAD = b"GET / HTTP/1.1\r\nHost: weft\r\n"
WAIT = 30
SECONDS = 0.1


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["more_body"]:
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(4 * SECONDS)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port() -> Iterator[int]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    config = uvicorn.Config(app, http=LimitedHeads, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    yield sock.getsockname()[1]
    server.should_exit = True
    thread.join()
    sock.close()


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def closed(self) -> bool:
        """Waits until the server has closed it; returns whether it answered nothing."""
        async with asyncio.timeout(WAIT):
            with suppress(ConnectionError):
                return await self.reader.read() == b""
            return True

    async def answer(self) -> bytes:
        async with asyncio.timeout(WAIT):
            head = await self.reader.readuntil(b"\r\n\r\n")
            assert await self.reader.readexactly(2) == b"ok"
            return head.partition(b"\r\n")[0]


@pytest.fixture
async def connection(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield Connection(reader, writer)
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"GE", HEAD, HEAD + b"X-Half: of a"])
async def test_a_head_that_does_not_come_ends_the_connection(
    port: int, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert await Connection(reader, writer).closed()
    writer.close()


async def test_a_head_that_drips_ends_the_connection(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ended = asyncio.create_task(Connection(reader, writer).closed())
    with suppress(ConnectionError):
        writer.write(HEAD)
        while not ended.done():
            writer.write(b"x")
            await writer.drain()
            await asyncio.wait([ended], timeout=0.02)
    assert await ended
    writer.close()


@pytest.mark.parametrize("endless", [b"x" * 1024, b"X-More: again\r\n" * 64])
@pytest.mark.parametrize("before", [HEAD, HEAD + b"X-Long: ", b"GET /"])
async def test_a_head_without_end_is_cut_off(
    connection: Connection, before: bytes, endless: bytes
) -> None:
    connection.writer.write(before)
    sent = 0
    with suppress(ConnectionError):
        while sent < 1000 * MAX_HEAD_BYTES and not connection.reader.at_eof():
            connection.writer.write(endless)
            sent += len(endless)
            await connection.writer.drain()
    assert sent < 1000 * MAX_HEAD_BYTES


async def test_an_answer_under_way_comes_before_half_of_the_next_head(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEAD_SECONDS", SECONDS)
    connection.writer.write(b"GET /slow HTTP/1.1\r\nHost: weft\r\n\r\nGET /")
    assert await connection.answer() == b"HTTP/1.1 200 OK"
    assert await connection.closed()


async def test_requests_in_time_are_answered_however_slow_their_bodies_are(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.3)
    for _ in range(3):
        connection.writer.write(HEAD + b"\r\n")
        assert await connection.answer() == b"HTTP/1.1 200 OK"
    body = bytes(2 * MAX_HEAD_BYTES)
    connection.writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
    for start in range(0, len(body), MAX_HEAD_BYTES // 2):
        connection.writer.write(body[start : start + MAX_HEAD_BYTES // 2])
        await asyncio.sleep(0.1)  # of the body: beyond what a head may take
    assert await connection.answer() == b"HTTP/1.1 200 OK"
