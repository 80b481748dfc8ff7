import pytest
import torch
from slot_rows import SLOTS, assert_rows, random, table_of
from torch import Tensor

from weft.kernels.dense import CompressedRows, dense_add_, kronecker_add_, sparse_add_
from weft.kernels.segments import Segments
from weft.kernels.testing import assert_close

DTYPES = (torch.float32, torch.bfloat16)
OUT, IN = 6, 8
ROWS = len(SLOTS)


def compressed(matrix: Tensor) -> CompressedRows:
    row, column = matrix.nonzero(as_tuple=True)
    starts = torch.zeros(len(matrix) + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(row, minlength=len(matrix)).cumsum(0)
    return CompressedRows(starts, column.int(), matrix[row, column])


def sparse(slot: int) -> Tensor:
    matrix = random(OUT, IN, seed=slot) / IN**0.5
    matrix[random(OUT, IN, seed=slot + 9) > -0.5] = 0
    matrix[slot] = 0
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_is_added(dtype: torch.dtype) -> None:
    assert_rows(
        dense_add_,
        lambda y, x, entry: y + entry[0] @ x,
        table_of(lambda slot: (random(OUT, IN, seed=slot) / IN**0.5,)),
        random(ROWS, OUT).to(dtype),
        random(ROWS, IN).to(dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sparse_matrix_is_added(dtype: torch.dtype) -> None:
    assert_rows(
        lambda y, x, table, segments: sparse_add_(
            y, x, table_of(lambda slot: compressed(table.get(slot)[0])), segments
        ),
        lambda y, x, entry: y + entry[0] @ x,
        table_of(lambda slot: (sparse(slot),)),
        random(ROWS, OUT).to(dtype),
        random(ROWS, IN).to(dtype),
    )


def test_a_sparse_matrix_of_many_rows() -> None:
    matrix, x = sparse(1), random(9, IN)
    table = table_of(lambda slot: compressed(matrix))
    y = random(9, OUT, seed=2)
    expected = y + x @ matrix.T
    sparse_add_(y, x, table, Segments.from_slots([1] * 9))
    assert_close(y, expected, y.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kronecker_factors_of_several_shapes(dtype: torch.dtype) -> None:
    shapes = ((2, 4), (6, 1), (3, 2), (1, 8))

    def factors(slot: int) -> tuple[Tensor, Tensor]:
        a, c = shapes[slot % len(shapes)]
        return random(a, c, seed=slot), random(OUT // a, IN // c, seed=9) / IN**0.5

    assert_rows(
        kronecker_add_,
        lambda y, x, entry: y + torch.kron(*entry) @ x,
        table_of(factors),
        random(ROWS, OUT).to(dtype),
        random(ROWS, IN).to(dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outer", [(2, 4), (6, 1), (1, 8), (3, 2)])
def test_a_kronecker_product_is_added(dtype: torch.dtype, outer: tuple[int, int]) -> None:
    inner = (OUT // outer[0], IN // outer[1])
    assert_rows(
        kronecker_add_,
        lambda y, x, entry: y + torch.kron(*entry) @ x,
        table_of(lambda slot: (random(*outer, seed=slot), random(*inner, seed=9) / IN**0.5)),
        random(ROWS, OUT).to(dtype),
        random(ROWS, IN).to(dtype),
    )
