"""Which rows of a step belong to which adapter slot. Knows no requests, names or files."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from weft.kernels.memo import Memo


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `[start, stop)` of a step, all computed with the adapter in `slot`.

    expert: where the rows are those of a layer of experts, the one that computes them
    """

    slot: int
    start: int
    stop: int
    expert: int = 0


@dataclass(frozen=True)
class Segments(Memo):
    """The adapter rows of one step, ascending by start; rows in no segment are base rows.

    `rows` is the step's row count, base rows included.
    """

    items: tuple[Segment, ...]
    rows: int

    @classmethod
    def from_slots(cls, slots: "list[int]") -> "Segments":
        """Builds segments from one slot per row; -1 marks a base row."""
        items: list[Segment] = []
        start = 0
        for row in range(1, len(slots) + 1):
            if row == len(slots) or slots[row] != slots[start]:
                if slots[start] >= 0:
                    items.append(Segment(slots[start], start, row))
                start = row
        return cls(tuple(items), len(slots))

    @cached_property
    def slots(self) -> frozenset[int]:
        """The distinct slots in use."""
        return frozenset(segment.slot for segment in self.items)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.items)

    def __bool__(self) -> bool:
        return bool(self.items)
