"""A base's digest: of its files as they are, computed once."""

import hashlib
import shutil
from pathlib import Path

import pytest
from tiny_models import save_tiny

from weft.server.engine import base_digest
from weft.server.engine.base_digest import digest_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model")


def test_it_is_remembered_until_a_file_changes(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "store"
    digest = digest_files(folder, state)
    assert len(digest) == 64
    cache = state / "base_digest.json"
    cache.write_text(cache.read_text().replace(digest, 64 * "0"))
    assert digest_files(folder, state) == 64 * "0"
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert digest_files(copy, state) == digest
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert digest_files(copy, state) not in (digest, 64 * "0")


def test_a_damaged_cache_is_no_harm(folder: Path, tmp_path: Path) -> None:
    digest = digest_files(folder, tmp_path)
    (tmp_path / "base_digest.json").write_text("{")
    assert digest_files(folder, tmp_path) == digest


def test_who_asks_while_it_is_computed_does_not_compute_it_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: calls.append(a) or real(*a))
    thread = base_digest.begin(folder, tmp_path)
    digest = digest_files(folder, tmp_path)
    thread.join()
    assert len(calls) == 2  # config and weights, once
    assert digest == digest_files(folder, tmp_path)


def test_one_begun_for_files_that_cannot_be_read_ends_quietly(tmp_path: Path) -> None:
    base_digest.begin(tmp_path / "nothing", tmp_path).join()
    with pytest.raises(FileNotFoundError):
        digest_files(tmp_path / "nothing", tmp_path)
