"""The low-rank verbs against their definition: on the CPU, on a GPU where there is one, and (in the
process that test_low_rank_triton.py starts) by Triton's interpreter."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.kernels.experts import Routing
from weft.kernels.low_rank import LowRankTable, arena_dtype, reference
from weft.kernels.segments import Segment, Segments
from weft.kernels.testing import POPULARITIES, LowRankProblem, assert_close, low_rank_problem

if os.environ.get("TRITON_INTERPRET") == "1":
    from weft.kernels.low_rank import triton as verbs

    DEVICES = pytest.mark.parametrize("device", ["cpu"])
else:
    from weft.kernels import low_rank as verbs

    DEVICES = pytest.mark.parametrize(
        "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
    )

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

problems = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 90),
        "ranks": st.lists(st.sampled_from([0, 1, 3, 8, 16, 50]), min_size=1, max_size=6),
        "in_features": st.sampled_from([1, 7, 64, 130]),
        "out_features": st.sampled_from([1, 5, 64, 150]),
        "popularity": st.sampled_from(POPULARITIES),
        "base_rows": st.integers(0, 5),
        "experts": st.sampled_from([1, 1, 3]),
        "dtype": st.sampled_from(DTYPES),
        "arena_dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 2**20),
    }
)


@DEVICES
@given(arguments=problems)
def test_add_is_its_definition(device: str, arguments: dict[str, Any]) -> None:
    problem = low_rank_problem(**arguments, device=device)
    expected = problem.y.clone()
    reference.low_rank_add_(expected, problem.x, problem.table, problem.segments)
    add(problem)
    assert_close(problem.y, expected, problem.y.dtype)


@DEVICES
@given(arguments=problems)
def test_embed_add_is_its_definition(device: str, arguments: dict[str, Any]) -> None:
    problem = low_rank_problem(**arguments, device=device)
    expected = problem.y.clone()
    reference.low_rank_embed_add_(expected, problem.ids, problem.table, problem.segments)
    embed_add(problem)
    assert_close(problem.y, expected, problem.y.dtype)


runs = st.tuples(st.integers(-1, 2), st.sampled_from([1, 1, 2, 5, 40]))
routings = st.fixed_dictionaries(
    {
        "runs": st.lists(runs, min_size=1, max_size=6),
        "experts": st.integers(1, 4),
        "choices": st.integers(1, 2),
        "dtype": st.sampled_from(DTYPES),
        "arena_dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 2**20),
    }
)


@DEVICES
@given(arguments=routings)
def test_pairs_that_a_router_chose_get_what_their_slot_and_expert_add(
    device: str, arguments: dict[str, Any]
) -> None:
    runs, experts, choices = (arguments.pop(name) for name in ("runs", "experts", "choices"))
    slots = [slot for slot, count in runs for _ in range(count)]
    random = torch.Generator().manual_seed(arguments["seed"])
    order = torch.rand(len(slots), experts, generator=random).argsort(dim=1)
    routing = Routing.of(order[:, :choices].to(device), experts)
    segments = routing.segments(Segments.from_slots(slots))
    problem = low_rank_problem(
        rows=len(routing.rows),
        ranks=[3, 0, 50],
        in_features=64,
        out_features=150,
        experts=experts,
        device=device,
        **arguments,
    )
    expected = problem.y.clone()
    only_told = Segments(segments.items, segments.rows)
    reference.low_rank_add_(expected, problem.x, problem.table, only_told)
    verbs.low_rank_add_(problem.y, problem.x, problem.table, segments)
    assert_close(problem.y, expected, problem.y.dtype)


@DEVICES
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_from_1_to_256_mix_in_one_batch(device: str, dtype: torch.dtype) -> None:
    problem = low_rank_problem(
        rows=24,
        ranks=[256, 1, 17, 64],
        in_features=96,
        out_features=40,
        dtype=dtype,
        arena_dtype=dtype,
        device=device,
    )
    expected = problem.y.clone()
    reference.low_rank_add_(expected, problem.x, problem.table, problem.segments)
    add(problem)
    assert_close(problem.y, expected, dtype)


def add(problem: LowRankProblem) -> None:
    verbs.low_rank_add_(problem.y, problem.x, problem.table, problem.segments)


def embed_add(problem: LowRankProblem) -> None:
    verbs.low_rank_embed_add_(problem.y, problem.ids, problem.table, problem.segments)


VERBS = pytest.mark.parametrize("verb", [add, embed_add])


@DEVICES
@VERBS
@pytest.mark.parametrize("dtype", DTYPES)
def test_base_rows_between_segments_keep_their_bits(
    device: str, verb: Callable[[LowRankProblem], None], dtype: torch.dtype
) -> None:
    problem = low_rank_problem(
        rows=9, ranks=[4, 2], in_features=6, out_features=5, dtype=dtype, device=device
    )
    problem = with_segments(problem, Segment(1, 1, 3), Segment(0, 3, 3), Segment(0, 5, 8))
    base = [0, 3, 4, 8]
    odd = [-0.0, torch.nan, torch.inf, 0.0, -1e-7]
    problem.y[base] = torch.tensor(odd, dtype=dtype, device=device)
    before = problem.y.clone()
    verb(problem)
    bits = torch.int16 if dtype.itemsize == 2 else torch.int32
    assert torch.equal(problem.y[base].view(bits), before[base].view(bits))
    assert not torch.equal(problem.y[[1, 2, 5, 6, 7]], before[[1, 2, 5, 6, 7]])


def with_segments(problem: LowRankProblem, *items: Segment) -> LowRankProblem:
    segments = Segments(items, len(problem.y))
    return LowRankProblem(problem.y, problem.x, problem.ids, problem.table, segments)


@DEVICES
@VERBS
def test_a_base_only_batch_after_an_adapter_batch_is_untouched(
    device: str, verb: Callable[[LowRankProblem], None]
) -> None:
    problem = low_rank_problem(rows=6, ranks=[4, 2], in_features=6, out_features=5, device=device)
    verb(problem)
    before = problem.y.clone()
    verb(with_segments(problem))
    assert torch.equal(problem.y, before)


@DEVICES
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_one_row_or_adapter_reaches_no_other_row(device: str, dtype: torch.dtype) -> None:
    problem = low_rank_problem(
        rows=8,
        ranks=[4, 4],
        in_features=6,
        out_features=5,
        base_rows=2,
        dtype=dtype,
        arena_dtype=dtype,
        device=device,
    )
    clean = problem.y.clone()
    reference.low_rank_add_(clean, problem.x, problem.table, problem.segments)
    problem.x[[0, 9]] = torch.nan  # a base row, and a row of slot 1
    poisoned = problem.table.pair(0)
    assert poisoned is not None
    poisoned[0].fill_(torch.nan)
    add(problem)
    assert problem.y.isnan().any(dim=1).nonzero().flatten().tolist() == [2, 3, 4, 5, 9]
    assert_close(problem.y[[0, 1, 6, 7, 8]], clean[[0, 1, 6, 7, 8]], dtype)


@DEVICES
def test_a_row_is_computed_alike_with_and_without_others(device: str) -> None:
    problem = low_rank_problem(
        rows=40, ranks=[8, 24, 4], in_features=96, out_features=64, device=device
    )
    alone = problem.y.clone()
    add(problem)
    for segment in problem.segments:
        verbs.low_rank_add_(alone, problem.x, problem.table, Segments((segment,), len(problem.y)))
    assert torch.equal(problem.y, alone)


@DEVICES
def test_strided_inputs_are_read_where_they_lie(device: str) -> None:
    problem = low_rank_problem(rows=5, ranks=[4], in_features=6, out_features=8, device=device)
    expected = problem.y.clone()
    reference.low_rank_add_(expected, problem.x, problem.table, problem.segments)
    x = torch.empty(6, 5, device=device).copy_(problem.x.T).T
    y = torch.zeros(5, 20, device=device)
    y[:, 4:12] = problem.y
    verbs.low_rank_add_(y[:, 4:12], x, problem.table, problem.segments)
    assert_close(y[:, 4:12], expected, torch.float32)
    assert not y[:, :4].any()
    assert not y[:, 12:].any()


@DEVICES
def test_each_expert_of_a_slot_has_its_own_pair(device: str) -> None:
    problem = low_rank_problem(
        rows=3, ranks=[2], in_features=3, out_features=5, experts=3, device=device
    )
    problem = with_segments(problem, Segment(0, 0, 1, expert=2), Segment(0, 2, 3, expert=0))
    expected = problem.y.clone()
    for row, expert in ((0, 2), (2, 0)):
        pair = problem.table.pair(0, expert)
        assert pair is not None
        expected[row] += problem.x[row] @ pair[0].T @ pair[1]
    add(problem)
    assert_close(problem.y, expected, torch.float32)


@DEVICES
def test_a_cleared_slot_adds_nothing_and_a_set_one_its_new_pair(device: str) -> None:
    problem = low_rank_problem(rows=4, ranks=[4], in_features=6, out_features=5, device=device)
    problem.table.clear(0)
    before = problem.y.clone()
    add(problem)
    assert torch.equal(problem.y, before)
    problem.table.arena.fill_(1.0)
    problem.table.set(0, offset_a=4, offset_b=20, rank=2)
    add(problem)
    assert_close(problem.y, before + 2 * problem.x.sum(1, keepdim=True), torch.float32)


def test_the_cpu_arena_is_float32_and_a_gpu_arena_follows_the_base() -> None:
    assert arena_dtype(torch.device("cpu"), torch.bfloat16) == torch.float32
    assert arena_dtype(torch.device("cuda"), torch.bfloat16) == torch.bfloat16


def test_the_device_table_repeats_the_pairs() -> None:
    table = LowRankTable(torch.zeros(100), slots=3, in_features=4, out_features=6)
    table.set(2, offset_a=12, offset_b=40, rank=5)
    assert table.ranks.tolist() == [0, 0, 5]
    assert (table.offsets_a[2], table.offsets_b[2], table.max_rank) == (12, 40, 5)
    assert table.any_in([0, 2])
    assert not table.any_in([0, 1])
    table.set(0, offset_a=0, offset_b=40, rank=3)
    table.set(2, offset_a=12, offset_b=40, rank=2)
    assert table.max_rank == 3
    table.clear(0)
    assert (table.ranks.tolist(), table.max_rank) == ([0, 0, 2], 2)
    table.clear(2)
    table.clear(1)
    assert table.ranks.tolist() == [0, 0, 0]
    assert (table.pair(2), table.max_rank) == (None, 0)


def test_the_pairs_of_all_experts_must_fit() -> None:
    table = LowRankTable(torch.zeros(100), slots=1, in_features=4, out_features=6, experts=3)
    table.set(0, offset_a=0, offset_b=24, rank=2)
    with pytest.raises(ValueError, match=r"\[3, 2, 6\] at element 68 does not fit"):
        table.set(0, offset_a=0, offset_b=68, rank=2)


@pytest.mark.parametrize(
    ("slot", "offset_a", "offset_b", "rank"),
    [
        (3, 0, 0, 1),
        (-1, 0, 0, 1),
        (0, -1, 0, 1),
        (0, 0, 95, 1),
        (0, 0, 0, 0),
        (0, 80, 0, 6),
        (0, 2, 0, 1),
    ],
)
def test_a_pair_outside_the_table_or_arena_is_refused(
    slot: int, offset_a: int, offset_b: int, rank: int
) -> None:
    table = LowRankTable(torch.zeros(100), slots=3, in_features=4, out_features=6)
    with pytest.raises(ValueError, match=r"slot|does not fit|multiple of"):
        table.set(slot, offset_a, offset_b, rank)
    assert not table.any_in(range(3))


def test_an_arena_of_two_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="one contiguous dimension"):
        LowRankTable(torch.zeros(4, 4), slots=1, in_features=2, out_features=2)
