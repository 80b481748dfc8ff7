"""The dense verbs in plain torch, computed in the dtype of the matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from weft.kernels.batched import widened
from weft.kernels.dense.compressed_rows import CompressedRows
from weft.kernels.runs import Run
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

_MANY_ROWS = 5  # of a sparse matrix: from here on one pass over it costs less than one for each row


def dense_add_(y: Tensor, x: Tensor, table: SlotTable[tuple[Tensor]], segments: Segments) -> None:
    """See `weft.kernels.dense.dense_add_`."""
    for run, wide in widened(y, table, segments):
        inputs = run.split(x[run.rows].to(wide.dtype))
        for slot, part, own in zip(run.slots, run.split(wide), inputs, strict=True):
            (matrix,) = table[slot]
            part.addmm_(own, matrix.T)


def sparse_add_(y: Tensor, x: Tensor, table: SlotTable[CompressedRows], segments: Segments) -> None:
    """See `weft.kernels.dense.sparse_add_`."""
    for rows, sparse in table.rows(segments):
        inputs = x[rows].to(sparse.values.dtype)
        if len(inputs) < _MANY_ROWS:
            matrix = sparse.matrix(x.shape[1])
            for part, own in zip(y[rows], inputs, strict=True):
                part.add_(matrix @ own)
        else:  # each feature of y is the sum of a bag of weighted features of x
            added = embedding_bag(
                sparse.columns,
                inputs.T.contiguous(),
                sparse.starts,
                mode="sum",
                per_sample_weights=sparse.values,
                include_last_offset=True,
            )
            y[rows].add_(added.T)


def kronecker_add_(
    y: Tensor, x: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments
) -> None:
    """See `weft.kernels.dense.kronecker_add_`.

    First by the outer factor: then the product by the inner one lies as y does, and is added there.
    """
    for run, wide in widened(y, table, segments):
        turned = _turned(run, x[run.rows].to(wide.dtype), table)
        for slot, part, own in zip(run.slots, run.split(wide), turned, strict=True):
            _, inner = table[slot]
            part.view(-1, len(inner)).addmm_(own.reshape(-1, inner.shape[1]), inner.T)


def _turned(run: Run, inputs: Tensor, table: SlotTable[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
    """`[rows of the slot, a, d]` for each slot: its inputs as `[c, d]`, by its outer factor."""
    shapes = [(outer.shape, inner.shape[1]) for outer, inner in map(table.__getitem__, run.slots)]
    if len(shapes) > 1 and len(set(shapes)) == 1:
        outers = torch.stack([table[slot][0] for slot in run.row_slots])
        return run.split(torch.bmm(outers, inputs.view(len(inputs), -1, shapes[0][1])))
    return [
        table[slot][0] @ own.view(len(own), -1, width)
        for slot, own, (_, width) in zip(run.slots, run.split(inputs), shapes, strict=True)
    ]
