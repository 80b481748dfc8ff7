"""The dense verbs in plain torch, computed in the dtype of the matrices."""

import warnings

import torch
from torch import Tensor
from torch.nn.functional import linear

from weft.kernels.batched import widened
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

with warnings.catch_warnings():  # torch says once that this format is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), check_invariants=False)


def dense_add_(y: Tensor, x: Tensor, table: SlotTable[tuple[Tensor]], segments: Segments) -> None:
    """See `weft.kernels.dense.dense_add_`."""
    for run, wide in widened(y, table, segments):
        inputs = run.split(x[run.rows].to(wide.dtype))
        for slot, part, own in zip(run.slots, run.split(wide), inputs, strict=True):
            (matrix,) = table[slot]
            part.addmm_(own, matrix.T)


def sparse_add_(
    y: Tensor, x: Tensor, table: SlotTable[tuple[Tensor, Tensor, Tensor]], segments: Segments
) -> None:
    """See `weft.kernels.dense.sparse_add_`."""
    for rows, (starts, columns, values) in table.rows(segments):
        size = (y.shape[1], x.shape[1])
        matrix = torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)
        y[rows].add_((matrix @ x[rows].to(values.dtype).T).T)


def kronecker_add_(
    y: Tensor, x: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments
) -> None:
    """See `weft.kernels.dense.kronecker_add_`."""
    for run, wide in widened(y, table, segments):
        inputs = run.split(x[run.rows].to(wide.dtype))
        for slot, part, own in zip(run.slots, run.split(wide), inputs, strict=True):
            outer, inner = table[slot]
            grid = own.view(-1, outer.shape[1], inner.shape[1])
            part.add_((outer @ linear(grid, inner)).flatten(1))
