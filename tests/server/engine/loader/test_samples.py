"""By which values two copies of a parameter are known to be the same."""

import pytest
import torch

from weft.server.engine.loader.samples import sampled


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000, 2**24 + 3, 136_134_656])
def test_the_first_and_the_last_value_are_among_them(size: int) -> None:
    values = torch.zeros(size, dtype=torch.uint8)  # pages that nobody touches take no memory
    values[-1] = 7
    values[0] = 3
    found = sampled(values)
    assert len(found) == min(size, 64)
    assert (found[0], found[-1]) == (3, 7 if size > 1 else 3)


def test_an_empty_parameter_has_none() -> None:
    assert sampled(torch.zeros(0, 5)) == b""


def test_values_are_taken_in_the_order_of_dimensions() -> None:
    values = torch.arange(12, dtype=torch.uint8).view(3, 4)
    assert sampled(values) == bytes(range(12))
    assert sampled(values.T) == values.T.contiguous().numpy().tobytes()
