"""Adapters' files by content: what is stored under a digest never changes. Knows no names.

root/<first two digits>/<digest>/ holds adapter_config.json and adapter_model.safetensors, and
model_head.safetensors where an adapter comes with a head.
"""

import errno
import os
import secrets
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weft.adapters.checkpoint import CONFIG_NAME, Checkpoint, read_checkpoint
from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, StorageFull
from weft.adapters.files import Files
from weft.adapters.header import WEIGHTS_NAME
from weft.adapters.identity import Identify, identify

FileSource = Path | BinaryIO
"""A file, or an open one that is read from where it stands."""
Source = Path | tuple[FileSource, FileSource]
"""An adapter's folder, or its two files: configuration and weights."""

_ARRIVING = ".arriving-"
_LEAVING = ".leaving-"
_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Staged:
    """Files on the disk under a temporary name, complete and synced; `nbytes` is the weights'."""

    folder: Path
    digest: str
    nbytes: int


class Store:
    """Content-addressed folders under `root`.

    What `settle` returned from survives a crash: files are written and synced under a temporary
    name, renamed to their digest, and the folders are synced. Whoever records digests does so after
    that, and calls `sweep` at start, so that what was not recorded goes. Thread-safe; other
    processes may read meanwhile.
    """

    def __init__(
        self, root: Path, files: Files | None = None, identify: Identify = identify
    ) -> None:
        """identify: reads what is to be stored"""
        self.root = root
        self._identify = identify
        self._files = files or Files()
        self._lock = threading.Lock()

    # ---- writing

    def make_root(self) -> None:
        """Makes the folder of all versions, so that it survives a crash; raises OSError."""
        self._files.make_folders(self.root)

    def put(self, source: Source) -> str:
        """Stages and settles an adapter; returns its digest. Raises as they do."""
        staged = self.stage(source)
        try:
            self.settle(staged)
        finally:
            self.discard(staged)
        return staged.digest

    def stage(self, source: Source) -> Staged:
        """Copies an adapter's files to where they can be settled or discarded.

        Raises AdapterInvalid where they are no adapter, StorageFull or another OSError where they
        cannot be stored; then nothing is left of them.
        """
        files = self._files_of(source)
        folder = self._temporary(_ARRIVING)
        with _disk_errors():
            try:
                self.make_root()
                self._files.make_folder(folder)
                for name, file in files.items():
                    self._copy(file, folder / name)
                self._files.sync_folder(folder)
                found = self._identify(folder)
            except BaseException:
                self._clear(folder)
                raise
        return Staged(folder, found.digest, found.nbytes)

    def settle(self, staged: Staged) -> None:
        """Stores staged files under their digest; the same bytes may be there already.

        Raises StorageFull or another OSError; then nothing was changed.
        """
        folder = self.folder(staged.digest)
        with self._lock, _disk_errors():
            if folder.exists():
                with suppress(AdapterCorrupt):
                    self.read(staged.digest)
                    return
                self._take_away(folder)
            if not folder.parent.exists():
                self._files.make_folder(folder.parent)
            self._files.rename(staged.folder, folder)
            try:
                self._files.sync_folder(folder.parent)
                self._files.sync_folder(self.root)
            except OSError:
                self._clear(folder)
                raise

    def discard(self, staged: Staged) -> None:
        """Removes staged files that were not settled."""
        self._clear(staged.folder)

    def remove(self, digest: str) -> None:
        """Removes a version's files, if they are here."""
        with self._lock, _disk_errors():
            self._take_away(self.folder(digest))

    def sweep(self, keep: Collection[str]) -> tuple[str, ...]:
        """Removes all that is not in `keep`, interrupted work included; returns what is missing.

        Only for the one process that writes, and before it does.
        """
        with self._lock, _disk_errors():
            self.make_root()
            for path in _children(self.root):
                if path.name.startswith((_ARRIVING, _LEAVING)):
                    self._clear(path)
            stored = self.digests()
            for digest in stored - set(keep):
                self._take_away(self.folder(digest))
        return tuple(sorted(set(keep) - stored))

    # ---- reading

    def folder(self, digest: str) -> Path:
        """Where a version's files are, or would be."""
        return self.root / digest[:2] / digest

    def read(self, digest: str) -> Checkpoint:
        """A version's checkpoint, all its bytes compared with the digest.

        Raises AdapterCorrupt where they are not what was stored or gone, OSError where the system
        could not read them now.
        """
        try:
            checkpoint = read_checkpoint(self.folder(digest))
        except AdapterInvalid as error:
            if isinstance(error.__context__, OSError) and self.folder(digest).exists():
                raise error.__context__ from None
            raise AdapterCorrupt(digest) from error
        if checkpoint.digest != digest:
            raise AdapterCorrupt(digest)
        return checkpoint

    def digests(self) -> set[str]:
        """The versions that have files here."""
        if not self.root.is_dir():
            return set()
        with os.scandir(self.root) as entries:
            shelves = [entry for entry in entries if len(entry.name) == 2 and entry.is_dir()]
        found = ((shelf.name, entry.name) for shelf in shelves for entry in os.scandir(shelf))
        return {name for shelf, name in found if name[:2] == shelf}

    # ---- steps of them

    def _files_of(self, source: Source) -> dict[str, FileSource]:
        """The files to be stored, by the names they are stored under."""
        if isinstance(source, tuple):
            return dict(zip((CONFIG_NAME, WEIGHTS_NAME), source, strict=True))
        return {name: Path(path) for name, path in self._identify(source).files.items()}

    def _copy(self, source: FileSource, target: Path) -> None:
        with self._files.create(target) as file:
            for chunk in _chunks(source):
                self._files.write(file, memoryview(chunk))
            self._files.sync(file)

    def _take_away(self, folder: Path) -> None:
        """Makes the lasting name go at once; the files follow."""
        if folder.exists():
            leaving = self._temporary(_LEAVING)
            self._files.rename(folder, leaving)
            self._clear(leaving)

    def _clear(self, folder: Path) -> None:
        """Removes a folder as far as the disk lets us; the next sweep removes the rest."""
        with suppress(OSError):
            if folder.is_dir():
                for path in _children(folder):
                    self._files.remove(path)
                self._files.remove_folder(folder)

    def _temporary(self, prefix: str) -> Path:
        return self.root / f"{prefix}{secrets.token_hex(8)}"


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _chunks(source: FileSource) -> Iterator[bytes]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield from _chunks(file)
    else:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(error.errno, "the disk of the state folder is full") from error
        raise
