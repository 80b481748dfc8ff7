"""Factors and offsets of features, for many adapters in one batch. Knows no requests or names."""

from torch import Tensor

from weft.kernels.scale import reference
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

__all__ = ["Vector", "scale_", "shift_"]

Vector = tuple[Tensor]
"""One value for each feature: `[features]`."""


def scale_(y: Tensor, table: SlotTable[Vector], segments: Segments) -> None:
    """`y[s] ∘= v` for the rows s of each segment, with the vector v of its slot.

    y: [rows, features], changed in place; rows of no segment keep their bits
    """
    reference.scale_(y, table, segments)


def shift_(y: Tensor, table: SlotTable[Vector], segments: Segments) -> None:
    """`y[s] += v` for the rows s of each segment, with the vector v of its slot.

    y: [rows, features], changed in place; rows of no segment keep their bits
    """
    reference.shift_(y, table, segments)
