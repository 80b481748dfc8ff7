"""Products by weights in 16 bits are those by widened ones, whatever the values and the rows."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weft.server.engine.half_weight import HalfWeight, is_available, steady

pytestmark = pytest.mark.skipif(not is_available(), reason="this torch has no FBGEMM here")
# What sums of float32 products may be off by, of the norms of what is multiplied.
ROUNDING = 7e-7


def half(stored: Tensor, bias: Tensor | None = None, cut: int = 7) -> HalfWeight:
    blocks = [block.float() for block in stored.split(cut)]
    return HalfWeight(stored, blocks, bias)


def error(found: Tensor, x: Tensor, weight: Tensor) -> float:
    """The greatest difference from the product in 64 bits, of the norms of row and column."""
    exact = x.double() @ weight.double().T
    norms = x.double().norm(dim=-1)[:, None] * weight.double().norm(dim=-1)
    return float(((found - exact).abs() / norms.clamp_min(1e-300)).max())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 20),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 300)),
    exponent=st.integers(-60, 60),
    spread=st.integers(0, 30),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_products_are_those_of_the_widened_weight(
    rows: int, shape: tuple[int, int], exponent: int, spread: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    sizes = 2.0 ** (-spread * torch.rand(shape))
    scale = 2.0**exponent if dtype == torch.bfloat16 else 1.0
    weight = (torch.randn(shape) * sizes * scale).to(dtype)
    x = torch.randn(rows, shape[1])
    assert error(half(weight)(x), x, weight) < ROUNDING


def test_small_values_beside_a_great_one_are_kept() -> None:
    weight = torch.tensor([[256.0, 3 * 2.0**-20, 0.0], [0.0, -1.0, 2.0**-22]]).bfloat16()
    rows = torch.eye(3)
    assert torch.equal(half(weight)(rows), weight.float().T)


def test_float16_is_kept_whole_to_its_last_bit() -> None:
    weight = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.float16)
    weight = torch.where(weight.isfinite(), weight, 0).view(-1, 1)
    assert torch.equal(half(weight, cut=4096)(torch.ones(1, 1))[0], weight[:, 0].float())


def test_a_weight_of_zeros_gives_the_bias() -> None:
    bias = torch.randn(9)
    found = half(torch.zeros(9, 5, dtype=torch.bfloat16), bias)(torch.randn(2, 3, 5))
    assert torch.equal(found, bias.expand(2, 3, 9))


def test_biases_and_leading_dimensions_are_a_layers() -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(20, 64).bfloat16(), torch.randn(20), torch.randn(2, 3, 64)
    expected = F.linear(x, weight.float(), bias)
    torch.testing.assert_close(half(weight, bias)(x), expected, atol=1e-5, rtol=1e-5)
    assert half(weight, bias)(x[:0]).shape == (0, 3, 20)


def test_a_rows_bits_do_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    weight = half(torch.randn(50, 700).bfloat16())
    x = torch.randn(140, 700)
    alone = torch.cat([weight(row) for row in x.split(1)])
    for count in range(1, 141):
        assert torch.equal(weight(x[:count]), alone[:count]), count
        assert 0 <= steady(count) - count < 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(RuntimeError, match="not finite"):
        half(torch.tensor([[1.0, value]]).bfloat16())
