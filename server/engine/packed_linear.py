"""Linear layers for CPUs whose weights lie in the blocked layout that oneDNN computes from.

A plain layer is brought into such a layout again at each call; at few rows that costs as much as
the product itself. In bfloat16 results are the same bit for bit. In float32 plain layers are
computed by MKL, whose results differ by rounding, and which is faster for many rows.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from weft.kernels.opaque import RowOperator
from weft.server.engine import hardware
from weft.server.engine.stored_weights import SMALLEST, StoredLinear, widen

_EXPECTED_ROWS = 16
# In bfloat16 oneDNN takes longer for two rows than for four, and no less for one.
_FEWEST_ROWS = {torch.bfloat16: 4, torch.float32: 1}
_MOST_ROWS = {torch.bfloat16: sys.maxsize, torch.float32: 128}
_ROUNDING = {torch.bfloat16: 0.0, torch.float32: 7e-7}  # of the norms of what is multiplied
_SPARE_COPIES = 2


class PackedLinear(StoredLinear):
    """`linear` with a packed copy of its weight; a weight that replaces its own is used instead."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._source = self._parameters["weight"]
        dtype = _parameter(linear).dtype
        self._fewest = _FEWEST_ROWS[dtype]
        self._most = _MOST_ROWS[dtype]
        self._packed: list[Tensor] = []
        self._heights: list[int] = []
        for _, block in self.blocks():
            self._packed.append(_mkldnn()._reorder_linear_weight(block, _EXPECTED_ROWS))
            self._heights.append(len(block))
        self._operator = RowOperator(self.product, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]; returns [..., out_features]."""
        return self._operator(x) if torch.compiler.is_compiling() else self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """What `forward` gives, computed now."""
        rows = x.numel() // self.in_features
        if self._parameters["weight"] is not self._source or rows > self._most:
            return super().forward(x)
        if rows >= self._fewest:
            return self._packed_product(x)
        padded = F.pad(x.reshape(rows, self.in_features), (0, 0, 0, self._fewest - rows))
        return self._packed_product(padded)[:rows].view(*x.shape[:-1], self.out_features)

    def _packed_product(self, x: Tensor) -> Tensor:
        if len(self._packed) == 1:
            return _product(x, self._packed[0], self.bias)
        bias: Tensor | None = self.bias
        none = (None,) * len(self._packed)
        biases = none if bias is None else torch.split(bias, self._heights)
        parts = zip(self._packed, biases, strict=True)
        return torch.cat([_product(x, *part) for part in parts], -1)


def begin_packing(model: nn.Module, threads: Executor) -> Callable[[], int]:
    """Lets `threads` pack the large bfloat16 and float32 layers of a model on a CPU.

    The model stays as it is until the returned call has put them in place, which returns how many
    they are: none where memory is short or this torch cannot.
    """
    large = {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, StoredLinear) and _can_be_packed(module)
    }
    needed = sum(_parameter(module).nbytes for module in large.values())
    if needed * _SPARE_COPIES > hardware.free_memory(torch.device("cpu")):
        return partial(_put_in_place, model, large, [None] * len(large))
    return partial(_put_in_place, model, large, threads.map(_Packer(), large.values()))


def _put_in_place(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    packed_ones: Iterable[PackedLinear | None],
) -> int:
    left = []
    for name, packed in zip(linears, packed_ones, strict=True):
        if packed is None:
            left.append(linears[name])
        else:
            model.set_submodule(name, packed)
    widen(model, left)
    return len(linears) - len(left)


def _can_be_packed(linear: nn.Module) -> bool:
    weight = _parameter(linear)
    is_fit = weight.dtype in _FEWEST_ROWS and weight.device.type == "cpu"
    return is_fit and weight.numel() >= SMALLEST


def _parameter(linear: nn.Module) -> Tensor:
    weight = linear._parameters["weight"]
    assert weight is not None
    return weight


class _Packer:
    """Packs a layer if the operators, which torch does not document, exist and are exact.

    What rounding they do follows from a layer's shape, so of each shape one is looked at.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[int, int, bool, torch.dtype], bool] = {}

    def __call__(self, linear: nn.Linear) -> PackedLinear | None:
        """The packed layer, or None."""
        shape = linear.in_features, linear.out_features
        kind = *shape, linear.bias is not None, _parameter(linear).dtype
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
    dtype = _parameter(linear).dtype
    x = torch.linspace(-1, 1, 3 * linear.in_features, dtype=dtype).view(3, linear.in_features)
    difference = (packed(x) - linear.forward(x)).abs()  # others may watch calls of the linear
    norms = torch.cat([weight.norm(dim=1) for _, weight in packed.blocks()])
    terms = x.norm(dim=1)[:, None] * norms
    if linear.bias is not None:
        terms = terms + linear.bias.abs()
    return bool((difference <= _ROUNDING[dtype] * terms).all())


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = _mkldnn()._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def _mkldnn() -> Any:
    return torch.ops.mkldnn
