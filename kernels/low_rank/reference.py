"""The low-rank verbs in plain torch: the definition that every other backend is held to."""

from torch import Tensor

from weft.kernels.low_rank.table import LowRankTable
from weft.kernels.segments import Segments


def low_rank_add_(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_add_`."""
    for segment in segments:
        pair = table.pair(segment.slot, segment.expert)
        if pair is not None:
            a, b = (tensor.float() for tensor in pair)
            rows = slice(segment.start, segment.stop)
            y[rows] = (y[rows].float() + (x[rows].float() @ a.T) @ b).to(y.dtype)


def low_rank_embed_add_(y: Tensor, ids: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_embed_add_`."""
    for segment in segments:
        pair = table.pair(segment.slot, segment.expert)
        if pair is not None:
            a, b = (tensor.float() for tensor in pair)
            rows = slice(segment.start, segment.stop)
            y[rows] = (y[rows].float() + a[:, ids[rows]].T @ b).to(y.dtype)
