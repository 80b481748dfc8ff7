"""Single rows of a weight replaced, for many adapters in one batch. Knows no requests or names."""

from torch import Tensor

from weft.kernels.replacement import reference
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

__all__ = ["WeightRows", "replace_embedded_", "replace_outputs_"]

WeightRows = tuple[Tensor, Tensor]
"""Which rows of the weight (int64 `[count]`, ascending), and what they are: `[count, width]`."""


def replace_embedded_(
    y: Tensor, ids: Tensor, table: SlotTable[WeightRows], segments: Segments
) -> None:
    """`y[i] = W[ids[i]]` for the rows i of each segment whose id is among its slot's rows W.

    y: [rows, width], changed in place; other rows keep their bits
    ids: int64 [rows]
    """
    reference.replace_embedded_(y, ids, table, segments)


def replace_outputs_(
    y: Tensor, x: Tensor, table: SlotTable[WeightRows], segments: Segments
) -> None:
    """`y[s, j] = x[s] W[j]` for the rows s of each segment and each j among its slot's rows W.

    y: [rows, out_features], changed in place; other rows and features keep their bits
    x: [rows, width]
    """
    reference.replace_outputs_(y, x, table, segments)
