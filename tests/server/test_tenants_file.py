"""Tenants files: what they say, and how each fault is told."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenants_files import hashed, key_table

from weft.adapters.tenancy import TenantContext
from weft.server.policy import Key, Quotas, Role
from weft.server.tenants_file import TenantsInvalid, parse_tenants, read_tenants

KEY = key_table("acme", "a")
WHOLE = f"""
[defaults]
weight = 1.5
quotas = {{ requests_per_minute = 600, kv_pages = 8 }}

[tenants.acme]
default_adapter = "support@2"
weight = 2
share = {{ legal = ["bolt"], faq = ["*"] }}
quotas = {{ tokens_per_minute = 200_000, adapter_bytes = "10GiB", kv_pages = 512 }}

[[tenants.acme.keys]]
sha256 = "{hashed("a")}"
role = "admin"
created = 2029-01-01T00:00:00Z
expires = 2031-01-01T00:00:00+01:00

[[tenants.acme.keys]]
sha256 = "{hashed("a2")}"

[tenants.bolt]
default_adapter = "acme/legal"
"""


def test_a_file_is_read_whole() -> None:
    policy = parse_tenants(WHOLE.encode(), "t")
    acme, bolt = policy.tenants.values()
    assert acme.context == TenantContext("acme", 2.0, 512)
    assert acme.default_adapter == "support@2"
    assert acme.share == {"legal": {"bolt"}, "faq": {"*"}}
    assert acme.quotas == Quotas(
        requests_per_minute=600, tokens_per_minute=200_000, adapter_bytes=10 << 30, kv_pages=512
    )
    first, second = acme.keys
    assert first.created == datetime(2029, 1, 1, tzinfo=UTC)
    assert (first.role, first.expired(datetime(2031, 1, 1, tzinfo=UTC))) == (Role.ADMIN, True)
    assert second == Key(bytes.fromhex(hashed("a2")), Role.USE)
    assert bolt.context == TenantContext("bolt", 1.5, 8)
    assert bolt.quotas == Quotas(requests_per_minute=600, kv_pages=8)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("[acme", ["t: "]),
        ("", ["t: tenants: none has a key"]),
        ("[tenants.acme]", ["t: tenants: none has a key"]),
        ("[acme]", ["t: acme: there is no such field"]),
        ("tenants = 1", ["t: tenants: should be a valid dictionary, not 1"]),
        ("[tenants.acme]\nkeys = 1", ["t: tenants.acme.keys: should be a valid list, not 1"]),
        ("[tenants.acme]\nrole = 'use'", ["t: tenants.acme.role: there is no such field"]),
        ("[tenants.acme]\nweight = 0", ["t: tenants.acme.weight: should be greater than 0, not 0"]),
        ("[tenants.acme]\nweight = nan", ["t: tenants.acme.weight: "]),
        ("[tenants.acme]\nweight = true", ["t: tenants.acme.weight: "]),
        ("[tenants.'a/b']", ["t: tenants.a/b: should match "]),
        ("[tenants._probe]", ["t: tenants._probe: should match "]),
        (
            "[tenants.acme.quotas]\nadapters = '3'\nkv_pages = 0\nrequests = 1",
            [
                "t: tenants.acme.quotas.adapters: should be a valid integer, not '3'",
                "t: tenants.acme.quotas.kv_pages: should be greater than or equal to 1, not 0",
                "t: tenants.acme.quotas.requests: there is no such field",
            ],
        ),
        (
            "[tenants.acme.quotas]\nadapter_bytes = '3 potatoes'",
            ["t: tenants.acme.quotas.adapter_bytes: should be a size like 10GiB"],
        ),
        (
            "[tenants.acme]\ndefault_adapter = 'a b'",
            ["t: tenants.acme.default_adapter: should name an adapter"],
        ),
        ("[tenants.acme]\nshare = { 'a/b' = [] }", ["t: tenants.acme.share.a/b: should match "]),
        (
            f"[tenants.acme]\nshare = {{ a = ['bolt', '*'] }}\n{KEY}",
            ["t: tenants.acme.share.a: there is no tenant 'bolt'"],
        ),
        (
            f"[tenants.acme]\ndefault_adapter = 'x/y'\n{KEY}",
            ["t: tenants.acme.default_adapter: x/y is not shared with acme"],
        ),
        (
            KEY + key_table("bolt", "a"),
            ["t: tenants.bolt.keys[0].sha256: is the key of tenants.acme.keys[0] too"],
        ),
        (
            "[[tenants.acme.keys]]\nrole = 'boss'\nexpires = 2030-01-01T00:00:00",
            [
                "t: tenants.acme.keys[0].sha256: field required",
                "t: tenants.acme.keys[0].role: should be 'use', 'manage' or 'admin', not 'boss'",
                "t: tenants.acme.keys[0].expires: should have timezone info",
            ],
        ),
    ],
)
def test_each_fault_is_one_line_that_names_tenant_and_field(content: str, lines: list[str]) -> None:
    with pytest.raises(TenantsInvalid) as caught:
        parse_tenants(content.encode(), "t")
    found = caught.value.lines
    assert len(found) == len(lines)
    for line, expected in zip(found, lines, strict=True):
        assert line.startswith(expected), line


def test_a_key_in_the_place_of_its_hash_is_not_repeated() -> None:
    content = "[[tenants.acme.keys]]\nsha256 = 'weft-secret'"
    with pytest.raises(TenantsInvalid) as caught:
        parse_tenants(content.encode(), "t")
    assert "weft-secret" not in str(caught.value)


@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_whatever_a_file_holds_its_refusal_is_lines(data: bytes) -> None:
    with pytest.raises(TenantsInvalid) as caught:  # no text this short holds a key's hash
        parse_tenants(data, "t")
    assert caught.value.lines
    assert all(line.startswith("t: ") and "\n" not in line for line in caught.value.lines)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(TenantsInvalid, match="No such file"):
        read_tenants(tmp_path / "none.toml")


def test_the_readmes_example_is_a_file_that_can_be_used() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    example = text[text.index("### Tenants") :].split("```toml\n")[1].split("```")[0]
    policy = parse_tenants((example + KEY + key_table("bolt", "b")).encode(), "README.md")
    acme, bolt = policy.tenants.values()
    assert None not in asdict(acme.quotas).values()
    assert bolt.quotas == Quotas(requests_per_minute=60)
