import pytest
import torch
from slot_rows import SLOTS, assert_rows, random, table_of
from torch import Tensor

from weft.kernels.replacement import replace_embedded_, replace_outputs_

DTYPES = (torch.float32, torch.bfloat16)
WIDTH, VOCABULARY = 8, 20
ROWS = len(SLOTS)


def rows_of(slot: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([0, 3 + slot, 11, 19])
    return ids, random(len(ids), WIDTH, seed=slot) / WIDTH**0.5


def embedded(y: Tensor, x: Tensor, entry: tuple[Tensor, ...]) -> Tensor:
    hits = (entry[0] == x).nonzero()
    return entry[1][hits[0, 0]] if len(hits) else y


def outputs(y: Tensor, x: Tensor, entry: tuple[Tensor, ...]) -> Tensor:
    result = y.clone()
    result[entry[0]] = entry[1] @ x
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_an_embedding(dtype: torch.dtype) -> None:
    assert_rows(
        replace_embedded_,
        embedded,
        table_of(rows_of),
        random(ROWS, WIDTH).to(dtype),
        torch.tensor([0, 3, 3, 4, 19, 4, 0, 11, 1]),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_head(dtype: torch.dtype) -> None:
    assert_rows(
        replace_outputs_,
        outputs,
        table_of(rows_of),
        random(ROWS, VOCABULARY).to(dtype),
        random(ROWS, WIDTH).to(dtype),
    )
