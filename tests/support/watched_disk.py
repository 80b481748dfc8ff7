"""A real disk that hears of every change before it happens, and may let it fail or be the last."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weft.adapters.files import Files


@dataclass(frozen=True, slots=True)
class Operation:
    """One change of the disk, as it is asked for.

    kind: make_folder, create, write, truncate, sync, sync_folder, rename, remove, remove_folder
    offset: of a write; the new size of a truncation   target: the new name of a rename
    role: what `path` is in the program; by default what its name tells
    """

    kind: str
    path: Path
    offset: int = 0
    data: bytes = b""
    target: Path | None = None
    role: str = ""

    @property
    def site(self) -> str:
        """Which step of the program it is, whatever the names: `sync of weights`."""
        return f"{self.kind} of {self.role or _role(self.path)}"


class Disk:
    """Announced operations, numbered from 0 in `operations`.

    trouble: called with each one and its number before it happens; may raise OSError
    synced: whether a sync really is one; where no power can fail, it only takes time
    """

    def __init__(
        self, trouble: Callable[[int, Operation], None] = lambda *_: None, *, synced: bool = True
    ) -> None:
        self.trouble = trouble
        self.synced = synced
        self.operations: list[Operation] = []

    def announce(self, operation: Operation) -> None:
        """Takes note of an operation that is about to happen."""
        number = len(self.operations)
        self.operations.append(operation)
        self.trouble(number, operation)

    def create(self, path: Path) -> None:
        """A file is made."""
        self.announce(Operation("create", path))

    def write(self, path: Path, offset: int, data: bytes) -> None:
        """Bytes are written."""
        self.announce(Operation("write", path, offset, data))

    def truncate(self, path: Path, size: int) -> None:
        """A file is cut."""
        self.announce(Operation("truncate", path, size))

    def sync(self, path: Path) -> None:
        """A file's content is made to last."""
        self.announce(Operation("sync", path))

    def remove(self, path: Path) -> None:
        """A file is removed."""
        self.announce(Operation("remove", path))


class WatchedFiles(Files):
    """The store's operations, announced to a disk; half of a write may have happened before."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def make_folder(self, path: Path) -> None:
        self._disk.announce(Operation("make_folder", path))
        super().make_folder(path)

    def create(self, path: Path) -> BinaryIO:
        self._disk.create(path)
        return super().create(path)

    def write(self, file: BinaryIO, data: memoryview) -> None:
        path, half = Path(os.fsdecode(file.name)), len(data) // 2
        for part in (data[:half], data[half:]):
            self._disk.write(path, file.tell(), bytes(part))
            super().write(file, part)

    def sync(self, file: BinaryIO) -> None:
        self._disk.sync(Path(os.fsdecode(file.name)))
        if self._disk.synced:
            super().sync(file)

    def sync_folder(self, path: Path) -> None:
        self._disk.announce(Operation("sync_folder", path))
        if self._disk.synced:
            super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self._disk.announce(Operation("rename", source, target=target))
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._disk.remove(path)
        super().remove(path)

    def remove_folder(self, path: Path) -> None:
        self._disk.announce(Operation("remove_folder", path))
        super().remove_folder(path)


def _role(path: Path) -> str:
    name, folder = path.name, path.parent.name
    for begins, role in ((".arriving-", "arriving"), (".leaving-", "leaving")):
        if name.startswith(begins):
            return role
        if folder.startswith(begins):
            return f"{role} {name.rpartition('.')[0]}"
    if len(name) == 64:
        return "version"
    return "shelf" if len(name) == 2 else name
