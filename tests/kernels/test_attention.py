"""Paged attention and cache writes against their definition and against plain causal attention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weft.kernels.attention import PagedBatch, gathered, paged_attention, reference, write_kv
from weft.kernels.testing import assert_close

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Problem:
    """Sequences of (cached, new) tokens over shuffled pages; unowned slots of the pools are NaN."""

    q: Tensor
    k: list[Tensor]
    v: list[Tensor]
    k_pool: Tensor
    v_pool: Tensor
    batch: PagedBatch
    sinks: Tensor


def problem(
    lengths: Sequence[tuple[int, int]],
    *,
    kv_heads: int = 2,
    group: int = 2,
    k_dim: int = 16,
    v_dim: int = 16,
    page_size: int = 4,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    totals = [cached + new for cached, new in lengths]
    counts = [-(-total // page_size) for total in totals]
    pages = torch.randperm(sum(counts), generator=random) + 1  # page 0 is padding
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for row, own in zip(tables, pages.split(counts), strict=True):
        row[: len(own)] = own
    starts = [0]
    for _, new in lengths:
        starts.append(starts[-1] + new)
    k = [normal(total, kv_heads, k_dim) for total in totals]
    v = [normal(total, kv_heads, v_dim) for total in totals]
    k_pool = torch.full((sum(counts) + 1, page_size, kv_heads, k_dim), torch.nan, dtype=dtype)
    v_pool = torch.full((sum(counts) + 1, page_size, kv_heads, v_dim), torch.nan, dtype=dtype)
    mappings: list[list[Tensor]] = [[], []]
    for row, total, (cached, _) in zip(tables, totals, lengths, strict=True):
        positions = torch.arange(total)
        slots = row[positions // page_size].long() * page_size + positions % page_size
        mappings[0].append(slots[:cached])
        mappings[1].append(slots[cached:])
    before, step = (
        PagedBatch(torch.cat(slots), tuple(starts), tuple(totals), tables, page_size)
        for slots in mappings
    )
    for batch, part in (before, 0), (step, 1):
        new_k, new_v = (
            torch.cat([t.split([c, n])[part] for t, (c, n) in zip(ts, lengths, strict=True)])
            for ts in (k, v)
        )
        write_kv(new_k, new_v, k_pool, v_pool, batch)
    return Problem(
        q=normal(starts[-1], kv_heads * group, k_dim),
        k=k,
        v=v,
        k_pool=k_pool,
        v_pool=v_pool,
        batch=step,
        sinks=normal(kv_heads * group),
    )


def plain_attention(
    p: Problem, scaling: float, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """What a model computes without pages: repeated heads, one mask, softmax in float32."""
    results = []
    for index, (k, v) in enumerate(zip(p.k, p.v, strict=True)):
        q = p.q[p.batch.query_starts[index] : p.batch.query_starts[index + 1]]
        groups = q.shape[1] // k.shape[1]
        key_states, value_states = (
            t.transpose(0, 1).repeat_interleave(groups, dim=0).double() for t in (k, v)
        )
        weights = q.transpose(0, 1).double() @ key_states.transpose(1, 2) * scaling
        if softcap is not None:
            weights = torch.tanh(weights / softcap) * softcap
        own = torch.arange(len(k) - len(q), len(k))[:, None]
        other = torch.arange(len(k))
        visible = (other <= own) & (other > own - (window or len(k)))
        weights = weights.masked_fill(~visible, torch.finfo(torch.float64).min)
        if sinks is not None:
            weights = torch.cat(
                [weights, sinks.double()[:, None, None].expand(-1, len(q), 1)], dim=-1
            )
        weights = weights.softmax(-1)[..., : len(k)]
        results.append((weights @ value_states).transpose(0, 1))
    return torch.cat(results)


def attention(p: Problem, **options: object) -> Tensor:
    arguments = {"scaling": 0.3, "window": None, "softcap": None, "sinks": None, **options}
    return paged_attention(p.q, p.k_pool, p.v_pool, p.batch, **arguments)  # type: ignore[arg-type]


@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from([1, 1, 1, 2, 7, 80])), min_size=1, max_size=7
    ),
    heads=st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 1)]),
    dims=st.sampled_from([(16, 16), (8, 8), (24, 12), (12, 20)]),
    page_size=st.sampled_from([1, 4, 16]),
    dtype=st.sampled_from(DTYPES),
    window=st.sampled_from([None, None, 1, 5, 33]),
    softcap=st.sampled_from([None, None, 2.0]),
    with_sinks=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_attention_is_its_definition_and_what_a_model_computes(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    dims: tuple[int, int],
    page_size: int,
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
    seed: int,
) -> None:
    p = problem(
        lengths,
        kv_heads=heads[0],
        group=heads[1],
        k_dim=dims[0],
        v_dim=dims[1],
        page_size=page_size,
        dtype=dtype,
        seed=seed,
    )
    sinks = p.sinks if with_sinks else None
    options = {"scaling": dims[0] ** -0.5, "window": window, "softcap": softcap, "sinks": sinks}
    expected = plain_attention(p, **options)  # type: ignore[arg-type]
    defined = reference.paged_attention(p.q, p.k_pool, p.v_pool, p.batch, **options)  # type: ignore[arg-type]
    assert_close(defined, expected, dtype)
    assert_close(attention(p, **options), expected, dtype)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 9])
def test_decodes_are_padded_in_buckets_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch, group: int, dtype: torch.dtype, window: int | None
) -> None:
    monkeypatch.setattr(gathered, "BUCKET_ELEMENTS", 40 * 2 * 16)  # 40 keys
    lengths = [(cached, 1) for cached in (70, 3, 0, 12, 12, 39, 8)]
    p = problem(lengths, group=group, dtype=dtype)
    expected = plain_attention(p, 0.3, window, None, None)
    assert_close(attention(p, window=window), expected, dtype)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_nan_of_one_sequence_reaches_no_other(softcap: float | None) -> None:
    p = problem([(5, 1), (9, 1), (3, 6), (2, 4)])
    clean = attention(p, softcap=softcap)
    slots = p.batch.slot_mapping[[1, 3]]  # of the second and third sequence
    p.k_pool.flatten(0, 1)[slots] = torch.nan
    p.v_pool.flatten(0, 1)[slots] = torch.nan
    result = attention(p, softcap=softcap)
    assert torch.isnan(result[1]).all()
    rows = [0, *range(8, 12)]
    assert torch.equal(result[rows], clean[rows])


def test_a_sequence_without_rows_in_the_step_is_skipped() -> None:
    p = problem([(5, 1), (4, 3)])
    starts, lens = p.batch.query_starts, p.batch.kv_lens
    tables = p.batch.block_tables[[0, 0, 1]]
    batch = replace(
        p.batch,
        query_starts=(starts[0], starts[1], starts[1], starts[2]),
        kv_lens=(lens[0], 2, lens[1]),
        block_tables=tables,
    )
    assert torch.equal(attention(replace(p, batch=batch)), attention(p))


def test_write_kv_touches_only_the_rows_places() -> None:
    p = problem([(5, 1), (4, 3)], k_dim=8, v_dim=4)
    before = p.k_pool.clone()
    k, v = torch.ones(4, 2, 8), torch.full((4, 2, 4), 2.0)
    write_kv(k, v, p.k_pool, p.v_pool, p.batch)
    written = torch.zeros(p.k_pool.flatten(0, 1).shape[0], dtype=torch.bool)
    written[p.batch.slot_mapping] = True
    assert (p.k_pool.flatten(0, 1)[written] == 1).all()
    assert (p.v_pool.flatten(0, 1)[written] == 2).all()
    kept = p.k_pool.flatten(0, 1)[~written]
    assert torch.equal(kept.nan_to_num(7), before.flatten(0, 1)[~written].nan_to_num(7))
