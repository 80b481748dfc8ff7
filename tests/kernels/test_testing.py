"""The tolerances must be able to fail."""

import pytest
import torch

from weft.kernels.low_rank import reference
from weft.kernels.testing import POPULARITIES, assert_close, low_rank_problem

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]
)
def test_assert_close_sees_one_wrong_element(dtype: torch.dtype, error: float) -> None:
    expected = torch.ones(32, 64)
    actual = expected.to(dtype, copy=True)
    assert_close(actual, expected, dtype)
    actual[3, 5] += error
    with pytest.raises(AssertionError):
        assert_close(actual, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_assert_close_sees_one_dropped_rank(dtype: torch.dtype) -> None:
    problem = low_rank_problem(rows=8, ranks=[64], in_features=96, out_features=96, dtype=dtype)
    expected, actual = problem.y.clone(), problem.y.clone()
    reference.low_rank_add_(expected, problem.x, problem.table, problem.segments)
    pair = problem.table.pair(0)
    assert pair is not None
    pair[1][17] = 0
    reference.low_rank_add_(actual, problem.x, problem.table, problem.segments)
    with pytest.raises(AssertionError):
        assert_close(actual, expected, dtype)


def test_assert_close_refuses_nan() -> None:
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([torch.nan]), torch.tensor([1.0]), torch.float32)


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_problems_sort_rows_by_slot_after_the_base_rows(popularity: str) -> None:
    problem = low_rank_problem(
        rows=20, ranks=[4, 0, 8], in_features=6, out_features=5, popularity=popularity, base_rows=3
    )
    slots = [segment.slot for segment in problem.segments]
    assert slots == sorted(set(slots))
    assert problem.segments.items[0].start == 3
    assert problem.segments.items[-1].stop == problem.segments.rows == len(problem.x) == 23
    assert len(slots) == {"distinct": 3, "identical": 1}.get(popularity, len(slots))
