"""HTTP/1.1 that costs the generator little: a body's parts are stamped as they leave the socket.

httpx takes three times as long for each chunk, on a machine whose server needs the time.
"""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httptools

Receive = Callable[[bytes, float], None]
"""Is given each part of a body, and when it came, by the event loop's clock."""


class Connection(asyncio.Protocol):
    """One connection, with at most one answer under way."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._receive: Receive | None = None
        self._status: asyncio.Future[int] | None = None
        self.usable = False
        """Whether it can take another request."""
        self.fresh = True
        """Nothing has come of the request that was sent last."""

    async def send(self, request: bytes, receive: Receive) -> int:
        """The answer's status, once its body is over; ConnectionError if that never comes."""
        assert self._transport is not None
        self._receive, self._status = receive, self._loop.create_future()
        self.fresh, self.usable = True, False
        self._transport.write(request)
        return await self._status

    def close(self) -> None:
        """Ends it, whatever is under way."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.usable = transport, True

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self.fresh = False
        self._now = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(str(error)))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self.usable = False
        self._fail(ConnectionError(str(exc or "closed by the server")))

    # ---- what the parser calls

    def on_body(self, body: bytes) -> None:  # noqa: D102
        if self._receive is not None:
            self._receive(body, self._now)

    def on_message_complete(self) -> None:  # noqa: D102
        self.usable = self._parser.should_keep_alive()
        status = self._parser.get_status_code()
        self._parser = httptools.HttpResponseParser(self)
        if self._status is not None and not self._status.done():
            self._status.set_result(status)

    def _fail(self, error: ConnectionError) -> None:
        if self._status is not None and not self._status.done():
            self._status.set_exception(error)


class Pool:
    """Connections to one server, as many as there are answers under way; use as a context."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or url.hostname is None:
            raise ValueError(f"{base_url!r}: should be http://host:port or https://host")
        self._host, self._tls = url.hostname, url.scheme == "https"
        self._port = url.port or (443 if self._tls else 80)
        self._path = url.path.rstrip("/")
        lines = {"host": url.netloc, "content-type": "application/json", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for connection in self._all:
            connection.close()

    async def post(self, path: str, body: bytes, receive: Receive) -> int:
        """The answer's status, once its body was received; raises OSError if that never comes.

        A server may close an idle connection just as it is used again; then another one is tried.
        """
        head = f"POST {self._path}{path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}"
        request = f"{head}\r\n\r\n".encode() + body
        while connection := self._waiting():
            try:
                return await self._over(connection, request, receive)
            except ConnectionError:
                if not connection.fresh:
                    raise
        return await self._over(await self._connect(), request, receive)

    async def _over(self, connection: Connection, request: bytes, receive: Receive) -> int:
        try:
            status = await connection.send(request, receive)
        finally:
            if not connection.usable:
                connection.close()
                self._all.discard(connection)
        if connection.usable:
            self._idle.append(connection)
        return status

    def _waiting(self) -> Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
            self._all.discard(connection)
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, self._host, self._port, ssl=self._tls or None
        )
        self._all.add(connection)
        return connection
