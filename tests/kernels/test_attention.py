"""Paged attention and cache writes against their definition and against attention without pages:
on the CPU, on a GPU where there is one, and (in the process that test_attention_triton.py starts)
by Triton's interpreter."""

import os
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weft.kernels.attention import gathered, reference
from weft.kernels.plan import PlanTable, generation, using
from weft.kernels.testing import PagedProblem, assert_close, paged_problem

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
if os.environ.get("TRITON_INTERPRET") == "1":
    from weft.kernels.attention import triton as verbs

    DEVICES = TRITON = pytest.mark.parametrize("device", ["cpu"])
else:
    from weft.kernels import attention as verbs

    DEVICES = pytest.mark.parametrize("device", ["cpu", GPU])
    TRITON = pytest.mark.parametrize("device", [GPU])
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
    result: Tensor = verbs.paged_attention(
        p.q,
        p.k_pool,
        p.v_pool,
        p.batch,
        scaling=scaling,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
    return result


def many_parts() -> PlanTable:
    """A plan by which short sequences are cut into up to four parts."""
    table = generation(90)
    decode = {
        problem: {**sizes, "keys": 16, "split_keys": 16, "splits": 4}
        for problem, sizes in table.plans["attention_decode"].items()
    }
    return PlanTable("many parts", None, {**table.plans, "attention_decode": decode})


PLANS = {"shipped": generation(90), "many parts": many_parts()}


@DEVICES
@given(
    plan=st.sampled_from(sorted(PLANS)),
    arguments=problems,
    window=st.sampled_from([None, None, 1, 5, 33]),
    softcap=st.sampled_from([None, None, 2.0]),
    with_sinks=st.booleans(),
)
def test_attention_is_its_definition_and_what_a_model_computes(
    device: str,
    plan: str,
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
    with using(PLANS[plan]):
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
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 5])
def test_chunks_of_equal_size_share_a_bucket(
    device: str, dtype: torch.dtype, window: int | None
) -> None:
    lengths = [(0, 6), (9, 6), (4, 1), (0, 6), (3, 64), (7, 64), (7, 64), (30, 6), (0, 65)]
    p = paged_problem(lengths, kv_heads=2, group=3, dtype=dtype, device=device)
    expected = attention_without_pages(p, 0.3, window, None, None)
    assert_close(attention(p, window=window), expected, dtype)


@DEVICES
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_chunks_of_one_step_see_what_is_theirs_in_layers_of_any_window(
    device: str, dtype: torch.dtype
) -> None:
    lengths = [(0, 150), (40, 70), (3, 200), (250, 1), (0, 65)]
    p = paged_problem(lengths, kv_heads=2, group=3, dtype=dtype, device=device)
    for window in (None, 5, 100, None):
        expected = attention_without_pages(p, 0.3, window, None, None)
        assert_close(attention(p, window=window), expected, dtype)


@DEVICES
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_nan_of_one_sequence_reaches_no_other(device: str, softcap: float | None) -> None:
    p = paged_problem([(5, 1), (9, 1), (3, 6), (2, 6)], device=device)
    clean = attention(p, softcap=softcap)
    slots = p.batch.slot_mapping[[1, 3]]  # of the second and third sequence
    p.k_pool.flatten(0, 1)[slots] = torch.nan
    p.v_pool.flatten(0, 1)[slots] = torch.nan
    result = attention(p, softcap=softcap)
    assert result[1].isnan().all()
    rows = [0, *range(8, 14)]
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
    verbs.write_kv(k, v, p.k_pool, p.v_pool, p.batch)
    written = torch.zeros(p.k_pool.flatten(0, 1).shape[0], dtype=torch.bool, device=device)
    written[p.batch.slot_mapping] = True
    assert (p.k_pool.flatten(0, 1)[written] == 1).all()
    assert (p.v_pool.flatten(0, 1)[written] == 2).all()
    kept = p.k_pool.flatten(0, 1)[~written]
    assert torch.equal(kept.nan_to_num(7), before.flatten(0, 1)[~written].nan_to_num(7))


@TRITON
@pytest.mark.parametrize("with_sinks", [False, True])
def test_a_step_of_decodes_reads_lengths_and_pages_when_it_runs(
    device: str, with_sinks: bool
) -> None:
    """What a captured step needs: one batch for a bucket, its tensors overwritten, rows padded."""
    p = paged_problem([(40, 1), (3, 1), (90, 1)], device=device)
    sinks = p.sinks if with_sinks else None
    expected = attention(p, sinks=sinks)
    rows, width = 5, p.batch.block_tables.shape[1] + 7
    bucket = replace(
        p.batch,
        query_starts=tuple(range(rows + 1)),
        kv_lens=(1,) * rows,
        block_tables=p.batch.block_tables.new_zeros(rows, width),
    )
    p.k_pool[0] = torch.nan
    padded = replace(p, q=torch.cat([p.q, p.q[:2]]), batch=bucket)
    with using(PLANS["many parts"]):
        attention(padded, sinks=sinks)
        bucket.block_tables[:3, : width - 7] = p.batch.block_tables
        bucket.lengths.copy_(torch.tensor([*p.batch.kv_lens, 0, 0]))
        result = attention(padded, sinks=sinks)
    assert_close(result[:3], expected, p.q.dtype)
    assert (result[3:] == 0).all()


@pytest.mark.gpu
def test_a_captured_step_replays_with_other_lengths_and_pages() -> None:
    p = paged_problem([(40, 1), (3, 1), (90, 1)], dtype=torch.bfloat16, device="cuda")
    expected = attention(p)
    bucket = replace(
        p.batch,
        query_starts=(0, 1, 2, 3),
        kv_lens=(1, 1, 1),
        block_tables=torch.zeros_like(p.batch.block_tables),
    )
    static = replace(p, batch=bucket)
    k, v = (torch.cat([of_one[-1:] for of_one in kept]) for kept in (p.k, p.v))
    with using(PLANS["many parts"]):
        attention(static)  # compiles, and makes what the capture must find
        verbs.write_kv(k, v, p.k_pool, p.v_pool, bucket)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            verbs.write_kv(k, v, p.k_pool, p.v_pool, bucket)
            result = attention(static)
    p.k_pool.flatten(0, 1)[bucket.slot_mapping] = torch.nan
    bucket.block_tables.copy_(p.batch.block_tables)
    bucket.lengths.copy_(p.batch.lengths)
    graph.replay()
    assert_close(result, expected, p.q.dtype)


@TRITON
@pytest.mark.parametrize("window", [None, 33])
def test_a_rows_bits_depend_on_no_other_sequence(device: str, window: int | None) -> None:
    lengths = [(90, 1), (0, 1), (17, 1), (30, 40)]
    p = paged_problem(lengths, dtype=torch.bfloat16, device=device)
    with using(PLANS["many parts"]):
        together = attention(p, window=window)
        for index, (cached, new) in enumerate(lengths):
            rows = slice(*p.batch.query_starts[index : index + 2])
            pages = -(-(cached + new) // p.batch.page_size)
            alone = replace(
                p.batch,
                query_starts=(0, new),
                kv_lens=(cached + new,),
                block_tables=p.batch.block_tables[[index], :pages].contiguous(),
            )
            result = attention(replace(p, q=p.q[rows], batch=alone), window=window)
            assert torch.equal(result, together[rows])


@TRITON
@pytest.mark.parametrize("window", [None, 20])
def test_a_prompts_bits_do_not_depend_on_its_chunks(device: str, window: int | None) -> None:
    p = paged_problem([(8, 150)], dtype=torch.bfloat16, device=device)
    whole = attention(p, window=window)
    chunks = (50, 3, 97)
    for stop, count in zip(accumulate(chunks), chunks, strict=True):
        rows = slice(stop - count, stop)
        batch = replace(p.batch, query_starts=(0, count), kv_lens=(8 + stop,))
        assert torch.equal(
            attention(replace(p, q=p.q[rows], batch=batch), window=window), whole[rows]
        )


@TRITON
def test_queries_keys_and_values_may_be_views(device: str) -> None:
    p = paged_problem([(5, 1), (4, 3)], device=device)
    rows, heads, dim = p.q.shape
    wide = p.q.new_full((rows, heads + 1, dim), torch.nan)
    wide[:, :heads] = p.q
    crossed = p.q.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attention(replace(p, q=wide[:, :heads])), attention(p))
    assert torch.equal(attention(replace(p, q=crossed)), attention(p))
    k = torch.randn(2, rows, 16, device=device).transpose(0, 1)
    v = torch.randn(2, 16, rows, device=device).permute(2, 0, 1)
    verbs.write_kv(k, v, p.k_pool, p.v_pool, p.batch)
    assert torch.equal(p.k_pool.flatten(0, 1)[p.batch.slot_mapping], k)
    assert torch.equal(p.v_pool.flatten(0, 1)[p.batch.slot_mapping], v)
