import pytest
import torch
from slot_rows import SLOTS, assert_rows, random, table_of
from torch import Tensor

from weft.kernels.rotation import rotate_blocks_, rotate_pairs_

DTYPES = (torch.float32, torch.bfloat16)
FEATURES = 12


def turned(y: Tensor, direct: Tensor, crossed: Tensor) -> Tensor:
    groups, size = direct.shape
    result = torch.empty_like(y)
    for group in range(groups):
        for place in range(size // 2):
            i = group * size + place
            j = i + size // 2
            result[i] = y[i] * direct.flatten()[i] - y[j] * crossed.flatten()[i]
            result[j] = y[j] * direct.flatten()[j] + y[i] * crossed.flatten()[j]
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [(1, 4), (3, 4), (12, 1), (1, 12)])
def test_blocks_rotate_inputs(dtype: torch.dtype, blocks: tuple[int, int]) -> None:
    count, size = blocks
    repeats = FEATURES // size // count
    assert_rows(
        lambda y, x, table, segments: rotate_blocks_(y, table, segments),
        lambda y, x, entry: y @ torch.block_diag(*(list(entry[0]) * repeats)),
        table_of(lambda slot: (random(count, size, size, seed=slot) / size**0.5,)),
        random(len(SLOTS), FEATURES).to(dtype),
        random(len(SLOTS), FEATURES),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 4, 12])
def test_pairs_rotate_within_groups(dtype: torch.dtype, size: int) -> None:
    shape = (FEATURES // size, size)
    assert_rows(
        lambda y, x, table, segments: rotate_pairs_(y, table, segments),
        lambda y, x, entry: turned(y, *entry),
        table_of(lambda slot: (random(*shape, seed=slot), random(*shape, seed=slot + 9))),
        random(len(SLOTS), FEATURES).to(dtype),
        random(len(SLOTS), FEATURES),
    )
