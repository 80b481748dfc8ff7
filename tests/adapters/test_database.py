import errno
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from weft.adapters.database import Database
from weft.adapters.errors import StateInUse, StorageFull
from weft.adapters.ledger import Ledger
from weft.adapters.version import Version

NAME = "INSERT INTO names (tenant, name, last) VALUES ('t', ?, 1)"


def names(database: Database) -> list[str]:
    return [name for (name,) in database.rows("SELECT name FROM names ORDER BY name")]


def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    with database.transaction():
        database.rows(NAME, ("a",))
    database.close()
    database = Database(tmp_path / "db")
    assert names(database) == ["a"]
    database.close()


def test_a_transaction_that_raises_changes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    with suppress(ZeroDivisionError), database.transaction():
        database.rows(NAME, ("a",))
        raise ZeroDivisionError
    assert names(database) == []
    with database.transaction():
        database.rows(NAME, ("b",))
    assert names(database) == ["b"]
    database.close()


def test_commits_are_synced_and_nothing_is_mapped(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    settings = ("synchronous", "journal_mode", "locking_mode", "mmap_size")
    found = [database.rows(f"PRAGMA {name}")[0][0] for name in settings]
    assert found == [2, "wal", "exclusive", 0]
    database.close()


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    code = (
        "import sys; from pathlib import Path; from weft.adapters.database import Database;"
        "Database(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "db")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "StateInUse: another server is running" in refused.stderr
    database.close()
    subprocess.run(command, check=True)


def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    database.rows("PRAGMA max_page_count = 1")

    def fill() -> None:
        with database.transaction():
            for index in range(10_000):
                database.rows(NAME, (f"n{index:05}",))

    with pytest.raises(StorageFull):
        fill()
    assert names(database) == []
    database.close()


@pytest.mark.parametrize(
    ("room", "error", "full"),
    [
        (1 << 10, errno.ENOSPC, True),
        (1 << 10, errno.EDQUOT, True),
        (1 << 10, errno.EIO, False),
        (64 << 10, errno.ENOSPC, False),
    ],
)
def test_a_failed_sync_is_a_full_disk_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, error: int, full: bool
) -> None:
    """SQLite says that a sync failed, and not why."""

    def allocate(file: int, offset: int, length: int) -> None:
        if offset + length > room:
            raise OSError(error, "no room")

    monkeypatch.setattr("os.posix_fallocate", allocate)
    failed = sqlite3.OperationalError("disk I/O error")
    failed.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    database = Database(tmp_path / "db")
    with (
        pytest.raises(OSError, match="is full" if full else "fails") as told,
        database.transaction(),
    ):
        raise failed
    assert isinstance(told.value, StorageFull) == full
    assert names(database) == []
    database.close()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    database.rows("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StateInUse, match="format 99"):
        Database(tmp_path / "db")


def test_a_path_that_cannot_be_opened_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="fails"):
        Database(tmp_path / "missing" / "db")


FIRST_FORMAT = """
CREATE TABLE names (tenant TEXT NOT NULL, name TEXT NOT NULL, current INTEGER,
    last INTEGER NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE versions (tenant TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    digest TEXT NOT NULL, bytes INTEGER NOT NULL, created REAL NOT NULL, report TEXT NOT NULL,
    failed TEXT, PRIMARY KEY (tenant, name, version)
) WITHOUT ROWID;
CREATE INDEX versions_by_digest ON versions (digest);
INSERT INTO names VALUES ('t', 'a', 1, 2, 1);
INSERT INTO versions VALUES ('t', 'a', 1, 'one', 8, 1.5, '{}', NULL);
INSERT INTO versions VALUES ('t', 'a', 2, 'two', 9, 2.5, '{"x": 1}', 'damaged');
PRAGMA user_version = 1;
"""


def test_a_file_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "db")
    old.executescript(FIRST_FORMAT)
    old.close()
    for _ in range(2):
        ledger = Ledger(tmp_path / "db")
        entry = ledger.directory.names["t", "a"]
        assert (entry.current, entry.pinned, [*entry.versions]) == (1, True, [1, 2])
        assert entry.versions[2] == Version("a", 2, "two", 9, 2.5, '{"x": 1}')
        assert ledger.directory.failures == {"two": "damaged"}
        assert ledger.directory.aliases == {}
        assert ledger.check() == ()
        ledger.close()
