"""The audit log's file: chained, mended after a torn write, renamed while it is written."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.server.audit.journal import Journal, JournalInvalid, verify


def written(path: Path, *names: str) -> None:
    journal = Journal(path)
    for name in names:
        journal.append({"name": name})
    journal.close()


def test_a_torn_line_is_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, "one", "two", "three")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    first = len(lines[0]) + len(lines[1])
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        journal = Journal(path)
        assert journal.cut == size - first
        journal.append({"name": "next"})
        journal.close()
        assert path.read_bytes().startswith(whole[:first])
        assert verify(path) == 3


@given(st.data())
def test_any_change_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    written(path, "one", "two", "three")
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises(JournalInvalid, match=r"line [1-4] "):
        verify(path)


def test_a_missing_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path, "one", "two", "three")
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + third)
    with pytest.raises(JournalInvalid, match="line 2 "):
        verify(path)


def test_a_renamed_file_goes_on_in_a_new_one(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    journal = Journal(path)
    journal.append({"name": "one"})
    path.rename(old)
    journal.append({"name": "two"})
    journal.close()
    assert verify(old) == verify(path) == 1
    (tmp_path / "both").write_bytes(old.read_bytes() + path.read_bytes())
    assert verify(tmp_path / "both") == 2


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for content in (b"milk", b"milk\neggs\n", b"\0" * 9):
        path.write_bytes(content)
        with pytest.raises(JournalInvalid):
            Journal(path)
        assert path.read_bytes() == content


def test_where_the_disk_fails_nothing_is_left_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    journal = Journal(path)
    journal.append({"name": "one"})
    with monkeypatch.context() as broken:
        broken.setattr("os.fdatasync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            journal.append({"name": "lost"})
    journal.append({"name": "two"})
    journal.close()
    assert verify(path) == 2
