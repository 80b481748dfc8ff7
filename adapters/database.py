"""An SQLite file of the state folder: opened by one process at a time, durable at each commit.

One connection, exclusive locking, write-ahead log without shared memory: several writers, whose
checkpoints some SQLite versions get wrong, cannot occur.
"""

import errno
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weft.adapters.errors import StateInUse, StorageFull

# The registry's.
_REGISTRY = (
    """
CREATE TABLE names (
    tenant  TEXT NOT NULL,
    name    TEXT NOT NULL,
    current INTEGER,           -- NULL: removed; the row stays so that no version number comes twice
    last    INTEGER NOT NULL,  -- the highest version number ever given
    pinned  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE versions (
    tenant  TEXT NOT NULL,
    name    TEXT NOT NULL,
    version INTEGER NOT NULL,
    digest  TEXT NOT NULL,
    bytes   INTEGER NOT NULL,
    created REAL NOT NULL,
    report  TEXT NOT NULL,
    failed  TEXT,
    PRIMARY KEY (tenant, name, version)
) WITHOUT ROWID;
CREATE INDEX versions_by_digest ON versions (digest);
""",
    """
ALTER TABLE versions ADD COLUMN retired REAL;  -- when another version took its place last
CREATE TABLE failures (
    digest  TEXT PRIMARY KEY,
    reason  TEXT NOT NULL
) WITHOUT ROWID;
INSERT OR IGNORE INTO failures
    SELECT digest, failed FROM versions WHERE failed IS NOT NULL;
ALTER TABLE versions DROP COLUMN failed;
CREATE TABLE aliases (
    tenant   TEXT NOT NULL,
    name     TEXT NOT NULL,
    targets  TEXT NOT NULL,  -- name=weight or name@version=weight, with commas
    previous TEXT NOT NULL,
    changed  REAL NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
""",
)

_SOME_BYTES = 64 << 10
Values = Sequence[object] | Mapping[str, object]


class Database:
    """A connection that threads share under `lock`.

    Raises StateInUse at opening where another process has it, StorageFull or OSError where the disk
    fails; a transaction that raised changed nothing.
    """

    def __init__(self, path: Path, formats: Sequence[str] = _REGISTRY) -> None:
        """formats: what makes each one of that before, for files of older servers and new ones"""
        self._formats = formats
        self._folder = path.parent
        self.lock = threading.RLock()
        with self._disk_errors():
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=0.0
            )
        try:
            with self._disk_errors():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def rows(self, query: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """All rows that a query gives, or that a statement of a transaction returns."""
        with self.lock, self._disk_errors():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits what is done inside, durably, or on an exception nothing of it."""
        with self.lock, self._disk_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Closes the file; it can be opened again."""
        with self.lock:
            self._connection.close()

    def _prepare(self) -> None:
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("PRAGMA mmap_size=0")
        self._connection.execute("BEGIN EXCLUSIVE")
        self._connection.execute("COMMIT")
        (format_,) = self._connection.execute("PRAGMA user_version").fetchone()
        newest = len(self._formats)
        if format_ > newest:
            raise StateInUse(f"the state folder is of format {format_}, this server knows {newest}")
        for number, script in enumerate(self._formats[format_:], format_ + 1):
            self._connection.executescript(f"BEGIN; {script} PRAGMA user_version={number}; COMMIT;")

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                raise StateInUse("another server is running on this state folder") from error
            if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and self._is_full()):
                raise StorageFull(errno.ENOSPC, "the disk of the state folder is full") from error
            if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise OSError(errno.EIO, f"a file of the state folder fails: {error}") from error
            raise

    def _is_full(self) -> bool:
        """Whether the disk has no room: SQLite does not say why a sync failed."""
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                os.posix_fallocate(file.fileno(), 0, _SOME_BYTES)
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        return False
