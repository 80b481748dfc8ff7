"""Cache writes in Triton: keys and values of all rows by one launch, where torch takes two."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from weft.kernels.attention.call import power_of_two
from weft.kernels.attention.paged import PagedBatch
from weft.kernels.plan import plan_of


@dataclass(frozen=True, slots=True)
class WritePlan:
    """heads: of a row that a program copies, 2ⁿ"""

    heads: int
    warps: int


def write_kv(k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, batch: PagedBatch) -> None:
    """See `weft.kernels.attention.write_kv`."""
    rows, kv_heads, k_dim = k.shape
    plan = plan_of("cache_write", "any", WritePlan, k.device)
    write_rows[(rows, triton.cdiv(kv_heads, plan.heads))](
        k,
        v,
        k_pool,
        v_pool,
        batch.slot_mapping,
        kv_heads,
        *(stride for t in (k, v) for stride in t.stride()),
        *(stride for pool in (k_pool, v_pool) for stride in pool.stride()[1:3]),
        K_DIM=k_dim,
        V_DIM=v.shape[2],
        BLOCK_DIM=power_of_two(max(k_dim, v.shape[2])),
        BLOCK_HEADS=plan.heads,
        num_warps=plan.warps,
        enable_fp_fusion=True,
    )


@triton.jit
def write_rows(
    k: tl.tensor,
    v: tl.tensor,
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    slots: tl.tensor,
    kv_heads: tl.tensor,
    k_row_stride: tl.tensor,
    k_head_stride: tl.tensor,
    k_dim_stride: tl.tensor,
    v_row_stride: tl.tensor,
    v_head_stride: tl.tensor,
    v_dim_stride: tl.tensor,
    k_slot_stride: tl.tensor,
    k_pool_head_stride: tl.tensor,
    v_slot_stride: tl.tensor,
    v_pool_head_stride: tl.tensor,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
) -> None:
    """`pool[slots[row], head] = rows[row, head]`, of K and V. Program (row, block of heads)."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    dim = tl.arange(0, BLOCK_DIM)[None, :]
    is_k = (head < kv_heads) & (dim < K_DIM)
    is_v = (head < kv_heads) & (dim < V_DIM)
    k_at = k + row * k_row_stride + head * k_head_stride + dim * k_dim_stride
    v_at = v + row * v_row_stride + head * v_head_stride + dim * v_dim_stride
    k_block = tl.load(k_at, mask=is_k)
    v_block = tl.load(v_at, mask=is_v)
    tl.store(k_pool + slot * k_slot_stride + head * k_pool_head_stride + dim, k_block, mask=is_k)
    tl.store(v_pool + slot * v_slot_stride + head * v_pool_head_stride + dim, v_block, mask=is_v)
