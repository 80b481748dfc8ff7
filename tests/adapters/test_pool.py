import random

import pytest
from histories import histories
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from weft.adapters.errors import AdapterTooLarge
from weft.adapters.pool import Placement, Pool, SlotRef


def fill(pool: Pool, digest: str, *sizes: int) -> Placement:
    placement = pool.reserve(digest, sizes)
    assert placement is not None
    pool.commit(digest)
    return placement


def test_least_recently_used_leaves_first() -> None:
    pool = Pool(96, slots=3)
    for digest in "abc":
        fill(pool, digest, 32)
    pool.release(pool.acquire("a"))
    fill(pool, "d", 32)
    assert set(pool.digests) == {"c", "a", "d"}
    assert pool.evictions == 1
    assert (pool.take_evicted(), pool.take_evicted()) == (("b",), ())


def test_a_version_was_used_until_its_last_release() -> None:
    pool = Pool(64, slots=2)
    for digest in "ab":
        fill(pool, digest, 32)
    refs = [pool.acquire(digest) for digest in "ab"]
    for ref in reversed(refs):
        pool.release(ref)
    assert pool.digests == ("b", "a")
    fill(pool, "c", 32)
    assert pool.digests == ("a", "c")


def test_slots_run_out_before_bytes() -> None:
    pool = Pool(1024, slots=1)
    first = fill(pool, "a", 16)
    second = fill(pool, "b", 16)
    assert second.slot == first.slot
    assert second.evicted == (first.slot,)


def test_a_referenced_version_stays_and_nothing_is_evicted_in_vain() -> None:
    pool = Pool(96, slots=4)
    fill(pool, "small", 32)
    fill(pool, "big", 64)
    ref = pool.acquire("big")
    assert pool.reserve("c", [64]) is None
    assert set(pool.digests) == {"small", "big"}
    assert pool.valid(ref)


def test_pinned_and_kept_versions_are_not_evicted() -> None:
    pool = Pool(64, slots=4)
    fill(pool, "a", 32)
    fill(pool, "b", 32)
    pool.pin("a")
    assert pool.reserve("c", [32], keep={"b"}) is None
    assert pool.reserve("c", [32]) is not None
    assert "a" in pool.digests
    pool.unpin("a")
    assert not pool.pinned("a")


def test_a_version_may_be_pinned_before_it_comes() -> None:
    pool = Pool(32, slots=2)
    pool.pin("a")
    fill(pool, "a", 32)
    assert pool.reserve("b", [32]) is None


def test_generation_tells_a_slot_from_its_next_use() -> None:
    pool = Pool(32, slots=1)
    fill(pool, "a", 32)
    ref = pool.acquire("a")
    pool.release(ref)
    fill(pool, "b", 32)
    assert not pool.valid(ref)
    with pytest.raises(RuntimeError, match="not held"):
        pool.release(ref)
    assert pool.valid(pool.acquire("b"))


def test_references_say_how_large_a_version_is_and_where_it_begins() -> None:
    pool = Pool(160, slots=4)
    for digest, *sizes in (("a", 16, 16), ("b", 64), ("c", 16, 16), ("d",)):
        fill(pool, digest, *sizes)
    places = [pool.acquire(digest).place for digest in "abcd"]
    assert places == [(32, 0), (64, 32), (32, 96), (0, 0)]


def test_a_reference_is_given_back_once() -> None:
    pool = Pool(32, slots=1)
    fill(pool, "a", 32)
    ref = pool.acquire("a")
    assert pool.release(ref) == "a"
    with pytest.raises(RuntimeError, match="not held"):
        pool.release(ref)
    with pytest.raises(RuntimeError, match="not held"):
        pool.release(SlotRef(7, 1))


def test_a_version_on_its_way_is_neither_acquired_nor_evicted() -> None:
    pool = Pool(32, slots=2)
    assert pool.reserve("a", [32]) is not None
    with pytest.raises(RuntimeError, match="in place"):
        pool.acquire("a")
    assert pool.reserve("b", [32]) is None
    assert not pool.ready("a")
    pool.drop("a")
    assert pool.used == 0


def test_what_was_on_its_way_is_forgotten_where_it_begins_again() -> None:
    pool = Pool(64, slots=2)
    placement = fill(pool, "a", 32)
    assert pool.reserve("b", [32]) is not None
    free = pool.begin_again()
    assert (pool.digests, pool.used, pool.check()) == (("a",), 32, ())
    assert free == (1 - placement.slot,)
    assert pool.reserve("b", [32]) is not None


def test_a_version_in_use_is_not_dropped() -> None:
    pool = Pool(32, slots=1)
    fill(pool, "a", 32)
    ref = pool.acquire("a")
    with pytest.raises(RuntimeError, match="references"):
        pool.drop("a")
    pool.release(ref)
    pool.drop("a")
    assert pool.digests == ()


def test_what_never_fits_is_refused_with_both_sizes() -> None:
    pool = Pool(64, slots=1)
    with pytest.raises(AdapterTooLarge, match=r"needs 96 bytes .* has 64"):
        pool.reserve("a", [40, 40])


def test_victims_are_the_least_recently_used_that_make_room() -> None:
    pool = Pool(96, slots=4)
    for digest in "abc":
        fill(pool, digest, 32)
    for digest in "bca":
        pool.acquire(digest)
    assert pool.victims_for([32]) == ("b",)
    assert pool.victims_for([48]) == ("b", "c")
    pool.pin("b")
    assert pool.victims_for([32]) == ("c",)


def test_no_victims_where_eviction_is_enough() -> None:
    pool = Pool(64, slots=4)
    fill(pool, "a", 32)
    fill(pool, "b", 32)
    pool.acquire("a")
    assert pool.victims_for([32]) == ()


def test_a_version_on_its_way_is_waited_for_rather_than_refused() -> None:
    pool = Pool(64, slots=1)
    assert pool.reserve("a", [64]) is not None
    assert pool.victims_for([32]) == ()


def test_room_that_pins_deny_is_named() -> None:
    pool = Pool(64, slots=4)
    fill(pool, "a", 48)
    pool.pin("a")
    with pytest.raises(AdapterTooLarge, match="pinned adapters hold 48"):
        pool.victims_for([32])


def lora_sizes(rank: int, layers: int = 4, widths: tuple[int, ...] = (256, 192, 320)) -> list[int]:
    return [2 * rank * width for _ in range(layers) for width in widths for _ in range(2)]


def test_a_version_costs_its_own_bytes_whatever_the_ranks_beside_it() -> None:
    chance = random.Random(0)
    pool = Pool(8 << 20, slots=1024)
    wanted = 0
    for index in range(10_000):
        sizes = lora_sizes(chance.randint(4, 64))
        if pool.reserve(str(index), sizes) is None:
            break
        wanted += sum(sizes)
    assert pool.used <= 1.05 * wanted
    assert wanted >= 0.95 * pool.capacity


def test_churn_of_mixed_ranks_leaves_no_unusable_holes() -> None:
    chance = random.Random(1)
    pool = Pool(28 << 20, slots=1024)
    refs: list[SlotRef] = []
    for index in range(500):
        sizes = lora_sizes(chance.randint(4, 64), layers=28)
        while pool.reserve(str(index), sizes) is None:
            assert pool.used + sum(sizes) > 0.99 * pool.capacity
            pool.release(refs.pop(chance.randrange(len(refs))))
        pool.commit(str(index))
        refs.append(pool.acquire(str(index)))
    assert pool.check() == ()


class PoolModel(RuleBasedStateMachine):
    """The pool beside a dictionary of what must be true of it."""

    CAPACITY = 512
    SLOTS = 4

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(self.CAPACITY, self.SLOTS)
        self.sizes: dict[str, int] = {}
        self.ready: set[str] = set()
        self.refs: list[tuple[str, SlotRef]] = []
        self.pinned: set[str] = set()

    def held(self) -> set[str]:
        return {digest for digest, _ in self.refs}

    @rule(
        digest=st.sampled_from("abcdefgh"),
        sizes=st.lists(st.integers(1, 160), min_size=1, max_size=5),
    )
    def reserve(self, digest: str, sizes: list[int]) -> None:
        if digest in self.sizes:
            return
        size = sum(n + -n % 16 for n in sizes)
        if size > self.CAPACITY:
            with pytest.raises(AdapterTooLarge):
                self.pool.reserve(digest, sizes)
            return
        safe = {d for d in self.sizes if d in self.held() | self.pinned or d not in self.ready}
        placement = self.pool.reserve(digest, sizes)
        after = set(self.pool.digests)
        assert safe <= after
        if placement is None:
            assert after == set(self.sizes)
            return
        assert len(placement.evicted) == len(set(self.sizes) - after)
        assert all(offset % 16 == 0 for offset in placement.offsets)
        self.sizes = {d: n for d, n in self.sizes.items() if d in after} | {digest: size}
        self.ready &= after

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.sizes)))
        self.pool.commit(digest)
        self.ready.add(digest)

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.ready)))
        self.refs.append((digest, self.pool.acquire(digest)))

    @precondition(lambda self: self.refs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        digest, ref = self.refs.pop(data.draw(st.integers(0, len(self.refs) - 1)))
        assert self.pool.release(ref) == digest

    @rule(digest=st.sampled_from("abcdefgh"), pinned=st.booleans())
    def pin(self, digest: str, pinned: bool) -> None:
        if pinned:
            self.pool.pin(digest)
            self.pinned.add(digest)
        else:
            self.pool.unpin(digest)
            self.pinned.discard(digest)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.sizes)))
        if digest in self.held():
            with pytest.raises(RuntimeError):
                self.pool.drop(digest)
            return
        self.pool.drop(digest)
        del self.sizes[digest]
        self.ready.discard(digest)

    @rule(size=st.integers(1, 512))
    def draining_the_victims_makes_room(self, size: int) -> None:
        try:
            victims = set(self.pool.victims_for([size]))
        except AdapterTooLarge:
            return
        assert victims <= self.held() - self.pinned
        if self.ready == set(self.sizes) and "x" not in self.sizes:
            mine = [(d, ref) for d, ref in self.refs if d in victims]
            self.refs = [(d, ref) for d, ref in self.refs if d not in victims]
            for _, ref in mine:
                self.pool.release(ref)
            assert self.pool.reserve("x", [size]) is not None
            self.pool.drop("x")
            after = set(self.pool.digests)
            self.sizes = {d: n for d, n in self.sizes.items() if d in after}
            self.ready &= after

    @invariant()
    def the_pool_agrees(self) -> None:
        assert self.pool.check() == ()
        assert set(self.pool.digests) == set(self.sizes)
        assert self.pool.used == sum(self.sizes.values())
        for digest in self.sizes:
            assert self.pool.refs(digest) == sum(d == digest for d, _ in self.refs)
            assert self.pool.ready(digest) == (digest in self.ready)
        assert all(self.pool.valid(ref) for _, ref in self.refs)
        assert len({ref.slot for _, ref in self.refs}) == len(self.held())


PoolModel.TestCase.settings = histories(100, 40)
TestPoolModel = PoolModel.TestCase
