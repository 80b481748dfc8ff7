"""Which bytes of an arena are free. Knows no adapters."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

Extent = tuple[int, int]
"""A range [start, stop) in bytes."""


@dataclass(frozen=True, slots=True)
class Room:
    """Room for a run of tensors: the offset of each, and the ranges that hold them all."""

    offsets: tuple[int, ...]
    extents: tuple[Extent, ...]


class Extents:
    """The free ranges of an arena of `capacity` bytes, sorted, never touching each other.

    A tensor is contiguous, an adapter need not be: its tensors fill several holes where none is
    large enough for all, so that free bytes are usable bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._holes: list[Extent] = [(0, capacity)] if capacity else []

    @classmethod
    def around(cls, capacity: int, taken: Iterable[Extent]) -> "Extents":
        """An arena in which these ranges are taken; they do not overlap."""
        extents = cls(0)
        extents.capacity = capacity
        stops = [0]
        for start, stop in sorted(taken):
            if start > stops[-1]:
                extents._holes.append((stops[-1], start))
            stops.append(stop)
        if stops[-1] < capacity:
            extents._holes.append((stops[-1], capacity))
        return extents

    @property
    def free(self) -> int:
        """Free bytes."""
        return sum(stop - start for start, stop in self._holes)

    @property
    def holes(self) -> tuple[Extent, ...]:
        """The free ranges, ascending."""
        return tuple(self._holes)

    def copy(self) -> "Extents":
        """An independent copy, to try things on."""
        twin = Extents(0)
        twin.capacity = self.capacity
        twin._holes = self._holes.copy()
        return twin

    def take(self, sizes: Sequence[int]) -> Room | None:
        """Takes room for tensors of these sizes in their order; None, and nothing taken, if none.

        The smallest hole that fits the rest is preferred; else the largest is filled as far as
        whole tensors go.
        """
        starts = list(accumulate(sizes, initial=0))
        holes = self._holes.copy()
        offsets: list[int] = []
        extents: list[Extent] = []
        first = 0
        while first < len(sizes):
            index = _choose(holes, starts[-1] - starts[first])
            if index is None:
                return None
            start, stop = holes[index]
            last = bisect_right(starts, starts[first] + stop - start) - 1
            if last == first:
                return None
            shift = start - starts[first]
            taken = shift + starts[last]
            offsets += [shift + at for at in starts[first:last]]
            extents.append((start, taken))
            holes[index : index + 1] = [(taken, stop)] if taken < stop else []
            first = last
        self._holes = holes
        return Room(tuple(offsets), tuple(extents))

    def give(self, extents: Sequence[Extent]) -> None:
        """Makes ranges that were taken free again. Raises ValueError if one is free already."""
        for start, stop in extents:
            index = bisect_left(self._holes, (start, stop))
            before = self._holes[index - 1] if index else (-1, -1)
            after = self._holes[index] if index < len(self._holes) else (self.capacity + 1,) * 2
            if before[1] > start or stop > after[0]:
                raise ValueError(f"bytes {start} to {stop} are free already")
            joined = before[1] == start, after[0] == stop
            merged = (before[0] if joined[0] else start, after[1] if joined[1] else stop)
            self._holes[index - joined[0] : index + joined[1]] = [merged]


def _choose(holes: Sequence[Extent], wanted: int) -> int | None:
    """The index of the smallest hole of at least `wanted` bytes, else of the largest."""
    lengths = [stop - start for start, stop in holes]
    fitting = [length for length in lengths if length >= wanted]
    best = min(fitting) if fitting else max(lengths, default=0)
    return lengths.index(best) if best else None
