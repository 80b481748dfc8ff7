"""Linear layers for CPUs whose weights lie in the blocked layout that oneDNN computes from.

A plain layer is brought into such a layout again at each call; at few rows that costs as much as
the product itself. In bfloat16 results are the same bit for bit. In float32 plain layers are
computed by MKL, whose results differ by rounding, and which is faster for many rows.
"""

import sys
from concurrent.futures import Executor
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from weft.kernels.opaque import RowOperator
from weft.server.engine import hardware

_SMALLEST = 100_000
_EXPECTED_ROWS = 16
# In bfloat16 oneDNN takes longer for two rows than for four, and no less for one.
_FEWEST_ROWS = {torch.bfloat16: 4, torch.float32: 1}
_MOST_ROWS = {torch.bfloat16: sys.maxsize, torch.float32: 128}
_ROUNDING = {torch.bfloat16: 0.0, torch.float32: 7e-7}  # of the norms of what is multiplied
_SPARE_COPIES = 2


class PackedLinear(nn.Linear):
    """`linear` with a packed copy of its weight; a weight that replaces its own is used instead."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(
            linear.in_features, linear.out_features, linear.bias is not None, device="meta"
        )
        self.weight = linear.weight
        self.bias = linear.bias
        self._source = linear.weight
        self._fewest = _FEWEST_ROWS[linear.weight.dtype]
        self._most = _MOST_ROWS[linear.weight.dtype]
        self._packed: Tensor = _mkldnn()._reorder_linear_weight(linear.weight, _EXPECTED_ROWS)
        self._operator = RowOperator(self.product, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]; returns [..., out_features]."""
        return self._operator(x) if torch.compiler.is_compiling() else self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """What `forward` gives, computed now."""
        rows = x.numel() // self.in_features
        if self.weight is not self._source or rows > self._most:
            return super().forward(x)
        if rows >= self._fewest:
            return self._packed_product(x)
        padded = F.pad(x.reshape(rows, self.in_features), (0, 0, 0, self._fewest - rows))
        return self._packed_product(padded)[:rows].view(*x.shape[:-1], self.out_features)

    def _packed_product(self, x: Tensor) -> Tensor:
        y: Tensor = _mkldnn()._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


def pack_linears(model: nn.Module, threads: Executor) -> int:
    """Packs, in place, the large bfloat16 and float32 layers of a model on a CPU.

    threads: make the copies, several at a time
    Returns how many; none where memory is short or this torch cannot: the model then runs as it is.
    """
    large = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module.weight.dtype in _FEWEST_ROWS
        and module.weight.device.type == "cpu"
        and module.weight.numel() >= _SMALLEST
    }
    needed = sum(module.weight.nbytes for module in large.values())
    if needed * _SPARE_COPIES > hardware.free_memory(torch.device("cpu")):
        return 0
    count = 0
    for name, packed in zip(large, threads.map(_Packer(), large.values()), strict=True):
        if packed is not None:
            model.set_submodule(name, packed)
            count += 1
    return count


class _Packer:
    """Packs a layer if the operators, which torch does not document, exist and are exact.

    What rounding they do follows from a layer's shape, so of each shape one is looked at.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[int, int, bool, torch.dtype], bool] = {}

    def __call__(self, linear: nn.Linear) -> PackedLinear | None:
        """The packed layer, or None."""
        shape = linear.in_features, linear.out_features
        kind = *shape, linear.bias is not None, linear.weight.dtype
        if self._exact.get(kind) is False:
            return None
        try:
            packed = PackedLinear(linear)
            if kind not in self._exact:
                self._exact[kind] = _is_exact(packed, linear)
        except (AttributeError, RuntimeError):
            self._exact[kind] = False
        return packed if self._exact[kind] else None


@torch.inference_mode()
def _is_exact(packed: PackedLinear, linear: nn.Linear) -> bool:
    """Whether results are the plain layer's, up to rounding of the terms that they are sums of."""
    weight, bias = linear.weight, linear.bias
    x = torch.linspace(-1, 1, 3 * linear.in_features, dtype=weight.dtype)
    x = x.view(3, linear.in_features)
    difference = (packed(x) - F.linear(x, weight, bias)).abs()
    terms = x.norm(dim=1)[:, None] * weight.norm(dim=1)
    if bias is not None:
        terms = terms + bias.abs()
    return bool((difference <= _ROUNDING[weight.dtype] * terms).all())


def _mkldnn() -> Any:
    return torch.ops.mkldnn
