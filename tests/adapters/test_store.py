import errno
import io
import threading
from pathlib import Path

import pytest
from stored_adapters import (
    CONFIG,
    DISK_BROKEN,
    DISK_FULL,
    WEIGHTS,
    TroubledFiles,
    adapter,
    adapter_folder,
    config_bytes,
    fail_with,
    weights_bytes,
)

from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, StorageFull
from weft.adapters.files import Files
from weft.adapters.store import Store


def files_under(root: Path) -> set[str]:
    """All files and non-empty folders; a shelf that became empty holds nothing."""
    found = {path for path in root.rglob("*") if path.is_file() or any(path.iterdir())}
    return {str(path.relative_to(root)) for path in found}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_folder_is_stored_under_its_digest(store: Store, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "mine", 1)
    digest = store.put(folder)
    assert digest == read_checkpoint(folder).digest
    assert store.digests() == {digest}
    assert (store.folder(digest) / WEIGHTS).read_bytes() == weights_bytes(1)
    assert (store.folder(digest) / CONFIG).read_bytes() == config_bytes()
    assert store.read(digest).nbytes == len(weights_bytes(1))


def test_streams_and_paths_give_the_same_version(store: Store, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "mine", 1)
    digests = {
        store.put(folder),
        store.put((folder / CONFIG, folder / WEIGHTS)),
        store.put((io.BytesIO(config_bytes()), folder / WEIGHTS)),
        store.put(adapter(1)),
    }
    assert store.digests() == digests
    assert len(digests) == 1


def test_the_only_sub_folder_that_is_an_adapter_is_taken(store: Store, tmp_path: Path) -> None:
    adapter_folder(tmp_path / "outer" / "default", 3)
    assert store.read(store.put(tmp_path / "outer"))


def test_other_files_of_a_folder_are_not_stored(store: Store, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "mine", 1)
    (folder / "tokenizer.json").write_text("{}")
    digest = store.put(folder)
    assert sorted(path.name for path in store.folder(digest).iterdir()) == [CONFIG, WEIGHTS]


def test_what_is_no_adapter_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterInvalid):
        store.put(tmp_path / "empty")
    with pytest.raises(AdapterInvalid, match=WEIGHTS):
        store.put((io.BytesIO(config_bytes()), io.BytesIO(weights_bytes(1)[:-1])))
    with pytest.raises(AdapterInvalid, match=CONFIG):
        store.put((io.BytesIO(b"{"), io.BytesIO(weights_bytes(1))))
    assert files_under(store.root) == set()


def test_every_truncation_of_an_upload_leaves_nothing(store: Store) -> None:
    whole = weights_bytes(1, values=64)
    for stop in range(0, len(whole), max(1, len(whole) // 64)):
        with pytest.raises(AdapterInvalid):
            store.put((io.BytesIO(config_bytes()), io.BytesIO(whole[:stop])))
    assert files_under(store.root) == set()


def test_a_stream_that_breaks_leaves_nothing(store: Store) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        store.put((io.BytesIO(config_bytes()), Broken()))
    assert files_under(store.root) == set()


def test_every_flipped_bit_is_found(store: Store) -> None:
    digest = store.put(adapter(1))
    for name in (CONFIG, WEIGHTS):
        path = store.folder(digest) / name
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(AdapterCorrupt, match=digest):
                store.read(digest)
        path.write_bytes(whole)
        assert store.read(digest).digest == digest


def test_a_new_upload_heals_what_is_damaged(store: Store) -> None:
    digest = store.put(adapter(1))
    (store.folder(digest) / WEIGHTS).write_bytes(b"damaged")
    assert store.put(adapter(1)) == digest
    assert store.read(digest).digest == digest
    assert store.sweep({digest}) == ()


def test_a_changed_configuration_is_found(store: Store) -> None:
    digest = store.put(adapter(1))
    (store.folder(digest) / CONFIG).write_bytes(config_bytes(lora_alpha=9))
    with pytest.raises(AdapterCorrupt):
        store.read(digest)


def test_files_that_are_gone_are_damage(store: Store) -> None:
    digest = store.put(adapter(1))
    (store.folder(digest) / WEIGHTS).unlink()
    with pytest.raises(AdapterCorrupt):
        store.read(digest)
    store.remove(digest)
    with pytest.raises(AdapterCorrupt):
        store.read(digest)


def test_a_file_that_cannot_be_read_now_is_not_called_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put(adapter(1))

    def too_many(self: Path, *args: object, **more: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(Path, "open", too_many)
    with pytest.raises(OSError, match="too many open files"):
        store.read(digest)


def test_removing_is_complete_and_may_be_repeated(store: Store) -> None:
    digest, other = store.put(adapter(1)), store.put(adapter(2))
    store.remove(digest)
    store.remove(digest)
    assert store.digests() == {other}
    assert not any(digest in path for path in files_under(store.root))


def test_sweep_removes_leftovers_and_names_what_is_missing(store: Store) -> None:
    kept, orphan = store.put(adapter(1)), store.put(adapter(2))
    torn = store.root / ".arriving-0123"
    torn.mkdir()
    (torn / WEIGHTS).write_bytes(weights_bytes(3)[:20])
    (store.root / ".leaving-4567").mkdir()
    (store.root / "note").write_text("of somebody else")
    assert store.sweep({kept, "f" * 64}) == ("f" * 64,)
    assert store.digests() == {kept}
    assert not any(orphan in path or "-" in path for path in files_under(store.root))
    assert (store.root / "note").exists()


def test_sweeping_a_store_that_was_never_used_is_nothing(store: Store) -> None:
    assert store.sweep(()) == ()
    assert store.digests() == set()


def operations_of_a_put(root: Path) -> list[str]:
    """In a store whose folder is there already."""
    files = TroubledFiles(DISK_FULL, at=-1)
    store = Store(root, files)
    store.make_root()
    made = len(files.operations)
    store.put(adapter(1))
    return files.operations[made:]


def test_each_folder_above_the_versions_is_made_to_last(tmp_path: Path) -> None:
    files = TroubledFiles(DISK_FULL, at=-1)
    Store(tmp_path / "a" / "b", files).make_root()
    assert files.operations == ["make_folder", "sync_folder"] * 2
    assert (tmp_path / "a" / "b").is_dir()


def test_a_put_syncs_files_then_renames_then_syncs_folders(tmp_path: Path) -> None:
    assert operations_of_a_put(tmp_path / "store") == [
        *("make_folder", "create", "write", "sync", "create", "write", "sync", "sync_folder"),
        *("make_folder", "rename", "sync_folder", "sync_folder"),
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, OSError),
        (errno.EROFS, OSError),
    ],
)
def test_a_disk_that_fails_anywhere_leaves_nothing(
    tmp_path: Path, code: int, expected: type[OSError]
) -> None:
    count = len(operations_of_a_put(tmp_path / "whole"))
    for at in range(count):
        root = tmp_path / f"store{at}"
        other = Store(root).put(adapter(2))
        before = files_under(root)
        failing = Store(root, TroubledFiles(fail_with(code), at))
        with pytest.raises(expected):
            failing.put(adapter(1))
        assert files_under(root) == before
        assert failing.read(other).digest == other
        assert failing.put(adapter(1)) in failing.digests()


def test_what_a_failing_disk_keeps_the_next_start_removes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept = store.put(adapter(1))
    for at in range(2):
        digest = store.put(adapter(2))
        failing = Store(store.root, TroubledFiles(DISK_BROKEN, at + 1))
        failing.remove(digest)
        assert digest not in failing.digests()
    assert any(path.startswith(".leaving-") for path in files_under(store.root))
    store.sweep({kept})
    assert store.digests() == {kept}
    assert not any("leaving" in path for path in files_under(store.root))


def test_a_store_that_was_never_used_holds_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").digests() == set()


def test_many_threads_store_the_same_and_different_versions(store: Store) -> None:
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda seed=i % 3: digests.append(store.put(adapter(seed))))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 12
    assert store.digests() == set(digests)
    assert len(store.digests()) == 3
    assert not any(path.startswith(".") for path in files_under(store.root))


class Raced(Files):
    """Another thread is faster, whatever is made."""

    def make_folder(self, path: Path) -> None:
        path.mkdir()
        super().make_folder(path)


def test_folders_that_another_thread_makes_are_no_error(tmp_path: Path) -> None:
    Raced().make_folders(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        Files().make_folders(tmp_path / "file")
