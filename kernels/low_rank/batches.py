"""Which pairs of a module are multiplied in one call: those at even distances in the arena.

A batched product reads its matrices where they lie if each begins as far from the one before as all
others do, as two of one rank do. It costs one call for all, and the processor's cores share them
(benchmarks/LOG.md). Each comes out with the bits of a product of its own, unless it is so small
that torch computes it with another loop; those stay apart.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

_SMALLEST = 400  # multiplications; torch.bmm has a loop of its own for products of fewer

Owner = tuple[int, int]
"""A slot and an expert."""

Place = tuple[int, int, int]
"""Where a pair lies: the offsets of `a` and of `b` in elements, and the rank."""


class Batch(NamedTuple):
    """Rows of owners that follow each other, equally many of each, and where their pairs lie.

    rows: of all owners   owners: how many   first: the first one's place, None without a pair
    steps: from one owner's `a` to the next one's, and the same of `b`, in elements
    """

    rows: int
    owners: int
    first: Place | None
    steps: tuple[int, int] = (0, 0)


def batches(places: Sequence[Place | None], sizes: Sequence[int], width: int) -> tuple[Batch, ...]:
    """Cuts owners into batches, in their order.

    sizes: how many rows each has   width: of the module's inputs or outputs, whichever are fewer
    """
    return tuple(_batches(places, sizes, width))


def _batches(places: Sequence[Place | None], sizes: Sequence[int], width: int) -> Iterator[Batch]:
    start = 0
    while start < len(places):
        first, stop, steps = places[start], start + 1, (0, 0)
        is_large = first is not None and first[2] * sizes[start] * width >= _SMALLEST
        while is_large and stop < len(places) and sizes[stop] == sizes[start]:
            found = _steps(places[stop - 1], places[stop])
            if found is None or (stop > start + 1 and found != steps):
                break
            steps = found
            stop += 1
        yield Batch((stop - start) * sizes[start], stop - start, first, steps)
        start = stop


def _steps(before: Place | None, place: Place | None) -> tuple[int, int] | None:
    """From one pair to the next, if both can be of one batch; strides are not negative."""
    if before is None or place is None or before[2] != place[2]:
        return None
    step_a, step_b = place[0] - before[0], place[1] - before[1]
    return (step_a, step_b) if step_a > 0 and step_b > 0 else None
