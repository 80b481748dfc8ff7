import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from plans import plan, plan_bytes

from weft.adapters.errors import AdapterInvalid
from weft.adapters.loader import HostTier, Loader
from weft.adapters.packed import Packed, pack
from weft.adapters.tenancy import TenantContext

WAIT = 10.0


class Disk:
    """Serves plans when it is let to, and counts how often it was asked."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.started = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self.errors: dict[str, Exception] = {}

    def load(self, digest: str, tenant: TenantContext) -> Packed:
        self.reads[digest] += 1
        self.started.release()
        assert self.open.wait(WAIT)
        if digest in self.errors:
            raise self.errors[digest]
        return pack(plan(digest), torch.float32, 16, pin_memory=False)


@contextmanager
def loader(disk: Disk, capacity: int = 1 << 20, **more: Any) -> Iterator[Loader]:
    loader = Loader(disk.load, capacity=capacity, **more)
    try:
        yield loader
    finally:
        disk.open.set()
        loader.close()


def test_a_request_does_not_wait_for_the_disk() -> None:
    disk = Disk()
    disk.open.clear()
    with loader(disk) as it:
        future = it.request("a")
        assert not future.done()
        disk.open.set()
        assert future.result(WAIT).plan.digest == "a"


def test_requests_for_one_version_share_one_read() -> None:
    disk = Disk()
    disk.open.clear()
    with loader(disk) as it:
        futures = [it.request("a") for _ in range(5)]
        disk.open.set()
        assert len({id(future.result(WAIT)) for future in futures}) == 1
        assert it.request("a").result(0) is futures[0].result()
    assert disk.reads == {"a": 1}
    assert it.loads == 1


def test_the_host_keeps_the_latest_within_its_bytes() -> None:
    disk = Disk()
    with loader(disk, capacity=2 * plan_bytes()) as it:
        for digest in "abac":
            it.request(digest).result(WAIT)
        assert it.sizes() == {"a": plan_bytes(), "c": plan_bytes()}
        it.request("b").result(WAIT)
    assert disk.reads == {"a": 1, "b": 2, "c": 1}


def test_a_version_larger_than_the_host_tier_is_loaded_but_not_kept() -> None:
    disk = Disk()
    with loader(disk, capacity=plan_bytes() - 1) as it:
        assert it.request("a").result(WAIT).nbytes == plan_bytes()
        assert it.sizes() == {}


def test_errors_reach_whoever_asked_and_are_not_kept() -> None:
    disk = Disk()
    disk.errors["a"] = AdapterInvalid("up", "is bad")
    with loader(disk) as it:
        with pytest.raises(AdapterInvalid, match="is bad"):
            it.request("a").result(WAIT)
        del disk.errors["a"]
        assert it.request("a").result(WAIT).plan.digest == "a"
        assert it.loads == 2


def test_a_failing_load_does_not_end_the_thread() -> None:
    disk = Disk()
    disk.errors["a"] = MemoryError()
    with loader(disk) as it:
        with pytest.raises(MemoryError):
            it.request("a").result(WAIT)
        it.request("b").result(WAIT)


def test_what_is_forgotten_is_read_again() -> None:
    disk = Disk()
    with loader(disk) as it:
        it.request("a").result(WAIT)
        it.forget("a")
        assert it.sizes() == {}
        it.request("a").result(WAIT)
    assert disk.reads["a"] == 2


def test_what_is_forgotten_while_it_loads_is_not_kept() -> None:
    disk = Disk()
    disk.open.clear()
    with loader(disk) as it:
        first, waiting = it.request("a"), it.request("b")
        assert disk.started.acquire(timeout=WAIT)
        it.forget("a")
        it.forget("b")
        disk.open.set()
        first.result(WAIT)
        it.request("c").result(WAIT)
        assert waiting.cancelled()
        assert it.sizes().keys() == {"c"}
    assert "b" not in disk.reads


def test_a_load_that_nobody_waits_for_is_given_up_and_can_be_asked_for_again() -> None:
    disk = Disk()
    disk.open.clear()
    told: list[str] = []
    with loader(disk, give_up=told.append) as it:
        running, waiting = it.request("a"), it.request("b")
        assert disk.started.acquire(timeout=WAIT)
        for digest in "abc":
            it.give_up(digest)
        assert told == ["a"]
        assert waiting.cancelled()
        again = it.request("a")
        assert again is not running
        disk.open.set()
        assert again.result(WAIT).plan.digest == "a"
        it.give_up("a")
        assert it.sizes().keys() == {"a"}
    assert told == ["a"]
    assert "b" not in disk.reads


def test_plans_are_let_go_of_by_a_thread_of_the_loader() -> None:
    ends: list[str] = []
    with loader(Disk()) as it:
        held = [it.request("a").result(WAIT)]
        weakref.finalize(held[0], lambda: ends.append(threading.current_thread().name))
        it.let_go(held)
        assert not ends, "the host has it still"
        it.forget("a")
    assert ends == ["loader-0"]


def test_the_end_of_each_load_is_announced() -> None:
    disk = Disk()
    disk.errors["b"] = AdapterInvalid("up", "is bad")
    announced = threading.Semaphore(0)
    with loader(disk, notify=announced.release) as it:
        futures = [it.request("a"), it.request("b")]
        assert announced.acquire(timeout=WAIT)
        assert announced.acquire(timeout=WAIT)
        assert all(future.done() for future in futures)


def test_host_tier_counts_what_it_keeps() -> None:
    tier = HostTier(3 * plan_bytes())
    for digest in "abcab":
        tier.put(digest, pack(plan(digest), torch.float32, 16, pin_memory=False))
    assert tier.used == 3 * plan_bytes()
    tier.put("d", pack(plan("d", rank=8), torch.float32, 16, pin_memory=False))
    assert tier.sizes() == {"b": plan_bytes(), "d": plan_bytes(8)}
    assert tier.used == 3 * plan_bytes()


def test_a_load_computes_with_one_thread_and_its_caller_with_as_many_as_before() -> None:
    seen: list[int] = []

    class Counting(Disk):
        def load(self, digest: str, tenant: TenantContext) -> Packed:
            seen.append(torch.get_num_threads())
            return super().load(digest, tenant)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with loader(Counting()) as it:
            it.request("a").result(WAIT)
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
