"""Low-rank additions for many adapters in one batch. Knows no requests, names or files."""

from types import ModuleType

import torch
from torch import Tensor

from weft.kernels.low_rank import cpu
from weft.kernels.low_rank.table import ALIGNMENT_BYTES, LowRankTable
from weft.kernels.low_rank.tiles import ReplayedSegments
from weft.kernels.segments import Segments

__all__ = [
    "ALIGNMENT_BYTES",
    "LowRankTable",
    "ReplayedSegments",
    "arena_dtype",
    "low_rank_add_",
    "low_rank_embed_add_",
]


def low_rank_add_(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """`y[s] += (x[s] aᵀ) b` for the rows s of each segment, with the pair (a, b) of its slot.

    y: [rows, out_features], changed in place; rows of no segment keep their bits
    x: [rows, in_features], any dtype that matmul knows; the arena's dtype may differ
    Where a segment names an expert, the pair is that expert's.
    Sums are accumulated in float32 in a fixed order; a row's sum never reads another row.
    """
    _backend(y).low_rank_add_(y, x, table, segments)


def low_rank_embed_add_(y: Tensor, ids: Tensor, table: LowRankTable, segments: Segments) -> None:
    """`y[s] += a[:, ids[s]]ᵀ b` for the rows s of each segment: an embedding's low-rank update.

    y: [rows, out_features], changed in place; rows of no segment keep their bits
    ids: int64 [rows], each in [0, in_features)
    """
    _backend(y).low_rank_embed_add_(y, ids, table, segments)


def arena_dtype(device: torch.device, compute_dtype: torch.dtype) -> torch.dtype:
    """The dtype in which adapters should lie for a base that computes in `compute_dtype`."""
    return torch.float32 if device.type == "cpu" else compute_dtype


def _backend(y: Tensor) -> ModuleType:
    if y.is_cuda:
        from weft.kernels.low_rank import triton

        return triton
    return cpu
