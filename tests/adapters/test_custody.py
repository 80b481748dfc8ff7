"""Which stored files stay and which go, when things happen at once or go wrong."""

import threading

import pytest
from stored_adapters import adapter
from stored_state import MINE, THEIRS, State

from weft.adapters.retention import Retention


def test_bytes_that_come_again_while_they_are_removed_stay(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, remove = state.put("a", 1).digest, state.store.remove
    removing, go_on = threading.Event(), threading.Event()

    def remove_later(leaving: str) -> None:
        removing.set()
        go_on.wait()
        remove(leaving)

    monkeypatch.setattr(state.store, "remove", remove_later)
    leaves = threading.Thread(target=state.registry.remove, args=(MINE, "a"))
    comes = threading.Thread(target=state.put, args=("b", 1, THEIRS))
    leaves.start()
    removing.wait()
    comes.start()
    comes.join(0.2)  # as long as it gets to do it wrong; it should wait
    go_on.set()
    leaves.join()
    comes.join()
    assert state.registry.lookup(THEIRS, "b").digest == digest
    assert state.store.read(digest)


def test_an_old_version_that_somebody_holds_is_not_pruned(state: State) -> None:
    old = state.put("a", 1)
    state.put("a", 2)
    with state.registry.lease(MINE, "a", 1):
        assert state.registry.prune(MINE, "a", Retention(1)) == ()
    assert state.registry.prune(MINE, "a", Retention(1)) == (old.digest,)


def test_a_lease_that_ends_is_no_work_for_a_thread_while_its_version_stays(state: State) -> None:
    state.put("a", 1)
    before = threading.active_count()
    with state.registry.lease(MINE, "a"):
        pass
    assert threading.active_count() == before


def test_files_that_nobody_refers_to_are_a_broken_invariant(state: State) -> None:
    digest = state.put("a", 1).digest
    state.registry.remove(MINE, "a")
    state.store.put(adapter(1))
    assert state.registry.check() == ("all files are of a version or a hold",)
    state.store.remove(digest)
