"""Keys to callers, what a proxy may name, and whose adapters a tenant may use."""

import hmac
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from weft.adapters.tenancy import NOBODY, TenantContext
from weft.server.policy import DEFAULT_TENANT, Caller, Key, Policy, Role, TenantPolicy
from weft.server.selection import AdapterName

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ACME, BOLT, CROW = (TenantContext(name) for name in ("acme", "bolt", "crow"))


def key(text: str, role: Role = Role.USE, **times: datetime) -> Key:
    return Key(sha256(text.encode()).digest(), role, **times)


def policy() -> Policy:
    tenants = (
        TenantPolicy(ACME, (key("a", Role.ADMIN), key("a2")), share={"legal": frozenset({"bolt"})}),
        TenantPolicy(BOLT, (key("b", Role.MANAGE),), share={"faq": frozenset({"*"})}),
        TenantPolicy(CROW),
    )
    return Policy({tenant.context.id: tenant for tenant in tenants})


def test_without_keys_everybody_is_the_default_tenant() -> None:
    for given in (None, "", "whatever"):
        caller = Policy.single(None).authenticate(given, NOW)
        assert caller == Caller(DEFAULT_TENANT, Role.ADMIN)


def test_one_key_opens_for_the_default_tenant() -> None:
    single = Policy.single("k")
    caller = single.authenticate("k", NOW)
    assert caller is not None
    assert (caller.tenant, caller.role) == (DEFAULT_TENANT, Role.ADMIN)
    for wrong in (None, "", "kk", "K", sha256(b"k").hexdigest()):
        assert single.authenticate(wrong, NOW) is None


def test_each_key_has_its_tenant_and_role() -> None:
    found = {text: policy().authenticate(text, NOW) for text in ("a", "a2", "b", "c", "")}
    assert {text: caller and (caller.tenant, caller.role) for text, caller in found.items()} == {
        "a": (ACME, Role.ADMIN),
        "a2": (ACME, Role.USE),
        "b": (BOLT, Role.MANAGE),
        "c": None,
        "": None,
    }
    assert found["a"] is not None
    assert found["a"].key_id == sha256(b"a").hexdigest()[:12]


def test_keys_known_and_unknown_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[int, int]] = []

    def refuse(known: bytes, given: bytes) -> bool:
        compared.append((len(known), len(given)))
        return False

    monkeypatch.setattr(hmac, "compare_digest", refuse)
    texts = ("a", "a2", "c", "c" * 1000, "")
    assert [policy().authenticate(text, NOW) for text in texts] == [None] * len(texts)
    assert compared == [(32, 32)] * len(texts)


def test_a_list_of_tenants_without_a_key_lets_nobody_in() -> None:
    assert Policy({"crow": TenantPolicy(CROW)}).authenticate(None, NOW) is None


def test_an_expired_key_opens_nothing() -> None:
    old = Policy({"acme": TenantPolicy(ACME, (key("a", expires=NOW),))})
    assert old.authenticate("a", NOW) is None
    assert old.authenticate("a", NOW - timedelta(seconds=1)) is not None


@pytest.mark.parametrize(
    ("text", "header", "expected"),
    [
        ("a", "acme", (ACME, Role.MANAGE)),
        ("a", "crow", (CROW, Role.MANAGE)),
        ("a", "nobody", None),
        ("a", "", None),
        ("a2", "acme", (ACME, Role.USE)),
        ("a2", "bolt", None),
        ("b", "bolt", (BOLT, Role.MANAGE)),
        ("b", "acme", None),
        ("b", "nobody", None),
    ],
)
def test_a_proxys_header_only_narrows(
    text: str, header: str, expected: tuple[TenantContext, Role] | None
) -> None:
    caller = policy().authenticate(text, NOW)
    assert caller is not None
    narrowed = policy().narrowed(caller, header)
    assert (narrowed and (narrowed.tenant, narrowed.role)) == expected


def test_at_an_open_server_a_proxy_names_whom_it_knows() -> None:
    single = Policy.single("k")
    caller = single.authenticate("k", NOW)
    assert caller is not None
    for header, tenant in (("acme", ACME), ("default", DEFAULT_TENANT)):
        narrowed = single.narrowed(caller, header)
        assert narrowed is not None
        assert (narrowed.tenant, narrowed.role) == (tenant, Role.MANAGE)
    for wrong in ("", "a/b", "_probe", "x" * 65):
        assert single.narrowed(caller, wrong) is None


@pytest.mark.parametrize(
    ("tenant", "words", "owner"),
    [
        (ACME, (None, "legal"), ACME),
        (ACME, ("acme", "legal"), ACME),
        (BOLT, ("acme", "legal"), ACME),
        (BOLT.background, ("acme", "legal"), ACME),
        (CROW, ("acme", "legal"), NOBODY),
        (BOLT, ("acme", "other"), NOBODY),
        (CROW, ("bolt", "faq"), BOLT),
        (ACME, ("bolt", "faq"), BOLT),
        (CROW, ("nobody", "faq"), NOBODY),
        (CROW, (None, "legal"), CROW),
    ],
)
def test_whose_names_a_word_is_looked_up_in(
    tenant: TenantContext, words: tuple[str | None, str], owner: TenantContext
) -> None:
    assert policy().owner(tenant, AdapterName(*words)) == owner


def test_what_others_share_with_a_tenant() -> None:
    shared = {t.id: set(policy().shared_with(t)) for t in (ACME, BOLT, CROW)}
    assert shared == {
        "acme": {(BOLT, "faq")},
        "bolt": {(ACME, "legal")},
        "crow": {(BOLT, "faq")},
    }
