"""How short segments share calls: rows of many slots widened together, slots' tensors stacked.

Knows no operations.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from weft.kernels.runs import Run
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

Tensors = TypeVar("Tensors", bound=tuple[Any, ...])


def widened(
    y: Tensor, table: SlotTable[Tensors], segments: Segments
) -> Iterator[tuple[Run, Tensor]]:
    """Rows of the slots with an entry, in the dtype of its first tensor, to be changed in place.

    y gets what was made of them when the next ones are asked for.
    """
    for run in table.runs(segments):
        rows = y[run.rows]
        dtype = table[run.slots[0]][0].dtype
        wide = rows if rows.dtype == dtype else rows.to(dtype)
        yield run, wide
        if wide is not rows:
            rows.copy_(wide)


def stacked(
    table: SlotTable[Tensors], segments: Segments
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Rows of the slots with an entry, and its tensors: as they are, or stacked, one for each row.

    Rows come together where their segments are short and adjacent and their tensors alike in shape.
    """
    for run in table.runs(segments):
        if len(run.slots) == 1:
            yield run.rows, table[run.slots[0]]
            continue
        start = run.start
        for _, group in groupby(map(table.__getitem__, run.row_slots), _shapes):
            entries = list(group)
            stop = start + len(entries)
            yield slice(start, stop), tuple(map(torch.stack, zip(*entries, strict=True)))
            start = stop


def _shapes(tensors: tuple[Tensor, ...]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]
