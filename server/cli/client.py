"""Calls a running server over HTTP with the standard library; knows routes only as strings.

A dependency for a handful of JSON calls and one upload would be one more thing to break: an upload
here streams from disk, in the two parts that the server takes.
"""

import contextlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from weft.server.cli.console import Refusal

_CHUNK_BYTES = 1 << 20


class ServerRefusal(Refusal):
    """An error of the server, in its words; `param` is the field at fault, if one is.

    code: of the server's catalogue; None where the answer was not its own
    """

    def __init__(self, message: str, param: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Upload:
    """A body of `multipart/form-data`: each part's name and the file that it holds."""

    parts: Mapping[str, Path]
    boundary: str
    on_sent: Callable[[int], None] = lambda _: None

    @classmethod
    def of(cls, *files: Path, on_sent: Callable[[int], None] = lambda _: None) -> "Upload":
        """Parts named by their files; `on_sent` hears of each chunk's bytes."""
        return cls({file.name: file for file in files}, secrets.token_hex(16), on_sent)

    def _head(self, name: str) -> bytes:
        return (
            f"--{self.boundary}\r\n"
            f'Content-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()

    @property
    def _tail(self) -> bytes:
        return f"--{self.boundary}--\r\n".encode()

    @property
    def content_type(self) -> str:
        """The header that tells the server where parts begin."""
        return f"multipart/form-data; boundary={self.boundary}"

    def __len__(self) -> int:
        parts = self.parts.items()
        return len(self._tail) + sum(
            len(self._head(name)) + path.stat().st_size + 2 for name, path in parts
        )

    def __iter__(self) -> Iterator[bytes]:
        for name, path in self.parts.items():
            yield self._head(name)
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
                    self.on_sent(len(chunk))
            yield b"\r\n"
        yield self._tail


@dataclass(frozen=True)
class Client:
    """A server's address, and the key to show it."""

    url: str
    api_key: str | None = None

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | Upload | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer's JSON; raises Refusal with the server's own words, or why none came."""
        connection, prefix = self._connection()
        data, own = _encoded(body)
        if self.api_key:
            own["Authorization"] = f"Bearer {self.api_key}"
        try:
            response = _answer(connection, method, prefix + path, data, own | dict(headers or {}))
            content = response.read()
        except (OSError, HTTPException) as error:
            raise Refusal(f"{self.url}: no answer: {error}") from None
        finally:
            connection.close()
        if response.status >= 400:
            raise _refusal(content, f"{self.url}{path}: HTTP {response.status} {response.reason}")
        try:
            return json.loads(content)
        except ValueError:
            raise Refusal(f"{self.url}: the answer is not JSON; is this a weft server?") from None

    def _connection(self) -> tuple[HTTPConnection, str]:
        """A connection not yet made, and what comes before each path."""
        address = urlsplit(self.url)
        kind = {"http": HTTPConnection, "https": HTTPSConnection}.get(address.scheme)
        if kind is None or not address.hostname:
            raise Refusal(f"--url: should be http://HOST:PORT, not {self.url!r}", 2)
        return kind(address.hostname, address.port), address.path.rstrip("/")


def _encoded(body: Mapping[str, Any] | Upload | None) -> tuple[Iterable[bytes], dict[str, str]]:
    """A body's bytes, and the headers that describe it."""
    if body is None:
        return (), {"Content-Length": "0"}
    if isinstance(body, Upload):
        return body, {"Content-Type": body.content_type, "Content-Length": str(len(body))}
    data = json.dumps(body).encode()
    return (data,), {"Content-Type": "application/json", "Content-Length": str(len(data))}


def _answer(
    connection: HTTPConnection,
    method: str,
    path: str,
    data: Iterable[bytes],
    headers: Mapping[str, str],
) -> HTTPResponse:
    connection.putrequest(method, path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    # A server that refuses a request answers it, and closes, before it has read all of it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for chunk in data:
            connection.send(chunk)
    return connection.getresponse()


def _refusal(content: bytes, otherwise: str) -> ServerRefusal:
    """The server's error object in its own words, if the answer holds one."""
    try:
        told = json.loads(content)["error"]
        return ServerRefusal(str(told["message"]), told.get("param"), told.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ServerRefusal(otherwise, None)
