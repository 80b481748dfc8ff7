import pytest
import torch
from slot_rows import SLOTS, assert_rows, random, table_of

from weft.kernels.scale import scale_, shift_

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own_dtype", DTYPES)
def test_rows_are_scaled_and_shifted(dtype: torch.dtype, own_dtype: torch.dtype) -> None:
    table = table_of(lambda slot: (random(6, seed=slot).to(own_dtype),))
    rows = len(SLOTS)
    assert_rows(
        lambda y, x, table, segments: scale_(y, table, segments),
        lambda y, x, entry: y * entry[0],
        table,
        random(rows, 6).to(dtype),
        random(rows, 6),
    )
    assert_rows(
        lambda y, x, table, segments: shift_(y, table, segments),
        lambda y, x, entry: y + entry[0],
        table,
        random(rows, 6).to(dtype),
        random(rows, 6),
    )
