"""Attention over a paged cache. Knows no model, layer or request."""

from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

from weft.kernels.attention import gathered
from weft.kernels.attention.paged import PagedBatch

__all__ = ["PagedBatch", "paged_attention", "write_kv"]

_HAS_TRITON = find_spec("triton") is not None


def write_kv(k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, batch: PagedBatch) -> None:
    """Writes each row's key and value to its place in the pools.

    k: [T, kv_heads, k_dim], v: [T, kv_heads, v_dim]
    k_pool: [pages, page_size, kv_heads, k_dim], v_pool likewise; changed in place
    """
    _backend(k).write_kv(k, v, k_pool, v_pool, batch)


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    batch: PagedBatch,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`softmax(softcap(q kᵀ · scaling)) v` over each sequence's own visible keys.

    q: [T, heads, k_dim]; heads is a multiple of the pools' kv_heads, `h // group` its KV head
    k_pool: [pages, page_size, kv_heads, k_dim], v_pool: [pages, page_size, kv_heads, v_dim]
    window: query i sees key j where `i - window < j <= i`; None sees all `j <= i`
    softcap: scores become `softcap · tanh(score / softcap)`
    sinks: [heads], one more logit in each softmax's denominator
    Returns [T, heads, v_dim] in q's dtype. Slots that a sequence does not own are never read into
    its result, whatever they hold.
    """
    result: Tensor = _backend(q).paged_attention(
        q, k_pool, v_pool, batch, scaling=scaling, window=window, softcap=softcap, sinks=sinks
    )
    return result


def _backend(tensor: Tensor) -> ModuleType:
    if tensor.is_cuda and _HAS_TRITON:
        from weft.kernels.attention import triton

        return triton
    return gathered
