"""Which pairs are multiplied together, and that it does not show in a bit of what they add."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.kernels.low_rank import LowRankTable, low_rank_add_, low_rank_embed_add_
from weft.kernels.low_rank.batches import Batch, Place, batches
from weft.kernels.segments import Segment, Segments

IN, OUT, RANK = 48, 64, 9
EACH = RANK * (IN + OUT)
OWNERS = 6

places = st.lists(
    st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from([1, 9, 9])),
    max_size=12,
)


@given(places=places, data=st.data())
def test_batches_are_all_owners_in_order_each_at_its_place(
    places: list[Place | None], data: st.DataObject
) -> None:
    sizes = data.draw(
        st.lists(st.sampled_from([1, 1, 2]), min_size=len(places), max_size=len(places))
    )
    seen: list[Place | None] = []
    rows: list[int] = []
    for batch in batches(places, sizes, IN):
        seen += [_place(batch, index) for index in range(batch.owners)]
        rows += [batch.rows // batch.owners] * batch.owners
        assert batch.owners == 1 or (batch.first is not None and min(batch.steps) > 0)
    assert (seen, rows) == (places, sizes)


def _place(batch: Batch, index: int) -> Place | None:
    if batch.first is None:
        return None
    (a, b, rank), (step_a, step_b) = batch.first, batch.steps
    return a + index * step_a, b + index * step_b, rank


@pytest.mark.parametrize(
    ("where", "counts"),
    [
        ([0, 1, 2, 3, 4, 5], [6]),
        ([0, 2, 4, 6, 8, 10], [6]),
        ([0, 1, 2, 5, 6, 9], [3, 2, 1]),
        ([5, 4, 3, 2, 1, 0], [1] * 6),
    ],
)
def test_pairs_at_even_distances_are_one_batch(where: list[int], counts: list[int]) -> None:
    table = _table(where)
    owners = tuple((slot, 0) for slot in range(OWNERS))
    assert [batch.owners for batch in table.batches(owners, (1,) * OWNERS)] == counts


def test_owners_of_other_ranks_or_with_more_rows_are_apart() -> None:
    table = _table([0, 1, 2, 3, 4, 5])
    table.set(2, 2 * EACH, 2 * EACH + RANK * IN, RANK - 1)
    owners = tuple((slot, 0) for slot in range(OWNERS))
    found = table.batches(owners, (1, 1, 1, 1, 2, 2))
    assert [(batch.owners, batch.rows) for batch in found] == [(2, 2), (1, 1), (1, 1), (2, 4)]


def test_products_that_torch_computes_otherwise_in_batches_stay_apart() -> None:
    even = [(0, 0, 1), (1, 1, 1), (2, 2, 1)]
    assert [batch.owners for batch in batches(even, (1, 1, 1), 399)] == [1, 1, 1]
    assert [batch.owners for batch in batches(even, (1, 1, 1), 400)] == [3]
    assert [batch.owners for batch in batches(even, (2, 2, 2), 200)] == [3]


def test_a_pair_that_moved_is_found_where_it_is_now() -> None:
    table = _table([0, 1, 2, 3, 4, 5])
    owners = tuple((slot, 0) for slot in range(OWNERS))
    assert len(table.batches(owners, (1,) * OWNERS)) == 1
    table.set(1, 7 * EACH, 7 * EACH + RANK * IN, RANK)
    assert _added(table, [1] * OWNERS).equal(_added_alone(table, [1] * OWNERS))
    table.clear(3)
    assert _added(table, [1] * OWNERS).equal(_added_alone(table, [1] * OWNERS))


@given(
    where=st.permutations(range(12)).map(lambda places: places[:OWNERS]),
    is_sorted=st.booleans(),
    sizes=st.lists(st.sampled_from([1, 1, 2, 3]), min_size=OWNERS, max_size=OWNERS),
)
def test_what_a_batch_adds_has_the_bits_of_each_owner_alone(
    where: list[int], is_sorted: bool, sizes: list[int]
) -> None:
    table = _table(sorted(where) if is_sorted else where)
    assert _added(table, sizes).equal(_added_alone(table, sizes))


@given(where=st.permutations(range(12)).map(lambda places: sorted(places[:OWNERS])))
def test_what_a_batch_looks_up_has_the_bits_of_each_owner_alone(where: list[int]) -> None:
    table, segments = _table(where), _segments([2] * OWNERS)
    ids = torch.randint(0, IN, (segments.rows,), generator=torch.Generator().manual_seed(3))
    together = torch.zeros(segments.rows, OUT)
    low_rank_embed_add_(together, ids, table, segments)
    alone = torch.zeros_like(together)
    for segment in segments:
        low_rank_embed_add_(alone, ids, table, Segments((segment,), segments.rows))
    assert together.equal(alone)
    assert together.any()


def _table(where: list[int]) -> LowRankTable:
    """A slot for each number, its pair so many pairs behind the arena's beginning."""
    random = torch.Generator().manual_seed(1)
    table = LowRankTable(torch.randn(12 * EACH, generator=random), OWNERS, IN, OUT)
    for slot, place in enumerate(where):
        table.set(slot, place * EACH, place * EACH + RANK * IN, RANK)
    return table


def _segments(sizes: list[int]) -> Segments:
    starts = list(accumulate(sizes, initial=0))
    items = (
        Segment(slot, at, at + size)
        for slot, (at, size) in enumerate(zip(starts, sizes, strict=False))
    )
    return Segments(tuple(items), starts[-1])


def _added(table: LowRankTable, sizes: list[int]) -> torch.Tensor:
    segments = _segments(sizes)
    y, x = _rows(segments.rows)
    low_rank_add_(y, x, table, segments)
    return y


def _added_alone(table: LowRankTable, sizes: list[int]) -> torch.Tensor:
    segments = _segments(sizes)
    y, x = _rows(segments.rows)
    for segment in segments:
        low_rank_add_(y, x, table, Segments((segment,), segments.rows))
    return y


def _rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return torch.randn(count, OUT, generator=random), torch.randn(count, IN, generator=random)
