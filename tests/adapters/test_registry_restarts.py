"""The registry over restarts and on disks that fail."""

import errno
import io
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from stored_adapters import DISK_BROKEN, DISK_FULL, TroubledFiles, adapter
from stored_state import MINE, THEIRS, State

from weft.adapters.errors import (
    AdapterInvalid,
    StateInUse,
    StorageFull,
)
from weft.adapters.registry import Registry
from weft.adapters.retention import Retention


def test_everything_is_there_again_after_a_restart(state: State) -> None:
    state.put("a", 1)
    state.put("a", 2)
    state.put("b", 3, THEIRS)
    state.registry.pin(MINE, "a", True)
    state.registry.rollback(MINE, "a")
    before = [state.registry.list(ctx) for ctx in (MINE, THEIRS)]
    state.restart()
    assert [state.registry.list(ctx) for ctx in (MINE, THEIRS)] == before


def test_a_restart_removes_what_was_not_recorded(state: State) -> None:
    kept = state.put("a", 1).digest
    state.store.put(adapter(2))
    state.restart()
    assert state.store.digests() == {kept}


def test_a_restart_removes_what_only_a_lease_kept(state: State) -> None:
    state.put("a", 1)
    state.registry.lease(MINE, "a")
    state.registry.remove(MINE, "a")
    assert len(state.store.digests()) == 1
    state.restart()
    assert state.store.digests() == set()


def test_files_that_went_missing_are_named_at_the_next_start(state: State) -> None:
    digest = state.put("a", 1).digest
    shutil.rmtree(state.store.folder(digest))
    state.restart()
    assert state.registry.lookup(MINE, "a").failed == "its stored files are missing"
    state.put("a", 1)
    assert state.registry.lookup(MINE, "a").failed is None


def test_a_second_registry_on_the_folder_is_refused(state: State) -> None:
    with pytest.raises(StateInUse):
        Registry(state.path, state.store)


def test_a_start_that_fails_lets_the_file_go(tmp_path: Path) -> None:
    files = TroubledFiles(DISK_BROKEN, at=-1)
    state = State(tmp_path, files)
    state.put("a", 1)
    state.store.put(adapter(2))
    state.registry.close()
    files.at = len(files.operations)
    with pytest.raises(OSError, match="Input/output") as failure:
        Registry(state.path, state.store)
    state.registry = Registry(state.path, state.store)
    assert failure.value.errno == errno.EIO
    assert state.registry.lookup(MINE, "a").version == 1
    state.registry.close()


def test_a_file_that_cannot_be_read_is_not_taken_for_one_without_names(state: State) -> None:
    digest = state.put("a", 1).digest
    state.registry.close()
    for renamed in ("versions", "lost"), ("lost", "versions"):
        with closing(sqlite3.connect(state.path)) as database:
            database.execute("ALTER TABLE {} RENAME TO {}".format(*renamed))
        if renamed[0] == "versions":
            with pytest.raises(sqlite3.OperationalError, match="versions"):
                Registry(state.path, state.store)
    state.registry = Registry(state.path, state.store)
    assert state.registry.lookup(MINE, "a").digest == digest
    assert state.store.read(digest)


def failures(state: State) -> list[tuple[str, str]]:
    """What its file says of versions that failed; it is closed meanwhile."""
    state.registry.close()
    with closing(sqlite3.connect(state.path)) as database:
        found = database.execute("SELECT * FROM failures").fetchall()
    state.registry = Registry(state.path, state.store)
    return found


def test_why_versions_failed_is_forgotten_with_the_last_one(state: State) -> None:
    registry = state.registry
    for seed, name in enumerate(("removed", "pruned")):
        state.put(name, seed)
        with registry.lease(MINE, name) as lease:
            registry.withdraw(lease, "damaged")
    registry.catch_up()
    state.put("pruned", 3)
    registry.remove(MINE, "removed")
    registry.prune(MINE, "pruned", Retention(1))
    assert failures(state) == []


def test_what_fails_after_its_name_is_gone_is_not_recorded(state: State) -> None:
    state.put("a", 1)
    with state.registry.lease(MINE, "a") as lease:
        state.registry.remove(MINE, "a")
        state.registry.withdraw(lease, "damaged")
    assert failures(state) == []


def test_a_full_disk_changes_nothing_and_reads_go_on(tmp_path: Path) -> None:
    count = _operations(tmp_path / "whole")
    for at in range(count):
        files = TroubledFiles(DISK_FULL, at=-1)
        state = State(tmp_path / f"state{at}", files)
        version = state.put("a", 1)
        files.at = len(files.operations) + at
        with pytest.raises(StorageFull):
            state.put("a", 2)
        assert state.registry.lookup(MINE, "a").digest == version.digest
        assert state.store.digests() == {version.digest}
        assert state.put("a", 2).version == 2
        assert state.registry.check() == ()
        state.registry.close()


def _operations(root: Path) -> int:
    files = TroubledFiles(DISK_FULL, at=-1)
    state = State(root, files)
    state.put("a", 1)
    before = len(files.operations)
    state.put("a", 2)
    state.registry.close()
    return len(files.operations) - before


def test_files_that_cannot_be_removed_now_go_at_the_next_start(tmp_path: Path) -> None:
    files = TroubledFiles(DISK_BROKEN, at=-1)
    state = State(tmp_path, files)
    state.put("a", 1)
    files.at = len(files.operations)
    state.registry.remove(MINE, "a")
    assert len(state.store.digests()) == 1
    assert state.registry.check() == ()
    state.restart()
    assert state.store.digests() == set()
    state.registry.close()


def test_an_upload_that_is_no_adapter_holds_nothing(state: State, registry: Registry) -> None:
    with pytest.raises(AdapterInvalid):
        registry.ingest(MINE, (io.BytesIO(b"{}"), io.BytesIO(b"")))
    assert state.store.digests() == set()
