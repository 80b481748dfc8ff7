import pytest
import torch
from slot_rows import SLOTS, assert_rows, random, table_of
from torch import Tensor

from weft.kernels.dense import dense_add_, kronecker_add_, sparse_add_

DTYPES = (torch.float32, torch.bfloat16)
OUT, IN = 6, 8
ROWS = len(SLOTS)


def compressed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    row, column = matrix.nonzero(as_tuple=True)
    starts = torch.zeros(len(matrix) + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(row, minlength=len(matrix)).cumsum(0)
    return starts, column.int(), matrix[row, column]


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
