"""The low-rank verbs on a GPU: shrink to a float32 workspace, then expand; any mix of ranks.

A program computes one tile: rows of one segment. Base rows are in no tile and cost nothing. Block
sizes follow from a segment's own row count, sums run in a fixed order and no atomics are used, so
a row's result doesn't depend on the other adapters in the step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.low_rank.table import ALIGNMENT_BYTES, LowRankTable
from weft.kernels.segments import Segments

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Triton's interpreter multiplies bfloat16 blocks by their bits: there they are widened first."""


MANY = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Blocks:
    """Block sizes for segments of `least` to `most` rows.

    rows: of a tile   rank, inputs: of a shrinking program   outputs: of an expanding program
    splits: how many programs at most share the inputs of a tile
    """

    least: int
    most: int
    rows: int
    rank: int
    inputs: int
    outputs: int
    splits: int
    shrink_warps: int
    expand_warps: int


SHORT = Blocks(
    1, 16, rows=16, rank=16, inputs=128, outputs=64, splits=8, shrink_warps=2, expand_warps=4
)
LONG = Blocks(
    17, MANY, rows=64, rank=64, inputs=64, outputs=128, splits=4, shrink_warps=8, expand_warps=8
)
EXACT = Blocks(
    1, MANY, rows=16, rank=16, inputs=64, outputs=128, splits=8, shrink_warps=4, expand_warps=4
)
EXPAND_RANK = 16


def low_rank_add_(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_add_`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    for blocks, tiles in _launches(y, table, segments):
        splits = min(blocks.splits, triton.cdiv(table.in_features, blocks.inputs))
        h, rank_block = _workspace(splits, len(x), table, blocks)
        shrink[(len(tiles), h.shape[2] // rank_block, splits)](
            h,
            x,
            table.arena,
            tiles,
            table.offsets_a,
            table.ranks,
            table.in_features,
            x.stride(0),
            h.stride(0),
            h.stride(1),
            ALIGNMENT=ALIGNMENT_BYTES // table.arena.itemsize,
            SPLITS=splits,
            BLOCK_ROWS=blocks.rows,
            BLOCK_RANK=rank_block,
            BLOCK_INPUTS=blocks.inputs,
            num_warps=blocks.shrink_warps,
            num_stages=3,
            enable_fp_fusion=True,
        )
        _expand(y, h, tiles, table, blocks)


def low_rank_embed_add_(y: Tensor, ids: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_embed_add_`."""
    ids = ids.contiguous()
    for blocks, tiles in _launches(y, table, segments):
        h, rank_block = _workspace(1, len(ids), table, blocks)
        look_up[(len(tiles), h.shape[2] // rank_block)](
            h,
            ids,
            table.arena,
            tiles,
            table.offsets_a,
            table.ranks,
            table.in_features,
            h.stride(1),
            BLOCK_ROWS=blocks.rows,
            BLOCK_RANK=rank_block,
            num_warps=blocks.shrink_warps,
            enable_fp_fusion=True,
        )
        _expand(y, h, tiles, table, blocks)


def _expand(y: Tensor, h: Tensor, tiles: Tensor, table: LowRankTable, blocks: Blocks) -> None:
    expand[(len(tiles), triton.cdiv(table.out_features, blocks.outputs))](
        y,
        h,
        table.arena,
        tiles,
        table.offsets_b,
        table.ranks,
        table.out_features,
        y.stride(0),
        h.stride(0),
        h.stride(1),
        ALIGNMENT=ALIGNMENT_BYTES // table.arena.itemsize,
        SPLITS=h.shape[0],
        BLOCK_ROWS=blocks.rows,
        BLOCK_RANK=EXPAND_RANK,
        BLOCK_OUTPUTS=blocks.outputs,
        num_warps=blocks.expand_warps,
        num_stages=1,  # the loop over the rank is short: copies ahead would cost registers
        enable_fp_fusion=True,
    )


def _launches(
    y: Tensor, table: LowRankTable, segments: Segments
) -> Iterator[tuple[Blocks, Tensor]]:
    """The block sizes that the step needs, each with its tiles."""
    if y.stride(-1) != 1:
        raise ValueError("the last dimension of y must be contiguous")
    if table.max_rank == 0:
        return
    tensor_cores = y.dtype == table.arena.dtype and y.itemsize == 2
    for blocks in (SHORT, LONG) if tensor_cores else (EXACT,):
        tiles = segments.once(_tiles, blocks, y.device)
        if tiles is not None:
            yield blocks, tiles


def _tiles(segments: Segments, blocks: Blocks, device: torch.device) -> Tensor | None:
    """(slot, first row, end row, expert) of each tile, int32 [tiles, 4]; None without any."""
    tiles = [
        (segment.slot, start, min(start + blocks.rows, segment.stop), segment.expert)
        for segment in segments
        if blocks.least <= segment.stop - segment.start <= blocks.most
        for start in range(segment.start, segment.stop, blocks.rows)
    ]
    return torch.tensor(tiles, dtype=torch.int32, device=device) if tiles else None


def _workspace(splits: int, rows: int, table: LowRankTable, blocks: Blocks) -> tuple[Tensor, int]:
    """Room for `x aᵀ`, float32 [splits, rows, ranks], and the block that its ranks are cut in."""
    block = min(blocks.rank, max(16, triton.next_power_of_2(table.max_rank)))
    ranks = block * triton.cdiv(table.max_rank, block)
    device = table.arena.device
    return torch.empty(splits, rows, ranks, dtype=torch.float32, device=device), block


@triton.jit
def shrink(
    h: tl.tensor,
    x: tl.tensor,
    arena: tl.tensor,
    tiles: tl.tensor,
    offsets: tl.tensor,
    ranks: tl.tensor,
    in_features: tl.tensor,
    x_row_stride: tl.tensor,
    h_split_stride: tl.tensor,
    h_row_stride: tl.tensor,
    ALIGNMENT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
) -> None:
    """`h[split, row, r] = Σ x[row, k] a[r, k]` over every SPLITS-th block of k.

    Program (tile, block of ranks, split); blocks beyond the slot's own rank exit at once, and the
    last block is filled up with zeros.
    """
    tile = tiles + 4 * tl.program_id(0)
    slot = tl.load(tile)
    rank = tl.load(ranks + slot)
    first_rank = tl.program_id(1) * BLOCK_RANK
    if first_rank >= rank:
        return
    split = tl.program_id(2)
    row = tl.load(tile + 1) + tl.arange(0, BLOCK_ROWS).to(tl.int64)
    is_row = row < tl.load(tile + 2)
    r = first_rank + tl.arange(0, BLOCK_RANK)
    is_rank = r < rank
    a = arena + tl.multiple_of(tl.load(offsets + slot), ALIGNMENT)
    a += tl.load(tile + 3).to(tl.int64) * rank * in_features
    sums = tl.zeros((BLOCK_ROWS, BLOCK_RANK), tl.float32)
    for start in range(split * BLOCK_INPUTS, in_features, SPLITS * BLOCK_INPUTS):
        k = start + tl.arange(0, BLOCK_INPUTS)
        is_input = k < in_features
        x_block = tl.load(
            x + row[:, None] * x_row_stride + k[None, :],
            mask=is_row[:, None] & is_input[None, :],
            other=0.0,
        )
        a_block = tl.load(
            a + r[None, :] * in_features + k[:, None],
            mask=is_rank[None, :] & is_input[:, None],
            other=0.0,
        )
        sums = _dot(x_block, a_block, sums)
    tl.store(
        h + split * h_split_stride + row[:, None] * h_row_stride + r[None, :],
        sums,
        mask=is_row[:, None],
    )


@triton.jit
def look_up(
    h: tl.tensor,
    ids: tl.tensor,
    arena: tl.tensor,
    tiles: tl.tensor,
    offsets: tl.tensor,
    ranks: tl.tensor,
    vocabulary: tl.tensor,
    h_row_stride: tl.tensor,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """`h[0, row, r] = a[r, ids[row]]`. Program (tile, block of ranks)."""
    tile = tiles + 4 * tl.program_id(0)
    slot = tl.load(tile)
    rank = tl.load(ranks + slot)
    first_rank = tl.program_id(1) * BLOCK_RANK
    if first_rank >= rank:
        return
    row = tl.load(tile + 1) + tl.arange(0, BLOCK_ROWS).to(tl.int64)
    r = first_rank + tl.arange(0, BLOCK_RANK)
    is_row = row < tl.load(tile + 2)
    mask = is_row[:, None] & (r < rank)[None, :]
    token = tl.load(ids + row, mask=is_row, other=0)
    a = arena + tl.load(offsets + slot)
    a += tl.load(tile + 3).to(tl.int64) * rank * vocabulary
    values = tl.load(a + r[None, :] * vocabulary + token[:, None], mask=mask, other=0.0)
    h_at = h + row[:, None] * h_row_stride + r[None, :]
    tl.store(h_at, values.to(tl.float32), mask=is_row[:, None])


@triton.jit
def expand(
    y: tl.tensor,
    h: tl.tensor,
    arena: tl.tensor,
    tiles: tl.tensor,
    offsets: tl.tensor,
    ranks: tl.tensor,
    out_features: tl.tensor,
    y_row_stride: tl.tensor,
    h_split_stride: tl.tensor,
    h_row_stride: tl.tensor,
    ALIGNMENT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
) -> None:
    """`y[row, n] += Σ_r (Σ_split h[split, row, r]) b[r, n]`. Program (tile, block of n)."""
    tile = tiles + 4 * tl.program_id(0)
    slot = tl.load(tile)
    rank = tl.load(ranks + slot)
    if rank == 0:
        return
    row = tl.load(tile + 1) + tl.arange(0, BLOCK_ROWS).to(tl.int64)
    n = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    is_row = row < tl.load(tile + 2)
    is_output = n < out_features
    b = arena + tl.multiple_of(tl.load(offsets + slot), ALIGNMENT)
    b += tl.load(tile + 3).to(tl.int64) * rank * out_features
    sums = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), tl.float32)
    for first_rank in range(0, rank, BLOCK_RANK):
        r = first_rank + tl.arange(0, BLOCK_RANK)
        is_rank = r < rank
        h_at = h + row[:, None] * h_row_stride + r[None, :]
        h_block = tl.load(h_at, mask=is_row[:, None], other=0.0)
        for split in tl.static_range(1, SPLITS):
            h_block += tl.load(h_at + split * h_split_stride, mask=is_row[:, None], other=0.0)
        b_block = tl.load(
            b + r[:, None] * out_features + n[None, :],
            mask=is_rank[:, None] & is_output[None, :],
            other=0.0,
        )
        if b_block.dtype == y.dtype.element_ty:
            sums = _dot(h_block.to(b_block.dtype), b_block, sums)
        else:
            sums = _dot(h_block, b_block, sums)
    y_at = y + row[:, None] * y_row_stride + n[None, :]
    is_y = is_row[:, None] & is_output[None, :]
    total = tl.load(y_at, mask=is_y, other=0.0).to(tl.float32) + sums
    tl.store(y_at, total.to(y.dtype.element_ty), mask=is_y)


@triton.jit
def _dot(left: tl.tensor, right: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """`sums + left right`: tensor cores for two 16-bit blocks of one dtype, else exact float32."""
    if left.dtype != right.dtype or INTERPRETED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")
