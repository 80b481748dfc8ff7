"""Attention of sequences with several queries, in Triton: tiles of queries over a paged cache.

The query heads of a KV head are rows of one tile, so its keys are read once for them. Blocks of
keys begin at multiples of their size, so a row's bits don't depend on how its prompt was chunked.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.attention.call import Call, power_of_two
from weft.kernels.attention.paged import PagedBatch
from weft.kernels.attention.triton_softmax import begin, fold, mean
from weft.kernels.plan import plan_of


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """rows: of a tile, queries times the heads of a group   keys: of a block"""

    rows: int
    keys: int
    warps: int
    stages: int


def attend_prompts(call: Call) -> None:
    """Fills `call.out` in the rows of the sequences with several queries."""
    plan = plan_of("attention_prefill", call.problem, PrefillPlan, call.q.device)
    rows = max(plan.rows, power_of_two(call.group))
    tiles = call.batch.once(_tiles, rows // call.group)
    attend_tile[(len(tiles), call.kv_heads)](
        *call.arguments,
        tiles,
        **call.constants,
        BLOCK_ROWS=rows,
        BLOCK_KEYS=plan.keys,
        num_warps=plan.warps,
        num_stages=plan.stages,
        enable_fp_fusion=True,
    )


def _tiles(batch: PagedBatch, queries: int) -> Tensor:
    """(sequence, first row, end row, first row's position) of each tile, int32 [tiles, 4].

    Those with the most keys come first: the last ones to start should be short.
    """
    tiles = [
        (sequence, row, min(row + queries, stop), length - (stop - row))
        for sequence, length in enumerate(batch.kv_lens)
        for start, stop in [batch.query_starts[sequence : sequence + 2]]
        if stop - start > 1
        for row in range(start, stop, queries)
    ]
    tiles.sort(key=lambda tile: tile[3], reverse=True)
    tensor = torch.tensor(tiles, dtype=torch.int32)
    return tensor.to(batch.block_tables.device, non_blocking=True)


@triton.jit(do_not_specialize=["window", "table_stride"])
def attend_tile(
    out: tl.tensor,
    q: tl.tensor,
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    tables: tl.tensor,
    sinks: tl.tensor,
    scaling: tl.tensor,
    window: tl.tensor,
    table_stride: tl.tensor,
    out_row_stride: tl.tensor,
    q_row_stride: tl.tensor,
    q_head_stride: tl.tensor,
    k_slot_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_slot_stride: tl.tensor,
    v_head_stride: tl.tensor,
    tiles: tl.tensor,
    SOFTCAP: tl.constexpr,
    WINDOWED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_K_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
) -> None:
    """`softmax(q kᵀ) v` of a tile's queries in a KV head's query heads. Program (tile, KV head)."""
    tile = tiles + 4 * tl.program_id(0)
    sequence = tl.load(tile).to(tl.int64)
    first_row = tl.load(tile + 1)
    queries = tl.load(tile + 2) - first_row
    position = tl.load(tile + 3)
    kv_head = tl.program_id(1)
    index = tl.arange(0, BLOCK_ROWS)
    query = index // GROUP
    head = kv_head * GROUP + index % GROUP
    is_row = query < queries
    row = (first_row + query).to(tl.int64)
    dim = tl.arange(0, BLOCK_K_DIM)
    q_block = tl.load(
        q + row[:, None] * q_row_stride + head[:, None] * q_head_stride + dim[None, :],
        mask=is_row[:, None] & (dim < K_DIM)[None, :],
        other=0.0,
    )
    sums, greatest, weights = begin(sinks, head, is_row, BLOCK_ROWS, BLOCK_V_DIM)
    end = position + queries
    oldest = tl.maximum(position - window + 1, 0) if WINDOWED else position * 0
    first = oldest // BLOCK_KEYS * BLOCK_KEYS
    seen_by_all = first if WINDOWED else (position + 1) // BLOCK_KEYS * BLOCK_KEYS
    k_pool += kv_head * k_head_stride
    v_pool += kv_head * v_head_stride
    table = tables + sequence * table_stride
    for MASKED in tl.static_range(0, 2):
        for key in range(
            seen_by_all if MASKED else first, end if MASKED else seen_by_all, BLOCK_KEYS
        ):
            sums, greatest, weights = fold(
                sums,
                greatest,
                weights,
                q_block,
                k_pool,
                v_pool,
                table,
                key,
                oldest,
                end,
                position + query,
                scaling,
                window,
                k_slot_stride,
                v_slot_stride,
                SOFTCAP,
                WINDOWED,
                MASKED,
                PAGE_SIZE,
                K_DIM,
                V_DIM,
                BLOCK_KEYS,
            )
    value = tl.arange(0, BLOCK_V_DIM)
    out_at = out + row[:, None] * out_row_stride + head[:, None] * V_DIM + value[None, :]
    is_value = is_row[:, None] & (value < V_DIM)[None, :]
    tl.store(out_at, mean(sums, weights).to(out.dtype.element_ty), mask=is_value)
