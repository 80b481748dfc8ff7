"""The k-th operation of the disk fails, the store's or SQLite's: one change fails, nothing else."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from registry_story import CTX, digests, make, models, snapshot, story
from sqlite_disk import sqlite_on
from stored_state import State
from watched_disk import Disk, Operation, WatchedFiles

from weft.adapters.errors import StorageFull
from weft.adapters.version import Version

SEED, LENGTH = 2, 40
CHANGES = story(SEED, LENGTH)
MODELS = models(CHANGES)
FAILURES = 200
AFTERWARDS = 2
"""Changes that are made after the one that met the failure."""


class Fault:
    """Lets operation number `at` fail, once."""

    def __init__(self, at: int, code: int) -> None:
        self.at, self.code = at, code
        self.met: Operation | None = None

    def __call__(self, number: int, operation: Operation) -> None:
        if number == self.at:
            self.met = operation
            raise OSError(self.code, os.strerror(self.code))

    def reserve(self, file: int, offset: int, length: int) -> None:
        """Stands for `os.posix_fallocate`: the disk has failed a moment ago, and fails still."""
        assert self.met is not None
        raise OSError(self.code, os.strerror(self.code))


@contextmanager
def failing(root: Path, fault: Fault) -> Iterator[Callable[[], State]]:
    """What opens a state on a disk that will fail."""
    disk = Disk(fault, synced=False)
    opened: list[State] = []

    def open_() -> State:
        opened.append(State(root, WatchedFiles(disk)))
        return opened[-1]

    with sqlite_on(disk), mock.patch("os.posix_fallocate", fault.reserve):
        yield open_
        for state in opened:
            state.registry.close()


def retried(call: Callable[[], object], fault: Fault) -> tuple[object, OSError | None]:
    """Calls, and once more where the fault was met; returns also what it raised then."""
    before = fault.met
    try:
        return call(), None
    except OSError as error:
        assert before is None
        assert fault.met is not None, "failed without a reason"
        return None, error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_one_change_fails_and_the_rest_go_on(tmp_path: Path, code: int) -> None:
    known = digests(tmp_path / "digests")
    sites = set()
    for at in range(FAILURES):
        fault = Fault(at, code)
        with failing(tmp_path / str(at), fault) as open_:
            state, _ = retried(open_, fault)
            if state is None:
                state = open_()
            assert isinstance(state, State)
            _live(state, fault, known)
        assert fault.met is not None
        sites.add(fault.met.site)
    assert len(sites) >= 25


def _live(state: State, fault: Fault, known: dict[int, str]) -> None:
    """Tells the story until some changes after the fault, and compares after each change."""
    left = AFTERWARDS
    for change, before, after in zip(CHANGES, MODELS, MODELS[1:], strict=False):
        _, error = retried(lambda change=change: make(state, change), fault)
        if error is not None:
            assert fault.met is not None
            if fault.code == errno.ENOSPC:
                assert isinstance(error, StorageFull) or change == ("restart",)
            if change != ("restart",):
                assert snapshot(state) == before.snapshot(known), "a failed change left something"
                assert state.registry.check() == ()
            make(state, change)
        assert snapshot(state) == after.snapshot(known), change
        if fault.met is not None:
            left -= 1
            if left < 0:
                break
    assert state.registry.check() == ()
    state.restart()
    assert state.registry.check() == ()
    assert not [path for path in state.store.root.iterdir() if path.name.startswith(".")]
    assert {version.digest for version in _versions(state)} == state.store.digests()


def _versions(state: State) -> Iterator[Version]:
    for adapter in state.registry.list(CTX):
        yield from state.registry.versions(CTX, adapter.name)
