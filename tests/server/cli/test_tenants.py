"""`weft tenants`: the key alone on the standard output, what is wrong in one line each."""

from pathlib import Path

import pytest
from command_line import run_weft

from weft.server.tenants_file import read_tenants

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Named by the variable that the server reads too."""
    path = tmp_path / "tenants.toml"
    monkeypatch.setenv("WEFT_TENANTS", str(path))
    return path


def test_a_life_of_keys(file: Path, capsys: Capture) -> None:
    added = run_weft(capsys, "tenants", "add", "acme", "--role", "manage")
    assert (added.code, added.err) == (0, "acme: this is the only time that the key is shown\n")
    assert added.out.startswith("weft-")
    assert added.out.count("\n") == 1
    rotated = run_weft(capsys, "tenants", "rotate", "acme", "--grace", "0.5")
    assert rotated.out != added.out
    listed = run_weft(capsys, "tenants", "list").out.splitlines()
    assert listed[0].split() == [
        "tenant",
        "key",
        "role",
        "created",
        "expires",
        "default",
        "adapter",
    ]
    old, new = (key.id for key in read_tenants(file).tenants["acme"].keys)
    assert [line.split()[:3] for line in listed[1:]] == [
        ["acme", old, "manage"],
        ["acme", new, "manage"],
    ]
    assert run_weft(capsys, "tenants", "remove", "acme", "--key", old).out == (
        f"acme: key {old} removed\n"
    )
    assert run_weft(capsys, "tenants", "add", "bolt").code == 0
    assert run_weft(capsys, "tenants", "remove", "acme").out == "acme: removed\n"
    shown = run_weft(capsys, "tenants", "list").out
    assert "bolt" in shown
    assert "acme" not in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("add", "a/b"), "tenants.a/b: should match"),
        (("add", "acme", "--role", "boss"), "Invalid value for '--role'"),
        (("rotate", "acme"), "there is no tenant 'acme'"),
        (("remove", "acme"), "there is no tenant 'acme'"),
        (("list",), "No such file or directory"),
        (("rotate", "acme", "--grace", "-1"), "Invalid value for '--grace'"),
    ],
)
def test_what_is_wrong_is_one_line(
    file: Path, capsys: Capture, arguments: tuple[str, ...], line: str
) -> None:
    ended = run_weft(capsys, "tenants", *arguments)
    assert ended.code == 2
    (told,) = ended.lines
    assert line in told
    assert not file.exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "none" / "tenants.toml"
    ended = run_weft(capsys, "tenants", "add", "acme", "--tenants", path)
    assert ended.code == 1
    assert "No such file or directory" in ended.err
