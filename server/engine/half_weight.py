"""Products of float32 rows by a weight kept in 16 bits, as FBGEMM computes them.

It reads float16, widens it in registers and sums in float32: half the bytes of a float32 layer. A
bfloat16 weight has fewer digits than float16 and a wider range, so a power of two, taken off the
rows again, brings its greatest value to float16's. What is 2⁻³¹ of that or more stays as it is, and
what is less is off by at most 2⁻³⁹ of it, where float32 rounds each product by 2⁻²⁴ of itself.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_GREATEST = 15  # a weight is brought below 2¹⁵; float16 ends at 65504
_MOST_ADDED = 8  # rows, so that none is summed in another order
_MANY = 64  # rows, and features of a small layer on which orders of summation show


class HalfWeight:
    """A weight [out, in] and its bias, packed: `half(x)` is `x weightᵀ + bias`.

    A row's sums are the same bit for bit whatever other rows there are; see `steady`.
    """

    def __init__(self, stored: Tensor, blocks: Iterable[Tensor], bias: Tensor | None) -> None:
        """stored: the weight in its 16 bits   blocks: all its rows in float32, to be overwritten

        Raises RuntimeError where torch has no FBGEMM, or a value is not finite.
        """
        exponent = 0 if stored.dtype == torch.float16 else _exponent(stored)
        self._of_rows = 2.0**-exponent
        self._parts: list[Any] = []
        first = 0
        for block in blocks:
            own = None if bias is None else bias[first : first + len(block)]
            self._parts.append(_packed(block.mul_(2.0**exponent), own))
            first += len(block)

    def __call__(self, x: Tensor) -> Tensor:
        """x: float32 [..., in]; returns [..., out]."""
        rows = x.reshape(-1, x.shape[-1])
        count = rows.shape[0]
        padded = rows.new_empty(steady(count), rows.shape[1])
        torch.mul(rows, self._of_rows, out=padded[:count])
        parts = [_product(padded, part) for part in self._parts]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y[:count].view(*x.shape[:-1], y.shape[-1])


def is_available() -> bool:
    """Whether this torch has FBGEMM's products for this processor."""
    try:
        return steady(1) > 0
    except (AttributeError, RuntimeError):
        return False


@cache
def steady(rows: int) -> int:
    """The least number from `rows` on that are all summed in one order, as in most numbers of rows.

    FBGEMM cuts rows into groups, and sums in another order in its smallest ones. Where it cuts
    differs by processor, so a small product is tried. Where no number is found it is `rows`.
    """
    values = torch.randn(_MANY + 1, _MANY, generator=torch.Generator().manual_seed(0))
    part = _packed(values[:_MANY], None)
    row = values[_MANY:]
    usual = _product(row.repeat(_MANY, 1), part)[0]
    for count in range(max(rows, 1), rows + _MOST_ADDED):
        if bool((_product(row.repeat(count, 1), part) == usual).all()):
            return count
    return rows


def _exponent(weight: Tensor) -> int:
    """Of the power of two that brings the greatest value to [2¹⁴, 2¹⁵)."""
    greatest = float(weight.abs().amax())
    if not math.isfinite(greatest):
        raise RuntimeError("a weight is not finite")
    return _GREATEST - math.frexp(greatest)[1] if greatest else 0


def _packed(weight: Tensor, bias: Tensor | None) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(weight, bias)


def _product(rows: Tensor, part: Any) -> Tensor:
    y: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, part)
    return y
