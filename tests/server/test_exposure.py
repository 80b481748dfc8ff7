"""Settings about who gets in: what contradicts itself, and what deserves a warning."""

from pathlib import Path

import pytest
from tenants_files import tenants_file

from weft.server.exposure import check_exposure, is_open_to_all
from weft.server.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("host", "more", "open_to_all"),
    [
        ("127.0.0.1", {}, False),
        ("localhost", {}, False),
        ("::1", {}, False),
        ("127.8.8.8", {}, False),
        ("0.0.0.0", {}, True),
        ("::", {}, True),
        ("10.0.0.1", {}, True),
        ("example.org", {}, True),
        ("0.0.0.0", {"api_key": "k"}, False),
        ("0.0.0.0", {"tenants": Path("t.toml")}, False),
    ],
)
def test_who_listens_elsewhere_without_a_key_is_open(
    host: str, more: dict[str, object], open_to_all: bool
) -> None:
    assert is_open_to_all(Settings(host=host, **more)) == open_to_all  # type: ignore[arg-type]


def test_each_contradiction_and_each_fault_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.acme]\nweight = 0\nname = 1\n")
    with pytest.raises(SettingsError) as caught:
        check_exposure(Settings(api_key="k", tenants=path))  # type: ignore[arg-type]
    assert [line.split(": ")[0] for line in caught.value.lines] == [
        "--api-key",
        "--tenants",
        "--tenants",
    ]
    assert "tenants.acme.weight" in caught.value.lines[1]


def test_a_proxy_is_trusted_by_its_key_or_by_its_machine(tmp_path: Path) -> None:
    asks = {"trust_proxy_header": "X-Tenant"}
    check_exposure(Settings(**asks))  # type: ignore[arg-type]
    check_exposure(Settings(host="0.0.0.0", api_key="k", **asks))  # type: ignore[arg-type]
    path = tenants_file(tmp_path, acme="a")
    check_exposure(Settings(host="0.0.0.0", tenants=path, **asks))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="--trust-proxy-header"):
        check_exposure(Settings(host="0.0.0.0", **asks))  # type: ignore[arg-type]
