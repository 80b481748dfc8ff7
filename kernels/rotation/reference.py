"""The rotation verbs in plain torch, computed in the dtype of the blocks and factors."""

import torch
from torch import Tensor

from weft.kernels.batched import stacked, widened
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def rotate_blocks_(x: Tensor, table: SlotTable[tuple[Tensor]], segments: Segments) -> None:
    """See `weft.kernels.rotation.rotate_blocks_`."""
    for run, wide in widened(x, table, segments):
        for slot, part in zip(run.slots, run.split(wide), strict=True):
            (blocks,) = table[slot]
            inputs = part.view(len(part), -1, blocks.shape[-1]).transpose(0, 1)
            turned = torch.matmul(inputs, blocks)  # [blocks, rows, size]
            part.copy_(turned.transpose(0, 1).flatten(1))


def rotate_pairs_(y: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments) -> None:
    """See `weft.kernels.rotation.rotate_pairs_`."""
    for rows, (direct, crossed) in stacked(table, segments):
        part = y[rows]
        before = part.to(direct.dtype).view(len(part), *direct.shape[-2:])
        after = before * direct
        first, second = before.chunk(2, dim=-1)
        of_first, of_second = crossed.chunk(2, dim=-1)
        after_first, after_second = after.chunk(2, dim=-1)
        after_first.addcmul_(second, of_first, value=-1)
        after_second.addcmul_(first, of_second)
        part.copy_(after.view(part.shape))
