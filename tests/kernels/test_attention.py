"""Paged attention and cache writes against their definition and against attention without pages."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weft.kernels.attention import gathered, paged_attention, reference, write_kv
from weft.kernels.testing import PagedProblem, assert_close, paged_problem

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

problems = st.builds(
    lambda heads, dims, **arguments: (
        arguments | {"kv_heads": heads[0], "group": heads[1], "k_dim": dims[0], "v_dim": dims[1]}
    ),
    heads=st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 1)]),
    dims=st.sampled_from([(16, 16), (8, 8), (24, 12), (12, 20)]),
    lengths=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from([1, 1, 1, 2, 7, 80])), min_size=1, max_size=7
    ),
    page_size=st.sampled_from([1, 4, 16]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)


def attention_without_pages(
    p: PagedProblem, scaling: float, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """What a model computes by itself: repeated heads and one mask, here in float64."""
    results = []
    for index, (k, v) in enumerate(zip(p.k, p.v, strict=True)):
        q = p.q[p.batch.query_starts[index] : p.batch.query_starts[index + 1]]
        groups = q.shape[1] // k.shape[1]
        keys, values = (t.transpose(0, 1).repeat_interleave(groups, dim=0).double() for t in (k, v))
        scores = q.transpose(0, 1).double() @ keys.transpose(1, 2) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        other = torch.arange(len(k), device=q.device)
        own = other[len(k) - len(q) :, None]
        visible = (other <= own) & (other > own - (window or len(k)))
        scores = scores.masked_fill(~visible, torch.finfo(torch.float64).min)
        if sinks is not None:
            sink = sinks.double()[:, None, None].expand(-1, len(q), 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = scores.softmax(-1)[..., : len(k)]
        results.append((weights @ values).transpose(0, 1))
    return torch.cat(results)


def attention(
    p: PagedProblem,
    scaling: float = 0.3,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    return paged_attention(
        p.q,
        p.k_pool,
        p.v_pool,
        p.batch,
        scaling=scaling,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )


@DEVICES
@given(
    arguments=problems,
    window=st.sampled_from([None, None, 1, 5, 33]),
    softcap=st.sampled_from([None, None, 2.0]),
    with_sinks=st.booleans(),
)
def test_attention_is_its_definition_and_what_a_model_computes(
    device: str,
    arguments: dict[str, Any],
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
) -> None:
    p = paged_problem(**arguments, device=device)
    sinks = p.sinks if with_sinks else None
    expected = attention_without_pages(p, 0.3, window, softcap, sinks)
    defined = reference.paged_attention(
        p.q,
        p.k_pool,
        p.v_pool,
        p.batch,
        scaling=0.3,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
    assert_close(defined, expected, p.q.dtype)
    assert_close(attention(p, 0.3, window, softcap, sinks), expected, p.q.dtype)


@DEVICES
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 9])
def test_decodes_are_padded_in_buckets_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    group: int,
    dtype: torch.dtype,
    window: int | None,
) -> None:
    monkeypatch.setattr(gathered, "BUCKET_ELEMENTS", 40 * 2 * 16)  # 40 keys
    lengths = [(cached, 1) for cached in (70, 3, 0, 12, 12, 39, 8)]
    p = paged_problem(lengths, group=group, dtype=dtype, device=device)
    expected = attention_without_pages(p, 0.3, window, None, None)
    assert_close(attention(p, window=window), expected, dtype)


@DEVICES
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_nan_of_one_sequence_reaches_no_other(device: str, softcap: float | None) -> None:
    p = paged_problem([(5, 1), (9, 1), (3, 6), (2, 4)], device=device)
    clean = attention(p, softcap=softcap)
    slots = p.batch.slot_mapping[[1, 3]]  # of the second and third sequence
    p.k_pool.flatten(0, 1)[slots] = torch.nan
    p.v_pool.flatten(0, 1)[slots] = torch.nan
    result = attention(p, softcap=softcap)
    assert result[1].isnan().all()
    rows = [0, *range(8, 12)]
    assert torch.equal(result[rows], clean[rows])


@DEVICES
def test_a_sequence_without_rows_in_the_step_is_skipped(device: str) -> None:
    p = paged_problem([(5, 1), (4, 3)], device=device)
    starts, lens = p.batch.query_starts, p.batch.kv_lens
    batch = replace(
        p.batch,
        query_starts=(starts[0], starts[1], starts[1], starts[2]),
        kv_lens=(lens[0], 2, lens[1]),
        block_tables=p.batch.block_tables[[0, 0, 1]],
    )
    assert torch.equal(attention(replace(p, batch=batch)), attention(p))


@DEVICES
def test_write_kv_touches_only_the_rows_places(device: str) -> None:
    p = paged_problem([(5, 1), (4, 3)], k_dim=8, v_dim=4, device=device)
    before = p.k_pool.clone()
    k = torch.ones(4, 2, 8, device=device)
    v = torch.full((4, 2, 4), 2.0, device=device)
    write_kv(k, v, p.k_pool, p.v_pool, p.batch)
    written = torch.zeros(p.k_pool.flatten(0, 1).shape[0], dtype=torch.bool, device=device)
    written[p.batch.slot_mapping] = True
    assert (p.k_pool.flatten(0, 1)[written] == 1).all()
    assert (p.v_pool.flatten(0, 1)[written] == 2).all()
    kept = p.k_pool.flatten(0, 1)[~written]
    assert torch.equal(kept.nan_to_num(7), before.flatten(0, 1)[~written].nan_to_num(7))
