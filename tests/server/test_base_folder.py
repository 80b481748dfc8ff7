"""Finding a base model, and telling bases apart."""

from pathlib import Path

import pytest

from weft.server.base_folder import BaseNotFound, default_state_dir, find_base, fingerprint


def make_base(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_local_folder_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(base), "models/tiny", "./models/tiny", "~/models/tiny"):
        assert find_base(name) == base


def test_a_hub_id_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--maker--tiny"
    base = make_base(repo / "snapshots" / "0123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123")
    assert find_base("maker/tiny") == base


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/none", "there is no folder /none"),
        ("a/b/c", "there is no folder a/b/c"),
        ("a b", "a b: neither a local folder nor a hub id"),
        ("maker/none", "maker/none: no local folder, not in the hub's cache"),
    ],
)
def test_what_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseNotFound) as caught:
        find_base(name)
    assert str(caught.value).startswith(reason)


def test_the_fingerprint_follows_the_content_not_the_place(tmp_path: Path) -> None:
    weights = bytes(3 << 20)
    first = fingerprint(make_base(tmp_path / "a", weights))
    assert fingerprint(make_base(tmp_path / "b", weights)) == first
    for name, other in {"longer": weights + b"0", "start": b"1" + weights[1:]}.items():
        assert fingerprint(make_base(tmp_path / name, other)) != first
    (tmp_path / "b" / "config.json").write_text('{"hidden_size": 1}')
    assert fingerprint(tmp_path / "b") != first


def test_the_state_is_kept_where_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_state_dir(base) == tmp_path / "xdg" / "weft" / fingerprint(base)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_state_dir(base).parent == tmp_path / "home" / ".local" / "state" / "weft"
