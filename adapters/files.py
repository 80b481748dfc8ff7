"""The file operations that the store is made of, nearly all one system call's worth.

One seam for all of them, so that a test can let the k-th one fail or be the last.
"""

import os
from pathlib import Path
from typing import BinaryIO


class Files:
    """Operations on real files; every one raises OSError."""

    def make_folder(self, path: Path) -> None:
        """Makes a folder whose parent exists; one that exists already is an error."""
        path.mkdir()

    def make_folders(self, path: Path) -> None:
        """Makes a folder and all above it that are missing, so that they survive a power loss."""
        missing = [path, *path.parents]
        while missing and missing[-1].is_dir():
            missing.pop()
        for folder in reversed(missing):
            try:
                self.make_folder(folder)
            except FileExistsError:  # another thread was faster, but may not have synced it yet
                if not folder.is_dir():
                    raise
            self.sync_folder(folder.parent)

    def create(self, path: Path) -> BinaryIO:
        """Opens a new file for writing, unbuffered."""
        return path.open("xb", buffering=0)

    def write(self, file: BinaryIO, data: memoryview) -> None:
        """Writes all of `data`."""
        while data:
            data = data[file.write(data) :]

    def sync(self, file: BinaryIO) -> None:
        """Makes a file's content survive a power loss."""
        os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Makes a folder's entries survive a power loss."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Moves a file or folder to a name in the same file system that is not taken."""
        source.rename(target)

    def remove(self, path: Path) -> None:
        """Removes a file."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder."""
        path.rmdir()
