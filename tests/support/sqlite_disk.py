"""SQLite's own file operations in this process, seen before they happen.

Stands in front of the system's file layer (a VFS, https://sqlite.org/vfs.html) through ctypes: the
files are real, and a write or sync can be recorded, fail, block, or be the process's last act.
"""

import _sqlite3
import ctypes
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path

from watched_disk import Disk, Operation

_OK, _IOERR, _FULL = 0, 10, 13
_WRITE, _SYNC, _TRUNCATE, _DELETE, _CANNOT_OPEN = (_IOERR | n << 8 for n in (3, 4, 6, 10, 28))
_CREATES = 0x4

# SQLite keeps the pointer to a name, so it must be passed on as it is.
_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class _Methods(Structure):
    """sqlite3_io_methods, version 3."""

    _fields_ = (
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", _Write),
        ("truncate", _Truncate),
        ("sync", _Sync),
        ("others", c_void_p * 13),
    )


class _File(Structure):
    """sqlite3_file."""

    _fields_ = (("methods", POINTER(_Methods)),)


class _Vfs(Structure):
    """sqlite3_vfs, version 3."""

    _fields_ = (
        ("version", c_int),
        ("file_size", c_int),
        ("max_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _Open),
        ("delete", _Delete),
        ("others", c_void_p * 14),
    )


class _Watcher:
    """The system's file layer with a disk that hears of what changes something."""

    def __init__(self, library: ctypes.CDLL, disk: Disk) -> None:
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        self._real = library.sqlite3_vfs_find(None).contents
        self._disk = disk
        self._paths: dict[int, Path] = {}
        self._unlisted: set[Path] = set()  # made, but its folder was not synced yet
        self._tables: dict[int, _Methods] = {}
        self.vfs = _Vfs.from_buffer_copy(self._real)
        self.vfs.name, self.vfs.next = b"watched", None
        self.vfs.open, self.vfs.delete = _Open(self._open), _Delete(self._delete)

    def _open(
        self, vfs: int, name: int, file: int, flags: int, out: "ctypes._Pointer[c_int]"
    ) -> int:
        path = Path(ctypes.string_at(name).decode()) if name else None
        if path is not None and flags & _CREATES and not path.exists():
            code = self._ask(_CANNOT_OPEN, lambda: self._disk.create(path))
            if code:
                return code
            self._unlisted.add(path)
        code = self._real.open(vfs, name, file, flags, out)
        opened = ctypes.cast(file, POINTER(_File)).contents
        if code == _OK and path is not None and opened.methods:
            self._paths[file] = path
            opened.methods = ctypes.pointer(self._watched(opened.methods))
        return code

    def _watched(self, real: "ctypes._Pointer[_Methods]") -> _Methods:
        """The same methods, but of those that change the file ours."""
        address = ctypes.addressof(real.contents)
        if address not in self._tables:
            self._tables[address] = _Methods.from_buffer_copy(real.contents)
            table = self._tables[address]
            table.write = _Write(self._write(real.contents.write))
            table.truncate = _Truncate(self._truncate(real.contents.truncate))
            table.sync = _Sync(self._sync(real.contents.sync))
        return self._tables[address]

    def _write(self, real: Callable[..., int]) -> Callable[..., int]:
        def write(file: int, data: int, size: int, offset: int) -> int:
            content = ctypes.string_at(data, size)
            path = self._paths[file]
            code = self._ask(_WRITE, lambda: self._disk.write(path, offset, content))
            return code or real(file, data, size, offset)

        return write

    def _truncate(self, real: Callable[..., int]) -> Callable[..., int]:
        def truncate(file: int, size: int) -> int:
            code = self._ask(_TRUNCATE, lambda: self._disk.truncate(self._paths[file], size))
            return code or real(file, size)

        return truncate

    def _sync(self, real: Callable[..., int]) -> Callable[..., int]:
        def sync(file: int, flags: int) -> int:
            path = self._paths[file]
            code = self._ask(_SYNC, lambda: self._disk.sync(path))
            if code == _OK and path in self._unlisted and "-" in path.name:
                # As the system's layer does after the first sync of a journal.
                self._unlisted.discard(path)
                code = self._ask(_SYNC, lambda: self._sync_folder_of(path))
            return real(file, flags) if code == _OK and self._disk.synced else code

        return sync

    def _delete(self, vfs: int, name: int, sync_folder: int) -> int:
        path, code = Path(ctypes.string_at(name).decode()), _OK
        if path.exists():
            code = self._ask(_DELETE, lambda: self._disk.remove(path))
            if code:
                return code
            if sync_folder:
                code = self._ask(_SYNC, lambda: self._sync_folder_of(path))
        return code or self._real.delete(vfs, name, sync_folder)

    def _sync_folder_of(self, path: Path) -> None:
        role = f"the folder of {path.name}"
        self._disk.announce(Operation("sync_folder", path.parent, role=role))

    def _ask(self, failure: int, announce: Callable[[], None]) -> int:
        try:
            announce()
        except OSError as error:
            return _FULL if error.errno == errno.ENOSPC and failure == _WRITE else failure
        return _OK


_kept: list[_Watcher] = []  # connections may outlive their context, and hold pointers


@contextmanager
def sqlite_on(disk: Disk) -> Iterator[None]:
    """Lets every database that is opened meanwhile announce its changes to `disk`."""
    library = ctypes.CDLL(_sqlite3.__file__)
    watcher = _Watcher(library, disk)
    _kept.append(watcher)
    assert library.sqlite3_vfs_register(ctypes.byref(watcher.vfs), 1) == _OK
    try:
        yield
    finally:
        library.sqlite3_vfs_unregister(ctypes.byref(watcher.vfs))
