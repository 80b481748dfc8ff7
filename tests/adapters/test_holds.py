from weft.adapters.holds import Hold, Holds, Lease
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import Version

CTX = TenantContext("t")


def test_holds_are_counted_by_digest_and_removed_once() -> None:
    holds = Holds()
    first, second = Hold(CTX, "a", holds.remove), Hold(CTX, "a", holds.remove)
    holds.add(first)
    holds.add(second)
    assert holds.remove(first)
    assert not holds.remove(first)
    assert "a" in holds
    with second:
        assert list(holds) == [second]
    assert "a" not in holds
    assert list(holds) == []


def test_a_lease_names_its_version() -> None:
    version = Version("support", 3, "d" * 64, 8, 5.0, "{}", None)
    lease = Lease(CTX, version, print)
    assert (lease.id, lease.digest, lease.report) == ("support@3", "d" * 64, "{}")
    assert lease.created == 5.0
