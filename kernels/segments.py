"""Which rows of a step belong to which adapter slot. Knows no requests, names or files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from weft.kernels.memo import Memo

_KEPT = 16  # of the last steps: a step asks for its rows, its kept ones and those of each layer


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
    def from_slots(cls, slots: Sequence[int]) -> "Segments":
        """Builds segments from one slot per row; -1 marks a base row.

        Steps of the same slots share one value, and so what was derived from it.
        """
        return _of_slots(tuple(slots))

    @cached_property
    def slots(self) -> frozenset[int]:
        """The distinct slots in use."""
        return frozenset(segment.slot for segment in self.items)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.items)

    def __bool__(self) -> bool:
        return bool(self.items)


@lru_cache(maxsize=_KEPT)
def _of_slots(slots: tuple[int, ...]) -> Segments:
    items: list[Segment] = []
    start = 0
    for row in range(1, len(slots) + 1):
        if row == len(slots) or slots[row] != slots[start]:
            if slots[start] >= 0:
                items.append(Segment(slots[start], start, row))
            start = row
    return Segments(tuple(items), len(slots))
