"""Rotations of features, for many adapters in one batch. Knows no requests or names."""

from torch import Tensor

from weft.kernels.rotation import reference
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

__all__ = ["Blocks", "PairFactors", "rotate_blocks_", "rotate_pairs_"]

Blocks = tuple[Tensor]
"""`[features / size, size, size]`, or `[1, size, size]` for one block that all share."""

PairFactors = tuple[Tensor, Tensor]
"""Two factors for each feature, both `[groups, group size]` with groups · group size = features."""


def rotate_blocks_(x: Tensor, table: SlotTable[Blocks], segments: Segments) -> None:
    """`x[s] = x[s] · blockdiag(R)` for the rows s of each segment, with the blocks R of its slot.

    x: [rows, features], changed in place; rows of no segment keep their bits
    """
    reference.rotate_blocks_(x, table, segments)


def rotate_pairs_(y: Tensor, table: SlotTable[PairFactors], segments: Segments) -> None:
    """`y[s] = y[s] ∘ c + r(y[s]) ∘ d` for the rows s of each segment, with (c, d) of its slot.

    r turns pairs by a right angle: within each group, feature i of the first half and feature i of
    the second half are a pair, and (u, v) becomes (-v, u).
    y: [rows, features], changed in place; rows of no segment keep their bits
    """
    reference.rotate_pairs_(y, table, segments)
