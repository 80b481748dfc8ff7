"""Tells stories of a registry in processes that are killed on the way, and checks what is left."""

import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import registry_story
from registry_story import CTX, Model, digests, models, snapshot, story, tell
from sqlite_disk import sqlite_on
from stored_adapters import adapter
from stored_state import State
from watched_disk import Disk, WatchedFiles


class KilledStories:
    """One story, told from the beginning as often as asked."""

    def __init__(self, root: Path, seed: int, length: int) -> None:
        self._root, self._seed, self._length = root, seed, length
        self.models: list[Model] = models(story(seed, length))
        self.digests = digests(root / "digests")
        self._teller = subprocess.Popen(
            [sys.executable, str(Path(registry_story.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sites(self) -> dict[str, list[int]]:
        """The numbers of the story's disk operations, by what they do."""
        disk = Disk(synced=False)
        tell(self._root / "whole", story(self._seed, self._length), disk, lambda number: None)
        found = defaultdict(list)
        for number, operation in enumerate(disk.operations):
            found[operation.site].append(number)
        return found

    def kill(self, at: int) -> int:
        """Kills the story before disk operation `at`, or after -at milliseconds, if it is not over.

        Returns how many changes were told to be done; asserts that these are there, that the one
        after them is there whole or not at all, and that a server can go on.
        """
        assert self._teller.stdin is not None
        assert self._teller.stdout is not None
        folder = self._root / "told"
        self._teller.stdin.write(f"{folder} {self._seed} {self._length} {at}\n")
        self._teller.stdin.flush()
        code, done = map(int, self._teller.stdout.readline().split())
        assert code == -signal.SIGKILL or (code, done) == (0, self._length)
        try:
            self._check(folder, done)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return done

    def _check(self, folder: Path, done: int) -> None:
        disk = Disk(synced=False)
        with sqlite_on(disk):
            state = State(folder, WatchedFiles(disk))
        found = snapshot(state)
        assert found in [model.snapshot(self.digests) for model in self.models[done : done + 2]]
        assert state.registry.check() == ()
        for digest in state.store.digests():
            assert state.store.read(digest)
        assert not [p for p in state.store.root.iterdir() if p.name.startswith(".")]
        with state.registry.ingest(CTX, adapter(9)) as upload:
            state.registry.put(CTX, "next", upload, "{}")
        state.registry.close()

    def close(self) -> None:
        """Ends the process that tells."""
        for stream in (self._teller.stdin, self._teller.stdout):
            assert stream is not None
            stream.close()
        self._teller.wait()


@contextmanager
def killed_stories(root: Path, seed: int, length: int) -> Iterator[KilledStories]:
    """A story to kill, and its teller."""
    stories = KilledStories(root, seed, length)
    try:
        yield stories
    finally:
        stories.close()
