"""Paged attention by gathering each sequence's own keys and calling torch's attention on them.

Runs on any device; its sizes were measured on CPU (benchmarks/LOG.md). Grouped query heads are
rows of their KV head, so no key is copied for them. Sequences of similar length with equally many
queries share a call; a long chunk of a prompt is cut into blocks of queries, so that keys after a
block cost nothing.
A place that pads a bucket names a key of the same sequence, so nothing foreign is ever read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import attrgetter

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from weft.kernels.attention.paged import PagedBatch

QUERY_BLOCK = 64
BUCKET_ELEMENTS = 256 * 1024  # of gathered keys: more falls out of the cache between two reads

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""From q of shape [N, kv_heads, R, k_dim], k of [N, kv_heads, L, k_dim], v likewise and an additive
mask that broadcasts to [N, kv_heads, R, L] to [N, kv_heads, R, v_dim]."""


def write_kv(k: Tensor, v: Tensor, k_pool: Tensor, v_pool: Tensor, batch: PagedBatch) -> None:
    """See `weft.kernels.attention.write_kv`."""
    k_pool.flatten(0, 1).index_copy_(0, batch.slot_mapping, k)
    v_pool.flatten(0, 1).index_copy_(0, batch.slot_mapping, v)


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
    kv_heads = k_pool.shape[2]
    group = q.shape[1] // kv_heads
    out = q.new_empty(*q.shape[:2], v_pool.shape[3])
    attend: Attend = partial(_attend, scaling=scaling)
    bucket_tokens = BUCKET_ELEMENTS // (kv_heads * k_pool.shape[3])
    if softcap is not None or sinks is not None:
        attend = partial(_attend_explicitly, scaling=scaling, softcap=softcap, sinks=sinks)
        bucket_tokens = 0  # strided batches of plain matmuls are copied: one sequence at a time
    for read in batch.once(_reads, window, bucket_tokens, group, q.dtype):
        k = k_pool.flatten(0, 1).index_select(0, read.keys)
        v = v_pool.flatten(0, 1).index_select(0, read.keys)
        if isinstance(read, Bucket):
            out.index_copy_(0, read.rows, _together(q, k, v, read, attend))
        else:
            mask = batch.once(_block_mask, window, group, q.dtype)
            for rows, result in _in_blocks(q, k, v, read, mask, window, attend):
                out[rows] = result
    return out


@dataclass(frozen=True, slots=True)
class Bucket:
    """N sequences with R queries each: `rows` [N · R], `keys` [N · L] and an additive mask.

    The mask broadcasts to [N, kv_heads, group · R, L]; None hides nothing.
    """

    sequences: int
    rows: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `[start, stop)`, the last positions of one sequence, and its visible `keys` [L]."""

    start: int
    stop: int
    keys: Tensor


@dataclass(frozen=True, slots=True)
class _Sequence:
    index: int
    row: int
    queries: int
    first: int
    length: int

    @property
    def visible(self) -> int:
        return self.length - self.first

    @property
    def shape(self) -> tuple[int, int]:
        return self.queries, self.visible


def _reads(
    batch: PagedBatch, window: int | None, bucket_tokens: int, group: int, dtype: torch.dtype
) -> list[Bucket | Chunk]:
    sequences = [
        _Sequence(
            index=index,
            row=batch.query_starts[index],
            queries=queries,
            first=0 if window is None else max(0, length - queries - window + 1),
            length=length,
        )
        for index, length in enumerate(batch.kv_lens)
        if (queries := batch.query_starts[index + 1] - batch.query_starts[index])
    ]
    short = sorted((s for s in sequences if s.queries <= QUERY_BLOCK), key=attrgetter("shape"))
    reads: list[Bucket | Chunk] = [
        _bucket(batch, together, window, group, dtype) for together in _alike(short, bucket_tokens)
    ]
    for sequence in sequences:
        if sequence.queries > QUERY_BLOCK:
            keys = _slots(batch, [sequence]).flatten()
            reads.append(Chunk(sequence.row, sequence.row + sequence.queries, keys))
    return reads


def _alike(sequences: list[_Sequence], tokens: int) -> Iterator[list[_Sequence]]:
    """Cuts sequences, ascending by shape, into groups of equally many queries.

    Each has at most `tokens` keys when padded, or is one sequence.
    """
    together: list[_Sequence] = []
    for sequence in sequences:
        differs = together and sequence.queries != together[0].queries
        if differs or (together and (len(together) + 1) * sequence.visible > tokens):
            yield together
            together = []
        together.append(sequence)
    if together:
        yield together


def _bucket(
    batch: PagedBatch,
    together: list[_Sequence],
    window: int | None,
    group: int,
    dtype: torch.dtype,
) -> Bucket:
    device = batch.block_tables.device
    rows = [row for s in together for row in range(s.row, s.row + s.queries)]
    shape, longest = together[0].shape, together[-1].shape
    shapes = [shape] if shape == longest else [s.shape for s in together]
    mask = None if longest == (1, shape[1]) else _mask(shapes, window, dtype, device)
    if mask is not None:
        mask = mask.repeat(1, 1, group if shape[0] > 1 else 1, 1)
    keys = _slots(batch, together).flatten()
    return Bucket(len(together), torch.tensor(rows, device=device), keys, mask)


def _mask(
    shapes: Sequence[tuple[int, int]], window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Additive mask [N, 1, R, L] of sequences with these numbers of queries and visible keys.

    It hides what pads the keys, too. All have R queries, and the longest has L keys.
    """
    count, longest = shapes[-1]
    visible = torch.tensor([keys for _, keys in shapes], device=device)[:, None, None]
    queries = visible - count + torch.arange(count, device=device)[:, None]
    keys = torch.arange(longest, device=device)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None]


def _block_mask(batch: PagedBatch, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [group, QUERY_BLOCK, L] of a block of queries that are the last of L keys.

    L is the most that any long chunk's blocks see. Who sees what depends only on the distance to
    the last key, so a block of fewer queries or keys takes the last rows or columns.
    """
    counts = (stop - start for start, stop in pairwise(batch.query_starts))
    longest = max(keys for keys, n in zip(batch.kv_lens, counts, strict=True) if n > QUERY_BLOCK)
    if window is not None:
        longest = min(longest, window + QUERY_BLOCK - 1)
    mask = _mask([(QUERY_BLOCK, longest)], window, dtype, batch.block_tables.device)
    return mask[0].repeat(group, 1, 1)


def _slots(batch: PagedBatch, group: list[_Sequence]) -> Tensor:
    """The places in a pool of each sequence's visible keys, [N, longest], padded by its last."""
    device = batch.block_tables.device
    bounds = torch.tensor([[s.index, s.first, s.length - 1] for s in group], device=device)
    index, first, last = bounds.split_with_sizes([1, 1, 1], dim=1)
    positions = first + torch.arange(max(s.visible for s in group), device=device)
    positions = positions.minimum(last)
    pages = batch.block_tables[index, positions // batch.page_size].long()
    return pages * batch.page_size + positions % batch.page_size


def _together(q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, attend: Attend) -> Tensor:
    """Results [N · R, heads, v_dim] of a bucket's rows."""
    count, heads, kv_heads = bucket.sequences, q.shape[1], k.shape[1]
    group, each = heads // kv_heads, len(bucket.rows) // count
    queries = q.index_select(0, bucket.rows).view(count, each, kv_heads, group, -1)
    queries = queries.permute(0, 2, 3, 1, 4).reshape(count, kv_heads, group * each, -1)
    k, v = (t.view(count, -1, kv_heads, t.shape[-1]).transpose(1, 2) for t in (k, v))
    result = attend(queries, k, v, bucket.mask).view(count, kv_heads, group, each, -1)
    return result.permute(0, 3, 1, 2, 4).reshape(len(bucket.rows), heads, -1)


def _in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk: Chunk,
    mask: Tensor,
    window: int | None,
    attend: Attend,
) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges of a chunk with their results [rows, heads, v_dim]; mask: see `_block_mask`."""
    heads, kv_heads = q.shape[1], k.shape[1]
    group = heads // kv_heads
    k, v = (t.transpose(0, 1)[None] for t in (k, v))
    offset = len(chunk.keys) - chunk.stop  # of a row's own key
    for start in range(chunk.start, chunk.stop, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, chunk.stop))
        count = rows.stop - start
        first = 0 if window is None else max(0, start + offset - window + 1)
        keys = slice(first, rows.stop + offset)
        queries = q[rows].view(count, kv_heads, group, -1).permute(1, 2, 0, 3)
        result = attend(
            queries.reshape(1, kv_heads, group * count, -1),
            k[:, :, keys],
            v[:, :, keys],
            mask[:, -count:, first - keys.stop :].reshape(1, 1, group * count, -1),
        )
        result = result.view(kv_heads, group, count, -1).permute(2, 0, 1, 3)
        yield rows, result.reshape(count, heads, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scaling: float) -> Tensor:
    if q.shape[2] == 1 and q.dtype != torch.float32:
        # Torch's CPU attention is four times slower on one row than on two in 16 bits.
        twice = q.expand(-1, -1, 2, -1)
        return scaled_dot_product_attention(twice, k, v, mask, scale=scaling)[:, :, :1]
    return scaled_dot_product_attention(q, k, v, mask, scale=scaling)


def _attend_explicitly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    scores = (q.float() * scaling) @ k.float().transpose(2, 3)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores += mask
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        _, heads, rows, _ = scores.shape
        sink = sinks.float().view(heads, -1, 1).expand(-1, -1, rows * heads // len(sinks))
        scores = torch.cat([scores, sink.reshape(1, heads, rows, 1)], dim=-1)
        weights = scores.softmax(-1)[..., :-1]
    return (weights @ v.float()).to(q.dtype)
