"""Calls a running server over HTTP with the standard library; knows routes only as strings.

A dependency for a handful of JSON calls and one upload would be one more thing to break: an upload
here streams from disk, in the two parts that the server takes.
"""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.server.cli.console import Refusal

_CHUNK_BYTES = 1 << 20


class ServerRefusal(Refusal):
    """An error of the server, in its words; `param` is the field at fault, if one is."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


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
        request = self._request(method, path, body, dict(headers or {}))
        try:
            with urllib.request.urlopen(request) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, urllib.error.URLError) as error:
            reason = getattr(error, "reason", error)
            raise Refusal(f"{self.url}: no answer: {reason}") from None
        except json.JSONDecodeError:
            raise Refusal(f"{self.url}: the answer is not JSON; is this a weft server?") from None

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | Upload | None,
        headers: dict[str, str],
    ) -> urllib.request.Request:
        if not self.url.startswith(("http://", "https://")):
            raise Refusal(f"--url: should start with http:// or https://, not {self.url!r}", 2)
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data: bytes | Upload | None = None
        if isinstance(body, Upload):
            data = body
            headers |= {"Content-Type": body.content_type, "Content-Length": str(len(body))}
        elif body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        url = self.url.rstrip("/") + path
        return urllib.request.Request(url, data, headers, method=method)


def _refusal(error: urllib.error.HTTPError) -> ServerRefusal:
    """The server's error object; the status where there is none."""
    try:
        told = json.loads(error.read())["error"]
        return ServerRefusal(str(told["message"]), told.get("param"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ServerRefusal(f"{error.url}: HTTP {error.code} {error.reason}", None)
