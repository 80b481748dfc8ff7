"""The dense verbs in plain torch, computed in the dtype of the matrices."""

from torch import Tensor
from torch.nn.functional import embedding_bag

from weft.kernels.batched import stacked, widened
from weft.kernels.dense.compressed_rows import CompressedRows
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
    for run in table.runs(segments):
        inputs, sums = x[run.rows], y[run.rows]
        dtype = table[run.slots[0]].values.dtype
        inputs, wide = inputs.to(dtype), sums.to(dtype)
        if len(run.slots) == 1 and len(inputs) >= _MANY_ROWS:
            wide.add_(_bags(inputs, table[run.slots[0]]))
        else:
            slots = run.row_slots * (1 if len(run.slots) > 1 else len(inputs))
            for slot, part, own in zip(slots, wide.unbind(), inputs.unbind(), strict=True):
                part.addmv_(table[slot].matrix(x.shape[1]), own)
        if wide is not sums:
            sums.copy_(wide)


def _bags(x: Tensor, sparse: CompressedRows) -> Tensor:
    """`x Sᵀ`: each feature is the sum of a bag of weighted features of x."""
    sums: Tensor = embedding_bag(
        sparse.columns,
        x.T.contiguous(),
        sparse.starts,
        mode="sum",
        per_sample_weights=sparse.values,
        include_last_offset=True,
    )
    return sums.T


def kronecker_add_(
    y: Tensor, x: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments
) -> None:
    """See `weft.kernels.dense.kronecker_add_`.

    First by the outer factor: then the product by the inner one lies as y does, and is added there.
    """
    for rows, (outer, inner) in stacked(table, segments):
        part = y[rows]
        sums = part.to(outer.dtype)
        inputs = x[rows].to(outer.dtype).view(len(part), -1, inner.shape[-1])
        turned = outer @ inputs  # [rows, a, d]
        if inner.dim() == 2:
            sums.view(-1, len(inner)).addmm_(turned.flatten(0, 1), inner.T)
        else:
            sums.view(*turned.shape[:2], -1).baddbmm_(turned, inner.mT)
        if sums is not part:
            part.copy_(sums)
