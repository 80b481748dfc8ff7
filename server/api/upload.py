"""Receives an adapter as multipart/form-data, straight to disk. Knows nothing of what is in it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from weft.adapters.checkpoint import CONFIG_NAME, MAX_CONFIG_BYTES
from weft.adapters.header import WEIGHTS_NAME
from weft.server.api.body import in_time
from weft.server.arrivals import Allowance
from weft.server.errors import ApiError, ErrorCode, invalid

if TYPE_CHECKING:  # the library has this name for type checkers only
    from python_multipart.multipart import MultipartCallbacks

_WRITE_BYTES = 1 << 20
_BESIDE_WEIGHTS = MAX_CONFIG_BYTES + 16 * 1024
"""The configuration, boundaries and the parts' headers."""


class UploadedFiles(NamedTuple):
    """The two files, each open at its beginning; they have no name on disk."""

    config: BinaryIO
    weights: BinaryIO


class _Parts:
    """Writes each part's data to the file of its name; refuses every other part."""

    def __init__(self, files: UploadedFiles, allowance: Allowance) -> None:
        self._files = {CONFIG_NAME: files.config, WEIGHTS_NAME: files.weights}
        self._allowance = allowance
        self._weights = 0
        self._missing = set(self._files)
        self._file: BinaryIO | None = None
        self._field = self._value = b""
        self._disposition = b""
        self._ended = False

    @property
    def callbacks(self) -> "MultipartCallbacks":
        """What the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def check_complete(self) -> None:
        """Raises ApiError unless both parts came, and the body's end after them."""
        if not self._ended:
            raise invalid("body", "ends before the last boundary")
        if self._missing:
            raise invalid(min(self._missing), "this part is missing")

    def _begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _open(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("latin-1")
        if kind != b"form-data" or name not in self._files:
            raise invalid("body", f"parts are named {CONFIG_NAME} and {WEIGHTS_NAME}, no other")
        if name not in self._missing:
            raise invalid(name, "this part comes twice")
        self._missing.discard(name)
        self._file = self._files[name]

    def _data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        if self._file is self._files[WEIGHTS_NAME]:
            self._weights += end - start
            self._allowance.claim(self._weights)
        self._file.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self._ended = True


@asynccontextmanager
async def received(
    request: Request, folder: Path, allowance: Allowance
) -> AsyncIterator[UploadedFiles]:
    """The files of an upload, on the disk of `folder` meanwhile.

    Raises ApiError where the body is anything but the two parts, or, as soon as it is known, larger
    than allowed.
    """
    boundary = _boundary(request)
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        allowance.claim(int(length) - _BESIDE_WEIGHTS)
    with ExitStack() as stack:
        files = UploadedFiles(
            *(stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(2))
        )
        parts = _Parts(files, allowance)
        parser = MultipartParser(boundary, parts.callbacks)
        try:
            async for data in _blocks(request, allowance):
                await asyncio.to_thread(parser.write, data)
        except FormParserError:
            raise invalid("body", "is not valid multipart/form-data") from None
        parts.check_complete()
        for file in files:
            file.seek(0)
        yield files


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        values = {"expected": "application/json or multipart/form-data"}
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, values=values)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise invalid("Content-Type", "has no usable boundary")
    return boundary


async def _blocks(request: Request, allowance: Allowance) -> AsyncIterator[bytes]:
    """The body in blocks of about a megabyte, so that few of them need a thread."""
    block = bytearray()
    size = 0
    async for chunk in in_time(request.stream()):
        block += chunk
        size += len(chunk)
        allowance.claim(size - _BESIDE_WEIGHTS)
        if len(block) >= _WRITE_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)
