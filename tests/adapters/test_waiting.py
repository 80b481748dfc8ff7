"""Nobody who asks waits for a disk, and no answer is older than one that ended before it."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest
from sqlite_disk import sqlite_on
from stored_state import MINE, State
from watched_disk import Disk, Operation, WatchedFiles

from weft.adapters.errors import AdapterCorrupt
from weft.adapters.retention import Retention

T = TypeVar("T")
SECONDS = 30.0
"""After which a thread that should go on is taken to be stuck."""


class Gate:
    """Lets operations of one kind at one site wait until it is opened."""

    def __init__(self) -> None:
        self.site = ""
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, number: int, operation: Operation) -> None:
        if operation.site == self.site:
            self.reached.set()
            assert self._open.wait(SECONDS)

    def open(self) -> None:
        self._open.set()


@contextmanager
def gated(root: Path, site: str) -> Iterator[tuple[State, Gate]]:
    """A state with `a` in two versions, whose disk then gets stuck at a site."""
    gate = Gate()
    disk = Disk(gate)
    with sqlite_on(disk):
        state = State(root, WatchedFiles(disk))
        for seed in (1, 2):
            state.put("a", seed)
        gate.site = site
        try:
            yield state, gate
        finally:
            gate.open()
            state.registry.close()


def at_once(call: Callable[[], T]) -> T:
    """What a call returns, from a thread of its own, so that a stuck one fails the test."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[T] = pool.submit(call)
        return future.result(SECONDS / 2)


@pytest.mark.parametrize(
    "site",
    ["sync of registry.sqlite-wal", "sync of arriving adapter_model", "sync_folder of shelf"],
)
def test_who_asks_does_not_wait_for_a_stuck_put(tmp_path: Path, site: str) -> None:
    with gated(tmp_path, site) as (state, gate), ThreadPoolExecutor(1) as pool:
        registry = state.registry
        putting = pool.submit(state.put, "a", 3)
        assert gate.reached.wait(SECONDS)
        lease = at_once(lambda: registry.lease(MINE, "a"))
        assert lease.id == "a@2"
        assert at_once(lambda: registry.lookup(MINE, "a")).version == 2
        assert [a.id for a in at_once(lambda: registry.list(MINE))] == ["a@2"]
        assert len(at_once(lambda: registry.versions(MINE, "a"))) == 2
        assert at_once(lambda: registry.aliases.list(MINE)) == ()
        assert at_once(lambda: registry.stored(lease.digest))
        assert at_once(registry.pinned) == set()
        assert at_once(lambda: registry.prune(MINE, "a", Retention(2))) == ()
        at_once(lambda: registry.withdraw(lease, "damaged"))
        with pytest.raises(AdapterCorrupt):
            at_once(lambda: registry.lease(MINE, "a"))
        at_once(lease.release)
        assert not putting.done()
        gate.open()
        assert putting.result(SECONDS).version == 3
        assert registry.lease(MINE, "a").id == "a@3"


def test_the_last_lease_ends_without_waiting_for_the_files_to_go(tmp_path: Path) -> None:
    with gated(tmp_path, "rename of version") as (state, gate):
        lease = state.registry.lease(MINE, "a", 1)
        with ThreadPoolExecutor(1) as pool:
            removing = pool.submit(state.registry.remove, MINE, "a")
            assert gate.reached.wait(SECONDS)
            at_once(lease.release)
            assert lease.digest in state.store.digests()
            gate.open()
            removing.result(SECONDS)
        state.registry.catch_up()
        assert state.store.digests() == set()


def test_bytes_that_come_again_wait_until_the_old_ones_are_gone(tmp_path: Path) -> None:
    with gated(tmp_path, "rename of version") as (state, gate), ThreadPoolExecutor(2) as pool:
        removing = pool.submit(state.registry.remove, MINE, "a")
        assert gate.reached.wait(SECONDS)
        again = [pool.submit(state.put, "b", seed) for seed in (1, 2)]
        gate.open()
        removing.result(SECONDS)
        for version in [future.result(SECONDS) for future in again]:
            assert state.store.read(version.digest)
        assert state.registry.check() == ()


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_a_name_is_linearizable(tmp_path: Path) -> None:
    """What ends before another call begins is not newer than what that one sees."""
    disk = Disk(synced=False)
    clock = count()
    history: list[tuple[int, int, int]] = []  # begin, end, version put or seen
    puts: dict[int, int] = {}  # begin, by version
    done = threading.Event()
    with sqlite_on(disk):
        state = State(tmp_path, WatchedFiles(disk))
    state.put("a", 0)

    def put(seed: int) -> None:
        begin = next(clock)
        put = state.put("a", seed)
        version = put.version
        assert put.report == f'{{"seed": {seed}}}', "another one's put was answered"
        puts[version] = begin
        history.append((begin, next(clock), version))

    def look(see: Callable[[], int]) -> None:
        while not done.is_set():
            begin = next(clock)
            version = see()
            history.append((begin, next(clock), version))

    def leased() -> int:
        with state.registry.lease(MINE, "a") as lease:
            return lease.version

    with ThreadPoolExecutor(6) as pool:
        sights = (
            leased,
            lambda: state.registry.lookup(MINE, "a").version,
            lambda: state.registry.list(MINE)[0].version,
            lambda: state.registry.versions(MINE, "a")[-1].version,
        )
        looking = [pool.submit(look, see) for see in sights]
        for writers in [
            [pool.submit(put, 2 * n), pool.submit(put, 2 * n + 1)] for n in range(1, 20)
        ]:
            for writer in writers:
                writer.result(SECONDS)
        done.set()
        for future in looking:
            future.result(SECONDS)
    seen = {version for _, _, version in history}
    assert seen >= puts.keys()
    newest_ended = 0
    for _, kind, version in sorted(
        [(begin, 0, v) for begin, _, v in history] + [(end, 1, v) for _, end, v in history]
    ):
        if kind == 0:
            assert version >= newest_ended, "an answer was older than one before it"
        else:
            newest_ended = max(newest_ended, version)
    assert all(end > puts.get(version, -1) for _, end, version in history)
    state.registry.close()
