"""A story of a registry as it was recorded, and what is wrong after a power loss anywhere in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from power_loss import Drive, Kept
from registry_story import Model, Snapshot, digests, models, snapshot, story, tell
from sqlite_disk import sqlite_on
from stored_state import State
from watched_disk import Disk, Operation, WatchedFiles

from weft.adapters.errors import AdapterCorrupt


@dataclass
class Recording:
    """A story as it was told below `root`; done: changes made before each operation."""

    root: Path
    operations: list[Operation]
    done: list[int]
    models: list[Model]
    digests: dict[int, str]

    def losses(self, left_out: str = "") -> Iterator[tuple[int, Drive, Kept]]:
        """After each operation what a loss may leave, each once; left_out: a site to skip."""
        drive, seen = Drive(self.root), set()
        for number, operation in enumerate(self.operations):
            if operation.site != left_out:
                drive.do(operation)
            done = self.done[number + 1]
            for kept in drive.losses():
                fingerprint = (done, drive.fingerprint(kept))
                if fingerprint not in seen:
                    seen.add(fingerprint)
                    yield done, drive, kept

    def fault(self, folder: Path, done: int) -> str:
        """What is wrong with what is left in a folder, "" if nothing is."""
        with sqlite_on(Disk(synced=False)):
            state = State(folder, WatchedFiles(Disk(synced=False)))
        try:
            return self._fault(state, done)
        finally:
            state.registry.close()

    def _fault(self, state: State, done: int) -> str:
        found = snapshot(state)
        expected: list[Snapshot] = [
            model.snapshot(self.digests) for model in self.models[done : done + 2]
        ]
        if found not in expected:
            return f"after {done} changes there is {found}, not {expected}"
        try:
            for digest in state.store.digests():
                state.store.read(digest)
        except AdapterCorrupt as error:
            return str(error)
        return ", ".join(state.registry.check())


def record(folder: Path, seed: int, length: int) -> Recording:
    """Tells a story on a watched disk below `folder`."""
    root = folder / "told"
    root.mkdir()
    disk, marks = Disk(synced=False), [0]
    tell(root, story(seed, length), disk, lambda _: marks.append(len(disk.operations)))
    done = [sum(mark <= number for mark in marks[1:]) for number in range(len(disk.operations) + 1)]
    found = digests(folder / "digests")
    return Recording(root, disk.operations, done, models(story(seed, length)), found)


def faults(recording: Recording, folder: Path, left_out: str = "", every: int = 1) -> Iterator[str]:
    """The faults of each state that a loss may leave, "" for none."""
    for number, (done, drive, kept) in enumerate(recording.losses(left_out)):
        if number % every == 0:
            left = folder / str(number)
            left.mkdir()
            drive.write(kept, left)
            yield recording.fault(left, done)
