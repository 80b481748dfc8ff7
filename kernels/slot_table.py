"""What the slots hold of one kind of operation on one module. Knows no files, names or methods."""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from weft.kernels.runs import Run, runs_of
from weft.kernels.segments import Segments

Entry = TypeVar("Entry")


class SlotTable(Generic[Entry]):
    """An entry for each slot that has the operation: its tensors, as the kernel's verb takes them.

    A slot without an entry changes nothing.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._slots: frozenset[int] = frozenset()

    def set(self, slot: int, entry: Entry) -> None:
        """Lets `slot` compute with `entry`."""
        self._entries[slot] = entry
        self._slots = frozenset(self._entries)

    def clear(self, slot: int) -> None:
        """Lets `slot` change nothing."""
        self._entries.pop(slot, None)
        self._slots = frozenset(self._entries)

    def get(self, slot: int) -> Entry | None:
        """The slot's entry, or None."""
        return self._entries.get(slot)

    def __getitem__(self, slot: int) -> Entry:
        """The entry of a slot that has one."""
        return self._entries[slot]

    def any_in(self, slots: Iterable[int]) -> bool:
        """Whether any of `slots` has an entry."""
        return not self._entries.keys().isdisjoint(slots)

    def rows(self, segments: Segments) -> Iterator[tuple[slice, Entry]]:
        """The rows of each segment whose slot has an entry, with the entry."""
        for segment in segments:
            entry = self._entries.get(segment.slot)
            if entry is not None:
                yield slice(segment.start, segment.stop), entry

    def runs(self, segments: Segments) -> tuple[Run, ...]:
        """The rows of the slots that have an entry, adjacent ones together."""
        return segments.once(runs_of, self._slots)
