"""The replacement verbs in plain torch."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def replace_embedded_(
    y: Tensor, ids: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments
) -> None:
    """See `weft.kernels.replacement.replace_embedded_`."""
    for rows, (known, weight) in table.rows(segments):
        wanted = ids[rows]
        places = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
        found = (known[places] == wanted)[:, None]
        y[rows] = torch.where(found, weight[places].to(y.dtype), y[rows])


def replace_outputs_(
    y: Tensor, x: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments
) -> None:
    """See `weft.kernels.replacement.replace_outputs_`."""
    for rows, (known, weight) in table.rows(segments):
        values = linear(x[rows].to(weight.dtype), weight)
        y[rows].index_copy_(1, known, values.to(y.dtype))
