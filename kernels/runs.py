"""Adjacent segments that are computed together. Knows no operations."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from weft.kernels.segments import Segment, Segments

_LONG = 4  # rows from which on one more call costs less than a copy of what all rows share


@dataclass(frozen=True)
class Run:
    """Rows `[start, stop)` of a step: those of `slots`, `sizes` rows of each, one after another."""

    start: int
    stop: int
    slots: tuple[int, ...]
    sizes: tuple[int, ...]

    @cached_property
    def row_slots(self) -> tuple[int, ...]:
        """The slot of each row; of a run of one slot only that."""
        if len(self.slots) == 1:
            return self.slots
        return tuple(
            slot for slot, size in zip(self.slots, self.sizes, strict=True) for _ in range(size)
        )

    @property
    def rows(self) -> slice:
        """Where the run lies in a step."""
        return slice(self.start, self.stop)

    def apart(self) -> Iterator["Run"]:
        """A run for each of the slots."""
        start = self.start
        for slot, size in zip(self.slots, self.sizes, strict=True):
            yield Run(start, start + size, (slot,), (size,))
            start += size

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """What a tensor with a row for each row of the run holds for each of the slots."""
        return tensor.split_with_sizes(self.sizes)


def runs_of(segments: Segments, slots: frozenset[int]) -> tuple[Run, ...]:
    """The rows of `slots`: adjacent segments together, but those of many rows alone."""
    return tuple(_run(group) for group in _adjacent(s for s in segments if s.slot in slots))


def _adjacent(segments: Iterable[Segment]) -> list[list[Segment]]:
    groups: list[list[Segment]] = []
    for segment in segments:
        before = groups[-1][-1] if groups else None
        if before and before.stop == segment.start and max(_size(before), _size(segment)) < _LONG:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _size(segment: Segment) -> int:
    return segment.stop - segment.start


def _run(group: list[Segment]) -> Run:
    slots = tuple(segment.slot for segment in group)
    return Run(group[0].start, group[-1].stop, slots, tuple(map(_size, group)))
