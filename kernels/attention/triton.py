"""Paged attention on a GPU: decodes and prompts by a kernel each, never a copy of a cache.

Nothing here waits for the device.
"""

from itertools import pairwise

import torch
from torch import Tensor

from weft.kernels.attention.call import Call
from weft.kernels.attention.paged import PagedBatch
from weft.kernels.attention.triton_decode import attend_decodes
from weft.kernels.attention.triton_prefill import attend_prompts
from weft.kernels.attention.triton_write import write_kv

__all__ = ["paged_attention", "write_kv"]


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    batch: PagedBatch,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """See `weft.kernels.attention.paged_attention`."""
    q = q if q.stride(-1) == 1 else q.contiguous()
    out = torch.empty(*q.shape[:2], v_pool.shape[3], dtype=q.dtype, device=q.device)
    call = Call(out, q, k_pool, v_pool, batch, scaling, window, softcap, sinks)
    queries = batch.once(_queries)
    if 1 in queries:
        attend_decodes(call)
    if queries - {0, 1}:
        attend_prompts(call)
    return out


def _queries(batch: PagedBatch) -> frozenset[int]:
    """How many queries sequences have."""
    starts = batch.query_starts
    return frozenset(stop - start for start, stop in pairwise(starts))
