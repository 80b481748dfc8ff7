"""Random problems and the one comparison for kernel tests and benchmarks. Knows no backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal

import torch
from torch import Tensor

from weft.kernels.attention.paged import PagedBatch
from weft.kernels.low_rank.table import ALIGNMENT_BYTES, LowRankTable
from weft.kernels.segments import Segment, Segments

Popularity = Literal["distinct", "uniform", "skewed", "identical"]
POPULARITIES: tuple[Popularity, ...] = ("distinct", "uniform", "skewed", "identical")

# Problems are scaled so that results are of size 1: one rounding step of the dtype, with room for
# sums in another order.
_TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Raises AssertionError where results computed in `dtype` differ by more than its rounding."""
    tolerance = _TOLERANCES[dtype]
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class LowRankProblem:
    """Arguments of a low-rank verb: y is [rows, out_features], x [rows, in_features]."""

    y: Tensor
    x: Tensor
    ids: Tensor
    table: LowRankTable
    segments: Segments


def low_rank_problem(
    *,
    rows: int,
    ranks: Sequence[int],
    in_features: int,
    out_features: int,
    popularity: Popularity = "distinct",
    base_rows: int = 0,
    experts: int = 1,
    dtype: torch.dtype = torch.float32,
    arena_dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> LowRankProblem:
    """`base_rows` rows of the base, then `rows` rows of adapters with these ranks, sorted by slot.

    With several experts each row belongs to a random one, and rows are sorted by expert first.
    A rank of 0 is an adapter that has no pair in the module. Pairs lie in the arena in random
    order, with gaps of NaN that no kernel may read.
    """
    random = torch.Generator().manual_seed(seed)
    slots = [-1] * base_rows + _slots(popularity, rows, len(ranks), random)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return LowRankProblem(
        y=normal(len(slots), out_features).to(device, dtype),
        x=normal(len(slots), in_features).to(device, dtype),
        ids=torch.randint(in_features, (len(slots),), generator=random).to(device),
        table=_table(ranks, in_features, out_features, experts, random, arena_dtype, device),
        segments=_segments(slots, torch.randint(experts, (len(slots),), generator=random)),
    )


@dataclass(frozen=True)
class PagedProblem:
    """Arguments of paged attention, and each sequence's keys and values without pages."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    batch: PagedBatch
    sinks: Tensor
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]


def paged_problem(
    lengths: Sequence[tuple[int, int]],
    *,
    kv_heads: int = 2,
    group: int = 2,
    k_dim: int = 16,
    v_dim: int = 16,
    page_size: int = 4,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> PagedProblem:
    """Sequences of (cached, new) tokens on shuffled pages; places that none owns hold NaN."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(device, dtype)

    kv_lens = tuple(cached + new for cached, new in lengths)
    tables = _block_tables(kv_lens, page_size, random)
    k = tuple(normal(length, kv_heads, k_dim) for length in kv_lens)
    v = tuple(normal(length, kv_heads, v_dim) for length in kv_lens)
    slots = [
        table[torch.arange(length) // page_size].long() * page_size
        + torch.arange(length) % page_size
        for table, length in zip(tables, kv_lens, strict=True)
    ]
    places = torch.cat(slots).to(device)
    pages = int(tables.max()) + 1
    k_pool = torch.full((pages, page_size, kv_heads, k_dim), torch.nan, device=device, dtype=dtype)
    v_pool = torch.full((pages, page_size, kv_heads, v_dim), torch.nan, device=device, dtype=dtype)
    k_pool.flatten(0, 1)[places] = torch.cat(k)
    v_pool.flatten(0, 1)[places] = torch.cat(v)
    new = [place[cached:] for place, (cached, _) in zip(slots, lengths, strict=True)]
    batch = PagedBatch(
        slot_mapping=torch.cat(new).to(device),
        query_starts=tuple(accumulate((count for _, count in lengths), initial=0)),
        kv_lens=kv_lens,
        block_tables=tables.to(device),
        page_size=page_size,
    )
    q = normal(batch.query_starts[-1], kv_heads * group, k_dim)
    return PagedProblem(q, k_pool, v_pool, batch, normal(kv_heads * group), k, v)


def _block_tables(kv_lens: Sequence[int], page_size: int, random: torch.Generator) -> Tensor:
    """int32 [sequences, most pages]: pages 1, 2, ... in random order, padded by page 0."""
    counts = [-(-length // page_size) for length in kv_lens]
    pages = torch.randperm(sum(counts), generator=random) + 1
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for table, own in zip(tables, pages.split_with_sizes(counts), strict=True):
        table[: len(own)] = own
    return tables


def _slots(popularity: Popularity, rows: int, adapters: int, random: torch.Generator) -> list[int]:
    numbers = torch.arange(rows)
    if popularity == "identical":
        slots = torch.full((rows,), adapters - 1)
    elif popularity == "uniform":
        slots = torch.randint(adapters, (rows,), generator=random)
    elif popularity == "skewed":
        weights = 1 / torch.arange(1, adapters + 1) ** 1.5
        slots = torch.multinomial(weights, rows, replacement=True, generator=random)
    else:
        slots = numbers % adapters
    return sorted(slots.tolist())


def _segments(slots: Sequence[int], experts: Tensor) -> Segments:
    items: list[Segment] = []
    start = 0
    for (expert, slot), rows in groupby(sorted(zip(experts.tolist(), slots, strict=True))):
        stop = start + len(list(rows))
        if slot >= 0:
            items.append(Segment(slot, start, stop, expert))
        start = stop
    return Segments(tuple(items), len(slots))


def _table(
    ranks: Sequence[int],
    in_features: int,
    out_features: int,
    experts: int,
    random: torch.Generator,
    dtype: torch.dtype,
    device: str,
) -> LowRankTable:
    gap = ALIGNMENT_BYTES
    sizes = [experts * rank * (in_features + out_features) + 4 * gap for rank in ranks]
    arena = torch.full((sum(sizes),), torch.nan).to(device, dtype)
    table = LowRankTable(arena, len(ranks), in_features, out_features, experts)
    offset = 0
    for slot in torch.randperm(len(ranks), generator=random).tolist():
        rank = ranks[slot]
        if rank == 0:
            continue
        offset_b = _after(offset + experts * rank * in_features, gap)
        table.set(slot, offset, offset_b, rank)
        offset = _after(offset_b + experts * rank * out_features, gap)
        for expert in range(experts):
            a, b = _filled(table, slot, expert)
            a.copy_(torch.randn(a.shape, generator=random) * in_features**-0.5)
            b.copy_(torch.randn(b.shape, generator=random) * rank**-0.5)
    return table


def _after(offset: int, gap: int) -> int:
    return offset + gap + -offset % gap


def _filled(table: LowRankTable, slot: int, expert: int) -> tuple[Tensor, Tensor]:
    pair = table.pair(slot, expert)
    assert pair is not None
    return pair
