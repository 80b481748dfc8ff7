import sys
import threading
from collections.abc import Callable

import pytest
from stored_adapters import WEIGHTS, adapter, weights_bytes
from stored_state import MINE, THEIRS, State

from weft.adapters.errors import (
    AdapterCorrupt,
    AdapterInvalid,
    UnknownAdapter,
    VersionConflict,
)
from weft.adapters.registry import DAMAGED, Registry

# ---- names and versions


def test_a_put_makes_a_version_that_can_be_leased(state: State, registry: Registry) -> None:
    version = state.put("a", 1)
    assert (version.name, version.version, version.id) == ("a", 1, "a@1")
    assert version.bytes == len(weights_bytes(1))
    assert version.report == '{"seed": 1}'
    with registry.lease(MINE, "a") as lease:
        assert lease.digest == version.digest
        assert state.store.read(lease.digest).digest == version.digest


def test_replacing_moves_the_name_and_keeps_the_old_version(
    state: State, registry: Registry
) -> None:
    old, new = state.put("a", 1), state.put("a", 2)
    assert new.version == 2
    assert [v.digest for v in registry.versions(MINE, "a")] == [old.digest, new.digest]
    with registry.lease(MINE, "a") as current, registry.lease(MINE, "a", 1) as first:
        assert (current.id, first.id) == ("a@2", "a@1")
        assert first.digest == old.digest


def test_putting_the_current_version_again_changes_nothing(
    state: State, registry: Registry
) -> None:
    first = state.put("a", 1)
    assert state.put("a", 1) == first
    assert registry.lookup(MINE, "a").versions == 1


def test_rollback_goes_one_back_or_to_the_version_given(state: State, registry: Registry) -> None:
    versions = [state.put("a", seed) for seed in (1, 2, 3)]
    assert registry.rollback(MINE, "a") == versions[1]
    assert registry.rollback(MINE, "a") == versions[0]
    with pytest.raises(UnknownAdapter):
        registry.rollback(MINE, "a")
    assert registry.rollback(MINE, "a", 3) == versions[2]
    with pytest.raises(UnknownAdapter):
        registry.rollback(MINE, "a", 4)
    assert state.put("a", 1).version == 4


def test_an_expected_digest_guards_every_change(state: State, registry: Registry) -> None:
    with pytest.raises(VersionConflict) as conflict:
        state.put("a", 1, expected="0" * 64)
    assert conflict.value.current is None
    first = state.put("a", 1)
    second = state.put("a", 2, expected=first.digest)
    for change in (
        lambda: state.put("a", 3, expected=first.digest),
        lambda: registry.rollback(MINE, "a", expected=first.digest),
        lambda: registry.remove(MINE, "a", expected=first.digest),
    ):
        with pytest.raises(VersionConflict) as conflict:
            change()
        assert conflict.value.current == second.digest
    assert registry.lookup(MINE, "a").digest == second.digest
    registry.remove(MINE, "a", expected=second.digest)


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "a/b", "../a", "a@1", "a b", "a\n", "ä", "a" * 65]
)
def test_what_cannot_be_a_name_is_refused(state: State, registry: Registry, name: str) -> None:
    with pytest.raises(AdapterInvalid, match="name"):
        state.put(name, 1)
    with pytest.raises(UnknownAdapter):
        registry.lease(MINE, name)
    assert state.store.digests() == set()


@pytest.mark.parametrize("name", ["a", "A-1", "x.y_z", "9", "a" * 64])
def test_names_may_have_letters_digits_and_three_signs(state: State, name: str) -> None:
    assert state.put(name, 1).name == name


def test_a_removed_name_is_unknown_and_its_numbers_go_on(state: State, registry: Registry) -> None:
    version = state.put("a", 1)
    assert registry.remove(MINE, "a") == (version.digest,)
    for call in (registry.lookup, registry.lease, registry.rollback, registry.remove):
        with pytest.raises(UnknownAdapter):
            call(MINE, "a")
    assert registry.versions(MINE, "a") == ()
    assert state.put("a", 2).version == 2
    with pytest.raises(UnknownAdapter):
        registry.lease(MINE, "a", 1)


def test_listing_is_ordered_and_paged(state: State, registry: Registry) -> None:
    for index in (3, 1, 2):
        state.put(f"n{index}", index)
    assert [adapter.name for adapter in registry.list(MINE)] == ["n1", "n2", "n3"]
    assert [adapter.name for adapter in registry.list(MINE, limit=2)] == ["n1", "n2"]
    assert [adapter.name for adapter in registry.list(MINE, after="n2")] == ["n3"]
    assert [version.name for version in registry.current(MINE, after="n1", limit=1)] == ["n2"]


def test_what_names_point_to_is_their_current_version(state: State, registry: Registry) -> None:
    state.put("a", 1)
    second, other = state.put("a", 2), state.put("b", 3)
    state.put("c", 4, THEIRS)
    assert registry.current(MINE) == (second, other)


def test_lookup_tells_what_a_list_tells(state: State, registry: Registry) -> None:
    state.put("a", 1)
    second = state.put("a", 2)
    assert registry.lookup(MINE, "a").last_used is None
    registry.pin(MINE, "a", True)
    lease = registry.lease(MINE, "a")
    found = registry.lookup(MINE, "a")
    assert (found.digest, found.version, found.versions) == (second.digest, 2, 2)
    assert (found.pinned, found.leases, found.failed) == (True, 1, None)
    assert found.last_used is not None
    assert registry.list(MINE) == (found,)
    lease.release()
    assert registry.lookup(MINE, "a").leases == 0


def test_pins_follow_the_name_and_end_with_it(state: State, registry: Registry) -> None:
    first = state.put("a", 1)
    state.put("b", 2)
    assert registry.pin(MINE, "a", True) == first
    assert registry.pinned() == {first.digest}
    second = state.put("a", 3)
    assert registry.pinned() == {second.digest}
    registry.pin(MINE, "a", False)
    assert registry.pinned() == set()
    registry.pin(MINE, "b", True)
    registry.remove(MINE, "b")
    state.put("b", 2)
    assert registry.pinned() == set()
    with pytest.raises(UnknownAdapter):
        registry.pin(MINE, "c", True)


# ---- tenants


def test_names_are_per_tenant(state: State, registry: Registry) -> None:
    mine, theirs = state.put("a", 1), state.put("a", 2, THEIRS)
    state.put("b", 2, THEIRS)
    assert registry.lookup(MINE, "a").digest == mine.digest
    assert registry.lookup(THEIRS, "a").digest == theirs.digest
    assert [adapter.name for adapter in registry.list(MINE)] == ["a"]
    registry.remove(MINE, "a")
    assert registry.lookup(THEIRS, "a").digest == theirs.digest


def test_a_foreign_name_is_as_unknown_as_none(state: State, registry: Registry) -> None:
    state.put("a", 1, THEIRS)
    for call in (registry.lookup, registry.lease, registry.rollback, registry.remove):
        with pytest.raises(UnknownAdapter) as foreign:
            call(MINE, "a")
        with pytest.raises(UnknownAdapter) as missing:
            call(MINE, "b")
        assert str(foreign.value).replace("'a'", "'b'") == str(missing.value)


def test_another_tenants_use_of_the_same_bytes_does_not_show(
    state: State, registry: Registry
) -> None:
    state.put("a", 1)
    state.put("a", 1, THEIRS)
    with registry.lease(THEIRS, "a"):
        assert registry.lookup(MINE, "a").leases == 0
        assert registry.lookup(MINE, "a").last_used is None


# ---- files live as long as somebody refers to them


def test_a_lease_keeps_the_files_of_a_removed_name(state: State, registry: Registry) -> None:
    digest = state.put("a", 1).digest
    leases = [registry.lease(MINE, "a") for _ in range(2)]
    assert registry.remove(MINE, "a") == (digest,)
    leases[0].release()
    leases[0].release()
    assert state.store.read(digest).digest == digest
    assert registry.stored(digest)
    leases[1].release()
    registry.catch_up()
    assert state.store.digests() == set()
    assert not registry.stored(digest)


def test_files_stay_while_another_name_has_them(state: State, registry: Registry) -> None:
    digest = state.put("a", 1).digest
    state.put("b", 1, THEIRS)
    assert registry.remove(MINE, "a") == ()
    assert registry.stored(digest)
    assert state.store.digests() == {digest}
    assert registry.remove(THEIRS, "b") == (digest,)
    assert state.store.digests() == set()


def test_an_upload_that_is_not_put_leaves_nothing(state: State, registry: Registry) -> None:
    with registry.ingest(MINE, adapter(1)) as upload:
        assert state.store.read(upload.digest)
        assert registry.check() == ()
    assert state.store.digests() == set()
    with pytest.raises(ValueError, match="released"):
        registry.put(MINE, "a", upload, "{}")


def test_a_failed_upload_does_not_take_away_what_others_have(
    state: State, registry: Registry
) -> None:
    version = state.put("a", 1)
    registry.ingest(THEIRS, adapter(1)).release()
    assert state.store.read(version.digest)
    with registry.ingest(THEIRS, adapter(2)), registry.ingest(MINE, adapter(2)) as mine:
        kept = registry.put(MINE, "b", mine, "{}")
    assert state.store.read(kept.digest)


def test_bytes_uploaded_again_while_an_old_lease_runs_stay(
    state: State, registry: Registry
) -> None:
    digest = state.put("a", 1).digest
    lease = registry.lease(MINE, "a")
    registry.remove(MINE, "a")
    state.put("a", 1)
    lease.release()
    assert state.store.read(digest)


def test_many_threads_lease_while_names_are_replaced(state: State, registry: Registry) -> None:
    state.put("a", 0)
    stop = threading.Event()
    seen: set[str] = set()
    errors: list[BaseException] = []

    def use() -> None:
        try:
            while not stop.is_set():
                with registry.lease(MINE, "a") as lease:
                    seen.add(state.store.read(lease.digest).digest)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    digests = {state.put("a", seed).digest for seed in range(1, 12)}
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert seen <= digests | {registry.versions(MINE, "a")[0].digest}
    assert registry.lookup(MINE, "a").leases == 0


def test_a_lease_released_twice_counts_once(state: State, registry: Registry) -> None:
    state.put("a", 1)
    leases = [registry.lease(MINE, "a") for _ in range(2)]
    leases[0].release()
    leases[0].release()
    assert registry.lookup(MINE, "a").leases == 1
    assert registry.check() == ()
    leases[1].release()


def test_whose_names_have_a_digest_is_told(state: State, registry: Registry) -> None:
    digest = state.put("b", 1).digest
    state.put("a", 1, THEIRS)
    state.put("c", 2)
    assert registry.names(digest) == (("mine", "b"), ("theirs", "a"))
    assert registry.names("0" * 64) == ()


# ---- damage, and restarts


def test_a_withdrawn_version_is_refused_until_it_is_put_again(
    state: State, registry: Registry
) -> None:
    version = state.put("a", 1)
    state.put("same", 1, THEIRS)
    path = state.store.folder(version.digest) / WEIGHTS
    path.write_bytes(b"damaged")
    with registry.lease(MINE, "a") as lease:
        registry.withdraw(lease, "its stored files are damaged")
    for ctx, name in ((MINE, "a"), (THEIRS, "same")):
        assert registry.lookup(ctx, name).failed == "its stored files are damaged"
        with pytest.raises(AdapterCorrupt):
            registry.lease(ctx, name)
    state.put("a", 2)
    with pytest.raises(AdapterCorrupt):
        registry.rollback(MINE, "a")
    state.put("b", 1)
    assert registry.rollback(MINE, "a").failed is None
    assert registry.lookup(THEIRS, "same").failed is None
    assert path.read_bytes() == weights_bytes(1)


def test_what_is_found_damaged_is_withdrawn_and_told_once(state: State, registry: Registry) -> None:
    damaged, sound = state.put("a", 1), state.put("b", 2)
    (state.store.folder(damaged.digest) / WEIGHTS).write_bytes(b"damaged")
    told: list[tuple[str, str]] = []
    registry.on_withdraw = lambda hold, reason: told.append((hold.digest, reason))
    with registry.lease(MINE, "a") as one, registry.lease(MINE, "b") as other:
        for hold in (one, other, one):
            registry.examine(hold)
        registry.catch_up()
    assert told == [(damaged.digest, DAMAGED)]
    assert registry.lookup(MINE, "a").failed == DAMAGED
    assert registry.lookup(MINE, "b").failed is sound.failed is None


def test_a_name_that_comes_again_was_not_used_before(state: State, registry: Registry) -> None:
    state.put("a", 1)
    registry.lease(MINE, "a").release()
    assert registry.lookup(MINE, "a").last_used is not None
    registry.remove(MINE, "a")
    state.put("a", 2)
    assert registry.lookup(MINE, "a").last_used is None


def test_what_arrives_can_be_taken_over_without_a_copy(state: State, registry: Registry) -> None:
    assert (
        registry.arrivals().stat().st_dev
        == state.store.folder(state.put("a", 1).digest).stat().st_dev
    )


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, Python's and C's."""
    count = 0

    def watch(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_one_name_and_a_page_of_names_take_no_more_where_there_are_many(registry: Registry) -> None:
    looks: dict[str, Callable[[], object]] = {
        "lookup": lambda: registry.lookup(MINE, "name-0005"),
        "lease": lambda: registry.lease(MINE, "name-0005").release(),
        "page": lambda: registry.list(MINE, after="name-0003", limit=5),
        "current": lambda: registry.current(MINE, after="name-0003", limit=5),
    }
    taken = []
    with registry.ingest(MINE, adapter(1)) as upload:
        for names in (range(10), range(10, 300)):
            for number in names:
                registry.put(MINE, f"name-{number:04}", upload, "{}")
            taken.append({kind: calls(look) for kind, look in looks.items()})
    few, many = taken
    assert few == many
    assert calls(lambda: registry.list(MINE)) > 20 * few["page"]
