"""Editing a tenants file: what is asked for changes, all else stays, nothing is half-done."""

import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tenants_files import key_table

from weft.server.policy import Role
from weft.server.tenants_editor import TenantsEditor
from weft.server.tenants_file import TenantsInvalid, read_tenants

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
COMMENTED = """\
# ours, edited by hand
[tenants.acme]
weight = 2        # paid for
share = { legal = ["*"] }

[[tenants.acme.keys]]   # the first one
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
"""


def roles(path: Path, key: str, at: datetime = NOW) -> tuple[str, Role] | None:
    """Whom a key lets in, at a time."""
    caller = read_tenants(path).authenticate(key, at)
    return caller and (caller.tenant.id, caller.role)


def test_the_first_key_makes_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    key = TenantsEditor(path).add_key("acme", "manage", NOW)
    assert roles(path, key) == ("acme", Role.MANAGE)
    assert key not in path.read_text()
    assert len(key) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_all_else_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(COMMENTED)
    path.chmod(0o640)
    key = TenantsEditor(path).add_key("acme", "use", NOW)
    other = TenantsEditor(path).add_key("bolt", "admin", NOW)
    assert path.read_text().startswith(COMMENTED)
    assert roles(path, key) == ("acme", Role.USE)
    assert roles(path, other) == ("bolt", Role.ADMIN)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_keys_in_one_line_stay_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(f'[tenants.acme]\nkeys = [{{ sha256 = "{"0" * 64}" }}]\n')
    key = TenantsEditor(path).add_key("acme", "use", NOW)
    assert roles(path, key) == ("acme", Role.USE)
    assert path.read_text().count("\n") == 2


def test_after_a_rotation_the_old_keys_open_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    editor = TenantsEditor(path)
    manages, first = (editor.add_key("acme", role, NOW) for role in ("manage", "use"))
    second = editor.rotate("acme", "use", NOW, DAY)
    third = editor.rotate("acme", "use", NOW + DAY / 2, DAY)
    assert roles(path, manages, NOW + 9 * DAY) == ("acme", Role.MANAGE)
    for key, ends in ((first, NOW + DAY), (second, NOW + 1.5 * DAY)):
        assert roles(path, key, ends - timedelta(seconds=1)) == ("acme", Role.USE)
        assert roles(path, key, ends) is None
    fourth = editor.rotate("acme", "use", NOW + 2 * DAY, timedelta(0))
    (acme,) = read_tenants(path).tenants.values()
    assert len(acme.keys) == 2
    assert roles(path, third) is None
    assert roles(path, fourth) == ("acme", Role.USE)


def test_a_rotation_must_know_which_role(tmp_path: Path) -> None:
    editor = TenantsEditor(tmp_path / "tenants.toml")
    editor.add_key("acme", "use", NOW)
    editor.rotate("acme", None, NOW, DAY)
    editor.add_key("acme", "manage", NOW)
    with pytest.raises(TenantsInvalid, match="manage, use; say which one"):
        editor.rotate("acme", None, NOW, DAY)
    with pytest.raises(TenantsInvalid, match="there is no tenant 'bolt'"):
        editor.rotate("bolt", None, NOW, DAY)


def test_removing_a_key_and_a_tenant(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    editor = TenantsEditor(path)
    gone, kept, other = (editor.add_key(name, "use", NOW) for name in ("acme", "acme", "bolt"))
    caller = read_tenants(path).authenticate(gone, NOW)
    assert caller is not None
    editor.remove("acme", caller.key_id)
    assert [roles(path, key) for key in (gone, kept)] == [None, ("acme", Role.USE)]
    editor.remove("acme")
    assert read_tenants(path).tenants.keys() == {"bolt"}
    with pytest.raises(TenantsInvalid, match="there is no tenant 'acme'"):
        editor.remove("acme")
    with pytest.raises(TenantsInvalid, match="bolt has no key 0123"):
        editor.remove("bolt", "0123")
    assert roles(path, other) == ("bolt", Role.USE)


@pytest.mark.parametrize(
    "content", ["[tenants.acme", "[tenants.acme]\nweight = 0\n", "[tenants.acme]\nkeys = 1\n"]
)
def test_a_broken_file_is_told_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(content)
    with pytest.raises(TenantsInvalid):
        TenantsEditor(path).add_key("acme", "use", NOW)
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["a/b", "", "_probe", "x" * 65])
def test_what_cannot_be_a_tenant_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(COMMENTED)
    with pytest.raises(TenantsInvalid):
        TenantsEditor(path).add_key(name, "use", NOW)
    assert path.read_text() == COMMENTED


def test_what_the_server_would_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text('[tenants.acme]\nshare = { a = ["bolt"] }\n' + key_table("bolt", "b"))
    before = path.read_text()
    with pytest.raises(TenantsInvalid, match="there is no tenant 'bolt'"):
        TenantsEditor(path).remove("bolt")
    path.write_text(key_table("bolt", "b"))
    with pytest.raises(TenantsInvalid, match="none has a key"):
        TenantsEditor(path).remove("bolt")
    assert before.startswith("[tenants.acme]")
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = tmp_path / "tenants.toml"
    path.symlink_to(tmp_path / "real" / "t.toml")
    TenantsEditor(path).add_key("acme", "use", NOW)
    assert path.is_symlink()
    assert [file.name for file in (tmp_path / "real").iterdir()] == ["t.toml"]


def test_two_at_a_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    threads = [
        threading.Thread(target=TenantsEditor(path).add_key, args=(f"tenant-{i}", "use", NOW))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_tenants(path).tenants) == 8
