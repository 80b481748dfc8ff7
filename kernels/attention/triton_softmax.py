"""A running softmax over blocks of cached keys, in Triton: what decodes and prompts share."""

import triton
import triton.language as tl

from weft.kernels.block_product import block_product

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def begin(
    sinks: tl.tensor,
    head: tl.tensor,
    has_sink: tl.tensor,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_V_DIM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The state before any key: sums of weighted values, the greatest score, sums of weights.

    Scores are in base 2. A sink is one weight without a value; with `sinks` None there is none.
    """
    sums = tl.zeros((BLOCK_ROWS, BLOCK_V_DIM), tl.float32)
    greatest = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    weights = tl.zeros((BLOCK_ROWS,), tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + head, mask=has_sink, other=0.0).to(tl.float32) * LOG2_E
        greatest = tl.where(has_sink, sink, greatest)
        weights = tl.where(has_sink, 1.0, weights)
    return sums, greatest, weights


@triton.jit
def fold(
    sums: tl.tensor,
    greatest: tl.tensor,
    weights: tl.tensor,
    q: tl.tensor,
    k_pool: tl.tensor,
    v_pool: tl.tensor,
    table: tl.tensor,
    first_key: tl.tensor,
    oldest_key: tl.tensor,
    end_key: tl.tensor,
    own_key: tl.tensor,
    scaling: tl.tensor,
    window: tl.tensor,
    k_slot_stride: tl.tensor,
    v_slot_stride: tl.tensor,
    SOFTCAP: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASKED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Folds the keys `[first_key, first_key + BLOCK_KEYS)` of one sequence into a state.

    q: [rows, k_dim]   own_key: [rows], the key up to which each row sees
    k_pool, v_pool: at the KV head   table: the sequence's pages
    MASKED: some keys may lie outside `[oldest_key, end_key)`, and are not read, or be unseen by
    some row; otherwise all rows see all keys
    """
    key = first_key + tl.arange(0, BLOCK_KEYS)
    is_key = (key >= oldest_key) & (key < end_key)
    if MASKED:
        page = tl.load(table + key // PAGE_SIZE, mask=is_key, other=0)
    else:
        page = tl.load(table + key // PAGE_SIZE)
    slot = page.to(tl.int64) * PAGE_SIZE + key % PAGE_SIZE
    k = _rows(k_pool + slot * k_slot_stride, is_key, K_DIM, q.shape[1], MASKED)
    scores = block_product(q, tl.trans(k), tl.zeros((q.shape[0], BLOCK_KEYS), tl.float32))
    if SOFTCAP > 0:
        scores = _tanh(scores * (scaling / SOFTCAP)) * (SOFTCAP * LOG2_E)
    else:
        scores = scores * (scaling * LOG2_E)
    if MASKED:
        is_seen = is_key[None, :] & (key[None, :] <= own_key[:, None])
        if WINDOWED:
            is_seen = is_seen & (key[None, :] > own_key[:, None] - window)
        scores = tl.where(is_seen, scores, -float("inf"))
    now = tl.maximum(greatest, tl.max(scores, 1))
    shift = tl.where(now == -float("inf"), 0.0, now)  # of a row that has seen nothing yet
    weight = tl.exp2(scores - shift[:, None])
    kept = tl.exp2(greatest - shift)
    v = _rows(v_pool + slot * v_slot_stride, is_key, V_DIM, sums.shape[1], MASKED)
    sums = block_product(weight.to(v.dtype), v, sums * kept[:, None])
    return sums, now, weights * kept + tl.sum(weight, 1)


@triton.jit
def mean(sums: tl.tensor, weights: tl.tensor) -> tl.tensor:
    """The weighted mean of the values; zeros for a row that has seen nothing."""
    return sums / tl.where(weights == 0.0, 1.0, weights)[:, None]


@triton.jit
def _rows(
    at: tl.tensor,
    is_row: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """[rows, BLOCK_DIM] from the first DIM values at each pointer, the rest filled by zeros."""
    dim = tl.arange(0, BLOCK_DIM)
    if DIM < BLOCK_DIM:
        is_value = (dim < DIM)[None, :]
        if MASKED:
            is_value = is_value & is_row[:, None]
        return tl.load(at[:, None] + dim[None, :], mask=is_value, other=0.0)
    if MASKED:
        return tl.load(at[:, None] + dim[None, :], mask=is_row[:, None], other=0.0)
    return tl.load(at[:, None] + dim[None, :])


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2_E)) + 1.0)
