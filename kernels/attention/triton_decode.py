"""Attention of sequences with one query, in Triton: each cache is split, and parts are combined.

How a sequence is split depends on its own length and the plan alone, and parts are combined in
their order. So a row's bits depend neither on the other rows nor on the bucket it was padded to.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from weft.kernels.attention.call import LEAST_BLOCK, Call, power_of_two
from weft.kernels.attention.triton_softmax import begin, fold, mean
from weft.kernels.plan import plan_of

VARYING = ("window", "table_stride", "room")
"""These vary with the step; a kernel is not compiled again for each kind of number."""


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """keys: of a block   split_keys: that a part has at least   splits: parts at most, 2ⁿ"""

    keys: int
    split_keys: int
    splits: int
    warps: int
    stages: int
    combine_warps: int


def attend_decodes(call: Call) -> None:
    """Fills `call.out` in the rows of the sequences with one query."""
    plan = plan_of("attention_decode", call.problem, DecodePlan, call.q.device)
    sequences, pages = call.batch.block_tables.shape
    longest = pages * call.batch.page_size
    if call.window is not None:
        longest = min(longest, call.window)
    splits = min(plan.splits, triton.cdiv(longest, plan.split_keys))
    shape = (sequences, call.q.shape[1], splits if splits > 1 else 0)
    means = call.q.new_empty(*shape, call.out.shape[2], dtype=torch.float32)
    scales = call.q.new_empty(shape, dtype=torch.float32)
    cut = {"SPLITS": plan.splits, "SPLIT_KEYS": plan.split_keys, "BLOCK_KEYS": plan.keys}
    attend_part[(splits, call.kv_heads, sequences)](
        *call.arguments,
        means,
        scales,
        call.batch.starts,
        call.batch.lengths,
        splits,
        **call.constants,
        **cut,
        BLOCK_ROWS=max(LEAST_BLOCK, power_of_two(call.group)),
        num_warps=plan.warps,
        num_stages=plan.stages,
        enable_fp_fusion=True,
    )
    if splits > 1:
        combine_parts[(call.q.shape[1], sequences)](
            call.out,
            means,
            scales,
            call.batch.starts,
            call.batch.lengths,
            call.window or 0,
            splits,
            call.out.stride(0),
            **cut,
            WINDOWED=call.window is not None,
            V_DIM=call.out.shape[2],
            BLOCK_V_DIM=power_of_two(call.out.shape[2]),
            num_warps=plan.combine_warps,
            enable_fp_fusion=True,
        )


@triton.jit
def _cut(
    length: tl.tensor,
    window: tl.tensor,
    WINDOWED: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The first visible key, the keys of a part, and how many parts there are, at least one."""
    oldest = tl.maximum(length - window, 0) if WINDOWED else length * 0
    visible = length - oldest
    parts = tl.minimum(tl.cdiv(visible, SPLIT_KEYS), SPLITS)
    part_keys = tl.cdiv(tl.cdiv(visible, tl.maximum(parts, 1)), BLOCK_KEYS) * BLOCK_KEYS
    return oldest, part_keys, tl.maximum(tl.cdiv(visible, tl.maximum(part_keys, 1)), 1)


@triton.jit(do_not_specialize=VARYING)
def attend_part(
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
    means: tl.tensor,
    scales: tl.tensor,
    starts: tl.tensor,
    lengths: tl.tensor,
    room: tl.tensor,
    SOFTCAP: tl.constexpr,
    WINDOWED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_K_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """A part's mean of the values, and the logarithm of its weights' sum; the result if it is one.

    means: [S, heads, room, v_dim], scales: [S, heads, room]; room for the parts of a sequence
    Program (part, KV head, sequence); its rows are the KV head's query heads.
    """
    part = tl.program_id(0)
    sequence = tl.program_id(2).to(tl.int64)
    row = tl.load(starts + sequence).to(tl.int64)
    if tl.load(starts + sequence + 1) != row + 1:
        return
    length = tl.load(lengths + sequence)
    oldest, part_keys, parts = _cut(length, window, WINDOWED, SPLITS, SPLIT_KEYS, BLOCK_KEYS)
    if part >= parts:
        return
    kv_head = tl.program_id(1)
    of_group = tl.arange(0, BLOCK_ROWS)
    head = kv_head * GROUP + of_group
    dim = tl.arange(0, BLOCK_K_DIM)
    is_head = of_group < GROUP
    q_block = tl.load(
        q + row * q_row_stride + head[:, None] * q_head_stride + dim[None, :],
        mask=is_head[:, None] & (dim < K_DIM)[None, :],
        other=0.0,
    )
    has_sink = of_group < tl.where(part == 0, GROUP, 0)
    sums, greatest, weights = begin(sinks, head, has_sink, BLOCK_ROWS, BLOCK_V_DIM)
    first = oldest + part * part_keys
    last = tl.full((BLOCK_ROWS,), length - 1, tl.int32)
    for key in range(first, tl.minimum(first + part_keys, length), BLOCK_KEYS):
        sums, greatest, weights = fold(
            sums,
            greatest,
            weights,
            q_block,
            k_pool + kv_head * k_head_stride,
            v_pool + kv_head * v_head_stride,
            tables + sequence * table_stride,
            key,
            oldest,
            length,
            last,
            scaling,
            window,
            k_slot_stride,
            v_slot_stride,
            SOFTCAP,
            False,
            True,
            PAGE_SIZE,
            K_DIM,
            V_DIM,
            BLOCK_KEYS,
        )
    result = mean(sums, weights)
    value = tl.arange(0, BLOCK_V_DIM)
    is_value = is_head[:, None] & (value < V_DIM)[None, :]
    if parts == 1:
        out_at = out + row * out_row_stride + head[:, None] * V_DIM + value[None, :]
        tl.store(out_at, result.to(out.dtype.element_ty), mask=is_value)
    else:
        place = (sequence * tl.num_programs(1) * GROUP + head) * room + part
        tl.store(means + place[:, None] * V_DIM + value[None, :], result, mask=is_value)
        tl.store(scales + place, greatest + tl.log2(weights), mask=is_head)


@triton.jit(do_not_specialize=("window", "room"))
def combine_parts(
    out: tl.tensor,
    means: tl.tensor,
    scales: tl.tensor,
    starts: tl.tensor,
    lengths: tl.tensor,
    window: tl.tensor,
    room: tl.tensor,
    out_row_stride: tl.tensor,
    SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
) -> None:
    """The mean of a sequence's parts by the sums of their weights. Program (head, sequence)."""
    sequence = tl.program_id(1).to(tl.int64)
    row = tl.load(starts + sequence).to(tl.int64)
    if tl.load(starts + sequence + 1) != row + 1:
        return
    length = tl.load(lengths + sequence)
    _, _, parts = _cut(length, window, WINDOWED, SPLITS, SPLIT_KEYS, BLOCK_KEYS)
    if parts == 1:
        return
    head = tl.program_id(0)
    part = tl.arange(0, SPLITS)
    is_part = part < parts
    place = (sequence * tl.num_programs(0) + head) * room + part
    scale = tl.load(scales + place, mask=is_part, other=-float("inf"))
    weight = tl.exp2(scale - tl.max(scale, 0))
    value = tl.arange(0, BLOCK_V_DIM)
    of_parts = tl.load(
        means + place[:, None] * V_DIM + value[None, :],
        mask=is_part[:, None] & (value < V_DIM)[None, :],
        other=0.0,
    )
    result = tl.sum(of_parts * weight[:, None], 0) / tl.sum(weight, 0)
    out_at = out + row * out_row_stride + head * V_DIM + value
    tl.store(out_at, result.to(out.dtype.element_ty), mask=value < V_DIM)
