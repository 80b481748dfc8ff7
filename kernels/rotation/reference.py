"""The rotation verbs in plain torch, computed in the dtype of the blocks and factors."""

import torch
from torch import Tensor

from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def rotate_blocks_(x: Tensor, table: SlotTable[tuple[Tensor]], segments: Segments) -> None:
    """See `weft.kernels.rotation.rotate_blocks_`."""
    for rows, (blocks,) in table.rows(segments):
        parts = x[rows].to(blocks.dtype)
        parts = parts.view(len(parts), -1, blocks.shape[-1])
        turned = parts @ blocks[0] if len(blocks) == 1 else _each_its_own(parts, blocks)
        x[rows] = turned.flatten(1).to(x.dtype)


def rotate_pairs_(y: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments) -> None:
    """See `weft.kernels.rotation.rotate_pairs_`."""
    for rows, (direct, crossed) in table.rows(segments):
        parts = y[rows].to(direct.dtype).view(-1, *direct.shape)
        first, second = parts.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        y[rows] = (parts * direct + turned * crossed).flatten(1).to(y.dtype)


def _each_its_own(parts: Tensor, blocks: Tensor) -> Tensor:
    """parts: [rows, count, size], blocks: [count, size, size]; returns [rows, count, size]."""
    return torch.bmm(parts.transpose(0, 1), blocks).transpose(0, 1)
