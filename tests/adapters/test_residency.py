import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from plans import assert_installed, is_empty, plan
from residency_bench import ALL, SIZE, WAIT, Bench

from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, AdapterTooLarge
from weft.adapters.loader import Loader
from weft.adapters.packed import Packed
from weft.adapters.presence import Presence
from weft.adapters.residency import PLACES, Residency, ResidentState
from weft.adapters.tenancy import TenantContext


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bench.residency.check() == ()
    bench.desk.close()


def test_a_version_comes_from_disk_to_the_device(bench: Bench) -> None:
    assert bench.where("a") is Presence.LOADING
    bench.residency.pump(ALL)
    assert bench.where("a") is Presence.LOADING
    bench.desk.serve()
    assert bench.where("a") is Presence.WAITING
    bench.residency.pump(ALL)
    assert bench.where("a") is Presence.DEVICE
    ref = bench.residency.acquire("a")
    assert_installed(bench.tables, ref.slot, plan("a"))


def test_copying_is_spread_over_steps_within_the_budget(bench: Bench) -> None:
    bench.residency.ensure("a")
    bench.residency.pump(1)
    bench.desk.serve()
    steps = 0
    while bench.where("a") is not Presence.DEVICE:
        bench.residency.pump(SIZE // 10)
        steps += 1
    assert steps in (10, 11)


def test_small_versions_share_a_steps_budget(bench: Bench) -> None:
    bench.bring("a", "b")
    assert bench.where("a") is bench.where("b") is Presence.DEVICE


SLOW, QUICK = (TenantContext(f"slow-{number}") for number in (1, 2)), TenantContext("quick")


def test_tenants_whose_loads_take_for_ever_leave_places_for_others() -> None:
    bench = Bench(threads=PLACES)
    for tenant in SLOW:
        for number in range(20):
            bench.residency.ensure(f"{tenant.id}-{number}", tenant)
    bench.residency.pump(ALL)
    requested = list(bench.desk.requested)
    bench.residency.ensure("first", QUICK)
    bench.residency.pump(ALL)
    assert bench.desk.requested == [*requested, "first"]
    for _ in bench.desk.requested:
        assert bench.desk.begun.acquire(timeout=WAIT)
    # Nobody's loads that were given up make room for more of the same while they still run.
    for digest in requested:
        bench.residency.forget(digest)
    for _ in range(3):
        bench.residency.pump(ALL)
    assert bench.desk.requested == [*requested, "first"]
    bench.desk.serve()
    bench.residency.pump(ALL)
    assert len(bench.desk.requested) > len(requested) + 1
    bench.desk.close()


def test_what_nobody_waits_for_is_not_loaded_unless_it_was_prefetched(bench: Bench) -> None:
    for digest in "abc":
        bench.residency.ensure(digest)
    bench.residency.prefetch("d")
    bench.residency.ensure("d")
    bench.residency.pump(ALL)
    for digest in "bcdx":
        bench.residency.give_up(digest)
    bench.desk.serve()
    bench.residency.pump(ALL)
    assert bench.desk.reads == ["a", "d"]
    assert [state.digest for state in bench.residency.states() if state.tier == "device"] == [
        "a",
        "d",
    ]
    assert not bench.residency.expecting
    bench.bring("b")
    assert bench.where("b") is Presence.DEVICE


class FailingSoon:
    """Stands in front of the tables; the call that `left` counts down to is out of memory."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for table in bench.tables.values():
            for verb in ("set", "clear"):
                honest = getattr(table.low_rank, verb)
                monkeypatch.setattr(table.low_rank, verb, self._before(honest))

    def _before(self, honest: Callable[..., None]) -> Callable[..., None]:
        def call(*args: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("injected")
            honest(*args)

        return call


@pytest.mark.parametrize("failing", range(1, 5))
def test_memory_that_runs_out_while_a_version_is_put_in_place_fails_that_version(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    soon = FailingSoon(bench, monkeypatch)
    soon.left = failing  # a set begins with a clear of its own, in both modules
    bench.bring("a")
    assert bench.where("a") is Presence.FAILED
    assert isinstance(bench.residency.error("a"), MemoryError)
    assert bench.pool.used == 0
    assert is_empty(bench.tables, 0)
    bench.residency.pump(ALL)
    bench.bring("a")
    assert_installed(bench.tables, bench.residency.acquire("a").slot, plan("a"))


def test_a_slot_that_could_not_be_cleared_is_clear_before_it_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(room=1, slots=1)
    soon = FailingSoon(bench, monkeypatch)
    bench.bring("a")
    bench.desk.ranks["b"] = 2
    bench.desk.modules["b"] = ("up",)
    soon.left = 2  # of the two modules that "a" leaves, the second is not cleared
    bench.bring("b")
    ref = bench.residency.acquire("b")
    assert soon.left <= 0
    assert_installed(bench.tables, ref.slot, plan("b", 2, ("up",)))
    assert bench.residency.check() == ()
    bench.desk.close()


def test_room_is_given_in_the_order_of_asking(bench: Bench) -> None:
    bench.bring("a", "b", "c")
    refs = [bench.residency.acquire("a"), bench.residency.acquire("b")]
    assert bench.where("c") is Presence.WAITING
    bench.residency.ensure("d")
    bench.residency.pump(ALL)
    bench.desk.serve()
    bench.residency.release(refs[1])
    bench.residency.pump(ALL)
    assert bench.where("c") is Presence.DEVICE
    assert bench.where("d") is Presence.WAITING
    bench.residency.release(refs[0])


def test_a_version_that_comes_back_is_not_read_again(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.residency.pump(ALL)
    bench.bring("c")
    assert bench.where("a") is Presence.LOADING
    bench.residency.pump(ALL)
    bench.residency.pump(ALL)
    assert bench.where("a") is Presence.DEVICE
    assert bench.desk.reads == ["a", "b", "c"]
    assert bench.residency.evictions == 2
    assert bench.residency.loads == 3


def test_a_version_that_just_came_is_not_evicted_before_it_is_used(bench: Bench) -> None:
    bench.bring("a", "b", "c")
    for _ in range(3):
        assert bench.where("a") is bench.where("b") is Presence.DEVICE
        assert bench.where("c") is Presence.WAITING
        bench.residency.pump(ALL)


def test_draining_the_victims_lets_a_waiting_version_in(bench: Bench) -> None:
    bench.bring("a", "b")
    refs = {digest: bench.residency.acquire(digest) for digest in "ab"}
    bench.bring("c")
    assert bench.where("c") is Presence.WAITING
    assert bench.residency.victims_for("c") == ("a",)
    bench.residency.release(refs["a"])
    assert bench.where("a") is Presence.DEVICE
    bench.residency.pump(ALL)
    assert bench.where("c") is Presence.DEVICE
    assert bench.residency.valid(refs["b"])


def test_drained_room_is_not_given_to_a_smaller_one_that_asked_first() -> None:
    bench = Bench(room=4)
    bench.desk.ranks = {"big": 16}
    bench.bring("a", "b", "c", "d")
    refs = {digest: bench.residency.acquire(digest) for digest in "abcd"}
    bench.bring("e", "big")
    assert bench.residency.victims_for("big") == ("a", "b", "c", "d")
    assert bench.residency.victims_for("e") == ()
    for ref in refs.values():
        bench.residency.release(ref)
    bench.where("e")
    bench.residency.pump(ALL)
    assert bench.where("big") is Presence.DEVICE
    assert bench.where("e") is Presence.WAITING
    bench.desk.close()


def test_a_claim_ends_with_the_step_if_nobody_drains(bench: Bench) -> None:
    bench.desk.ranks = {"big": 8}
    bench.bring("a", "b")
    refs = {digest: bench.residency.acquire(digest) for digest in "ab"}
    bench.bring("big", "c")
    bench.residency.victims_for("big")
    bench.residency.release(refs["a"])
    bench.residency.pump(ALL)
    assert bench.where("c") is Presence.WAITING
    bench.residency.pump(ALL)
    assert bench.where("c") is Presence.DEVICE


def test_nothing_is_drained_for_what_is_not_loaded(bench: Bench) -> None:
    bench.bring("a", "b")
    for digest in "ab":
        bench.residency.acquire(digest)
    assert bench.residency.victims_for("c") == ()
    bench.residency.ensure("c")
    bench.residency.pump(ALL)
    assert bench.residency.victims_for("c") == ()


@pytest.mark.parametrize("error", [AdapterInvalid("up", "is bad"), AdapterCorrupt("a")])
def test_a_version_at_fault_fails_until_it_is_loaded_anew(bench: Bench, error: Exception) -> None:
    bench.desk.errors["a"] = error
    bench.bring("a")
    for _ in range(3):
        assert bench.where("a") is Presence.FAILED
        assert bench.residency.error("a") is error
        bench.residency.pump(ALL)
    del bench.desk.errors["a"]
    bench.residency.prefetch("a")
    bench.bring()
    assert bench.where("a") is Presence.DEVICE


def test_a_passing_failure_lasts_one_step(bench: Bench) -> None:
    bench.desk.errors["a"] = OSError(5, "input/output error")
    bench.bring("a")
    assert bench.where("a") is bench.where("a") is Presence.FAILED
    del bench.desk.errors["a"]
    bench.residency.pump(ALL)
    bench.bring("a")
    assert bench.where("a") is Presence.DEVICE


def test_a_remembered_failure_holds_no_tensors(bench: Bench) -> None:
    lost: list[weakref.ref[torch.Tensor]] = []

    def read(digest: str, tenant: TenantContext) -> Packed:
        tensor = torch.zeros(1000)
        lost.append(weakref.ref(tensor))
        raise AdapterInvalid(digest, f"has {tensor.numel()} values too many")

    loader = Loader(read, capacity=0)
    residency = Residency(bench.pool, bench.arena, loader)
    residency.ensure("a")
    residency.pump(ALL)
    loader.close()
    residency.pump(ALL)
    assert residency.ensure("a") is Presence.FAILED
    gc.collect()
    assert lost[0]() is None


def test_a_version_larger_than_the_pool_fails(bench: Bench) -> None:
    bench.desk.ranks["a"] = 64
    bench.bring("a")
    assert bench.where("a") is Presence.FAILED
    assert isinstance(bench.residency.error("a"), AdapterTooLarge)


def test_what_pins_leave_no_room_for_fails_until_one_is_unpinned(bench: Bench) -> None:
    for digest in "ab":
        bench.residency.pin(digest)
    bench.bring("c")
    assert bench.where("c") is Presence.WAITING
    assert bench.residency.victims_for("c") == ()
    assert bench.where("c") is Presence.FAILED
    assert "pinned" in str(bench.residency.error("c"))
    bench.residency.unpin("a")
    bench.bring("c")
    assert bench.where("c") is Presence.DEVICE


def test_a_module_unknown_to_the_base_fails_and_takes_no_room(bench: Bench) -> None:
    del bench.tables["down"]
    bench.bring("a")
    assert bench.where("a") is Presence.FAILED
    assert bench.pool.used == 0


def test_forgetting_waits_for_the_last_reference(bench: Bench) -> None:
    bench.bring("a")
    refs = [bench.residency.acquire("a") for _ in range(2)]
    bench.residency.forget("a")
    bench.residency.release(refs[0])
    assert bench.residency.valid(refs[1])
    assert bench.residency.held("a")
    bench.residency.release(refs[1])
    assert not bench.residency.held("a")
    assert bench.residency.states() == ()
    assert is_empty(bench.tables, refs[0].slot)


def test_forgetting_stops_a_version_on_its_way(bench: Bench) -> None:
    for pumps in range(3):
        bench.residency.ensure("a")
        for _ in range(pumps):
            bench.residency.pump(16)
            bench.desk.serve()
        bench.residency.forget("a")
        assert not bench.residency.held("a")
        assert bench.pool.used == 0
        bench.desk.serve()
        bench.residency.pump(ALL)
        assert not bench.residency.held("a")


def test_a_forgotten_version_that_is_prefetched_stays(bench: Bench) -> None:
    bench.bring("a")
    ref = bench.residency.acquire("a")
    bench.residency.forget("a")
    bench.residency.prefetch("a")
    bench.residency.release(ref)
    assert bench.where("a") is Presence.DEVICE


def test_only_so_many_versions_are_in_host_memory_for_want_of_room(bench: Bench) -> None:
    bench.bring("a", "b")
    refs = [bench.residency.acquire(digest) for digest in "ab"]
    wanted = [f"n{index}" for index in range(30)]
    for _ in range(5):
        bench.bring(*wanted)
    assert len(bench.desk.reads) == 2 + PLACES // 2  # all are one tenant's
    for digest in wanted:
        bench.residency.forget(digest)
    for ref in refs:
        bench.residency.release(ref)


def test_a_version_that_nobody_asks_for_any_more_makes_place_in_the_queue(bench: Bench) -> None:
    bench.bring("a", "b")
    refs = [bench.residency.acquire(digest) for digest in "ab"]
    bench.bring(*[f"n{index}" for index in range(8)])
    for _ in range(30):
        bench.bring("late")
    assert bench.where("late") is Presence.WAITING
    assert bench.residency.expecting
    for ref in refs:
        bench.residency.release(ref)


def test_a_version_is_expected_until_it_is_here_or_given_up(bench: Bench) -> None:
    assert not bench.residency.expecting
    bench.residency.prefetch("a")
    bench.residency.pump(ALL)
    assert bench.residency.expecting
    bench.desk.serve()
    bench.residency.pump(16)
    assert bench.residency.expecting
    bench.residency.pump(ALL)
    assert not bench.residency.expecting
    bench.desk.errors["b"] = AdapterInvalid("up", "is bad")
    bench.bring("b")
    assert not bench.residency.expecting


def test_states_name_the_nearest_tier(bench: Bench) -> None:
    bench.bring("a", "b")
    bench.residency.pump(ALL)
    bench.bring("c")
    ref = bench.residency.acquire("c")
    bench.residency.pin("b")
    assert set(bench.residency.states()) == {
        ResidentState("a", "host", 0, SIZE, pinned=False),
        ResidentState("b", "device", 0, SIZE, pinned=True),
        ResidentState("c", "device", 1, SIZE, pinned=False),
    }
    bench.residency.release(ref)
