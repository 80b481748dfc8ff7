"""The scale verbs in plain torch; where dtypes differ, torch computes in the wider one."""

from torch import Tensor

from weft.kernels.batched import stacked
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def scale_(y: Tensor, table: SlotTable[tuple[Tensor]], segments: Segments) -> None:
    """See `weft.kernels.scale.scale_`."""
    for rows, (factors,) in stacked(table, segments):
        y[rows].mul_(factors)


def shift_(y: Tensor, table: SlotTable[tuple[Tensor]], segments: Segments) -> None:
    """See `weft.kernels.scale.shift_`."""
    for rows, (offsets,) in stacked(table, segments):
        y[rows].add_(offsets)
