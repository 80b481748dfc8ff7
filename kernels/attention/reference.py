"""Paged attention in plain torch: the definition that every other backend is held to."""

import torch
from torch import Tensor

from weft.kernels.attention.paged import PagedBatch


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
    groups = q.shape[1] // k_pool.shape[2]
    out = q.new_empty(*q.shape[:2], v_pool.shape[3])
    for index, length in enumerate(batch.kv_lens):
        rows = slice(batch.query_starts[index], batch.query_starts[index + 1])
        pages = batch.block_tables[index].long()
        k, v = (
            pool[pages].flatten(0, 1)[:length].float().repeat_interleave(groups, dim=1)
            for pool in (k_pool, v_pool)
        )
        scores = torch.einsum("qhd,khd->hqk", q[rows].float(), k) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores.masked_fill_(~_visible(scores, length, window), float("-inf"))
        if sinks is not None:
            sink = sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., :length]
        out[rows] = torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
    return out


def _visible(scores: Tensor, length: int, window: int | None) -> Tensor:
    keys = torch.arange(length, device=scores.device)
    queries = keys[length - scores.shape[1] :, None]
    visible = keys <= queries
    return visible if window is None else visible & (keys > queries - window)
