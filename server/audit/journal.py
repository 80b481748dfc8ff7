"""The audit log's file: one JSON object a line, each with the checksum of all before it.

Knows no events. A line's `sha256` is that of its bytes before `,"sha256":`; `prev` among these is
the line before's.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("weft.audit")
_SEAL = b',"sha256":"'
_BEGIN = b'{"seq":'
_NOTHING = "0" * 64
_TAIL_BYTES = 1 << 20
_LONGEST_TEXT = 256


class JournalInvalid(Exception):
    """A file that is no journal, or was changed; the message says where."""


class Link(NamedTuple):
    """What the next line goes on from."""

    seq: int
    sha256: str


class Journal:
    """Appends lines, each on the disk before `append` returns. Not thread-safe.

    The file may be renamed at any time: the next line then begins a new one, in the same chain.
    cut: bytes of a last line that was written in part, and is gone now
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes it; raises JournalInvalid, OSError."""
        self._path = path
        self._file = self._open()
        try:
            self._last, self.cut = _mend(self._file)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, fields: Mapping[str, object]) -> None:
        """Adds a line; on OSError there is none of it."""
        if self._renamed():
            os.close(self._file)
            self._file = self._open()
        line, link = _line(fields, self._last)
        size = os.fstat(self._file).st_size
        try:
            _write(self._file, line)
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._last = link

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return file

    def _renamed(self) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return True
        mine = os.fstat(self._file)
        return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)


def verify(path: Path) -> int:
    """How many lines there are; raises JournalInvalid naming the first that does not fit."""
    last: Link | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            last = _link(line, last)
            if last is None:
                raise JournalInvalid(f"{path}: line {number} was changed, or one before is missing")
    return 0 if last is None else number


def _line(fields: Mapping[str, object], last: Link) -> tuple[bytes, Link]:
    """ASCII without control characters, whatever the fields hold."""
    values = {"seq": last.seq + 1, **fields, "prev": last.sha256}
    text = json.dumps({k: _short(v) for k, v in values.items()}, separators=(",", ":"))
    body = text.removesuffix("}").replace("\x7f", "\\u007f").encode()
    checksum = sha256(body).hexdigest()
    return body + _SEAL + checksum.encode() + b'"}\n', Link(last.seq + 1, checksum)


def _short(value: object) -> object:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else value


def _link(line: bytes, last: Link | None) -> Link | None:
    """What goes on from a line; None where it is damaged or does not go on from `last`."""
    body, seal, rest = line.rpartition(_SEAL)
    checksum = sha256(body).hexdigest()
    if not seal or rest != checksum.encode() + b'"}\n':
        return None
    try:
        values = json.loads(line)
        link, prev = Link(int(values["seq"]), checksum), values["prev"]
    except (ValueError, TypeError, KeyError):
        return None
    if last is not None and (link.seq, prev) != (last.seq + 1, last.sha256):
        return None
    return link


def _mend(file: int) -> tuple[Link, int]:
    """Cuts off a last line that is not whole; returns what to go on from, and bytes cut.

    Raises JournalInvalid where no line before it is whole either.
    """
    size = os.fstat(file).st_size
    begin = max(size - _TAIL_BYTES, 0)
    tail = os.pread(file, size - begin, begin)
    for end in _ends(tail):
        start = tail.rfind(b"\n", 0, end - 1) + 1
        link = _link(tail[start:end], None)
        if link is not None:
            cut = len(tail) - end
            break
    else:
        if begin or b"\n" in tail or not tail.startswith(_BEGIN[: len(tail)]):
            raise JournalInvalid("it is no audit log, or its end is damaged")
        link, cut, end = Link(0, _NOTHING), len(tail), 0
    if cut:
        os.ftruncate(file, begin + end)
        os.fsync(file)
    return link, cut


def _ends(tail: bytes) -> Iterator[int]:
    """Where the last two lines end that have an end: a torn write is in one line only."""
    end = len(tail)
    for _ in range(2):
        end = tail.rfind(b"\n", 0, end) + 1
        if not end:
            return
        yield end
        end -= 1


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
