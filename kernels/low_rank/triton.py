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

from weft.kernels.block_product import block_product
from weft.kernels.low_rank.table import ALIGNMENT_BYTES, LowRankTable
from weft.kernels.low_rank.tiles import ReplayedSegments, SizeClass, tiles_of
from weft.kernels.plan import plan_of
from weft.kernels.segments import Segments

MANY = 2**31 - 1  # rows


@dataclass(frozen=True, slots=True)
class LowRankPlan:
    """Block sizes for segments of one class.

    rows: of a tile   rank, inputs: of a shrinking program   splits: programs that share the inputs
    of a tile at most   expand_rank, outputs: of an expanding program
    """

    rows: int
    rank: int
    inputs: int
    splits: int
    shrink_warps: int
    shrink_stages: int
    expand_rank: int
    outputs: int
    expand_warps: int
    expand_stages: int


def low_rank_add_(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_add_`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    for plan, tiles in _launches(y, table, segments):
        splits = min(plan.splits, triton.cdiv(table.in_features, plan.inputs))
        h, rank_block = _workspace(splits, len(x), _most_ranks(table, segments), plan, y.device)
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
            BLOCK_ROWS=plan.rows,
            BLOCK_RANK=rank_block,
            BLOCK_INPUTS=plan.inputs,
            num_warps=plan.shrink_warps,
            num_stages=plan.shrink_stages,
            enable_fp_fusion=True,
        )
        _expand(y, h, tiles, table, plan)


def low_rank_embed_add_(y: Tensor, ids: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_embed_add_`."""
    ids = ids.contiguous()
    for plan, tiles in _launches(y, table, segments):
        h, rank_block = _workspace(1, len(ids), _most_ranks(table, segments), plan, y.device)
        look_up[(len(tiles), h.shape[2] // rank_block)](
            h,
            ids,
            table.arena,
            tiles,
            table.offsets_a,
            table.ranks,
            table.in_features,
            h.stride(1),
            BLOCK_ROWS=plan.rows,
            BLOCK_RANK=rank_block,
            num_warps=plan.shrink_warps,
            enable_fp_fusion=True,
        )
        _expand(y, h, tiles, table, plan)


def _expand(y: Tensor, h: Tensor, tiles: Tensor, table: LowRankTable, plan: LowRankPlan) -> None:
    expand[(len(tiles), triton.cdiv(table.out_features, plan.outputs))](
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
        BLOCK_ROWS=plan.rows,
        BLOCK_RANK=plan.expand_rank,
        BLOCK_OUTPUTS=plan.outputs,
        num_warps=plan.expand_warps,
        num_stages=plan.expand_stages,
        enable_fp_fusion=True,
    )


def _launches(
    y: Tensor, table: LowRankTable, segments: Segments
) -> Iterator[tuple[LowRankPlan, Tensor]]:
    """The plans that the step needs, each with its tiles."""
    if y.stride(-1) != 1:
        raise ValueError("the last dimension of y must be contiguous")
    if _most_ranks(table, segments) == 0:
        return
    for plan, size in _classes(y, table, segments):
        tiles = tiles_of(segments, size, y.device)
        if tiles is not None:
            yield plan, tiles


def _most_ranks(table: LowRankTable, segments: Segments) -> int:
    """No pair has more; for a step that is captured, none that will be there at a replay."""
    return segments.rank if isinstance(segments, ReplayedSegments) else table.max_rank


def _classes(
    y: Tensor, table: LowRankTable, segments: Segments
) -> Iterator[tuple[LowRankPlan, SizeClass]]:
    """Plans with their segments: those of one tile of a short one's rows, longer ones; or any.

    A captured step would launch for both, whatever is told. Its rows are decodes, so few in a
    segment that two short tiles cost less than one more launch.
    """
    if y.dtype != table.arena.dtype or y.itemsize != 2:
        exact = plan_of("low_rank", "exact", LowRankPlan, y.device)
        yield exact, SizeClass(1, MANY, exact.rows)
        return
    short, long = (plan_of("low_rank", kind, LowRankPlan, y.device) for kind in ("short", "long"))
    if isinstance(segments, ReplayedSegments):
        yield short, SizeClass(1, MANY, short.rows)
        return
    yield short, SizeClass(1, short.rows, short.rows)
    yield long, SizeClass(short.rows + 1, MANY, long.rows)


def _workspace(
    splits: int, rows: int, most_ranks: int, plan: LowRankPlan, device: torch.device
) -> tuple[Tensor, int]:
    """Room for `x aᵀ`, float32 [splits, rows, ranks], and the block that its ranks are cut in."""
    block = min(plan.rank, max(16, triton.next_power_of_2(most_ranks)))
    ranks = block * triton.cdiv(most_ranks, block)
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
    if first_rank >= rank or tl.load(tile + 1) >= tl.load(tile + 2):
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
        sums = block_product(x_block, a_block, sums)
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
    if first_rank >= rank or tl.load(tile + 1) >= tl.load(tile + 2):
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
    if rank == 0 or tl.load(tile + 1) >= tl.load(tile + 2):
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
            sums = block_product(h_block.to(b_block.dtype), b_block, sums)
        else:
            sums = block_product(h_block, b_block, sums)
    y_at = y + row[:, None] * y_row_stride + n[None, :]
    is_y = is_row[:, None] & is_output[None, :]
    total = tl.load(y_at, mask=is_y, other=0.0).to(tl.float32) + sums
    tl.store(y_at, total.to(y.dtype.element_ty), mask=is_y)
