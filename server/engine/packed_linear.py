"""Linear layers for CPUs whose weights lie in the layout that their products are computed from.

A plain layer is brought into such a layout again at each call; at few rows that costs as much as
the product itself. In bfloat16 oneDNN's results are the same bit for bit. In float32 plain layers
are computed by MKL, whose results differ by rounding; a weight that its file has in 16 bits is
packed in 16 bits.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from weft.kernels.opaque import RowOperator
from weft.server.engine import hardware
from weft.server.engine.half_weight import HalfWeight
from weft.server.engine.packed_ahead import PackedAhead, Weight
from weft.server.engine.stored_weights import StoredLinear, widen
from weft.server.engine.widening import SMALLEST

_ANY = 1 << 62
_EXPECTED_ROWS = 16
# In bfloat16 oneDNN takes longer for two rows than for four, and no less for one.
_FEWEST_ROWS = {torch.bfloat16: 4, torch.float32: 1}
_MOST_ROWS = {torch.bfloat16: _ANY, torch.float32: 128}  # then MKL is faster
_ROUNDING = {torch.bfloat16: 0.0, torch.float32: 7e-7}  # of the norms of what is multiplied
_SPARE_COPIES = 2


class PackedLinear(StoredLinear):
    """`linear` with a packed copy of its weight; a weight that replaces its own is used instead."""

    def __init__(self, linear: nn.Linear, way: "Way") -> None:
        """way: how to pack; raises what that raises"""
        super().__init__(linear)
        self._source = self._parameters["weight"]
        self._packed, self._most = way(self)
        self._operator = RowOperator(self.product, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]; returns [..., out_features]."""
        return self._operator(x) if torch.compiler.is_compiling() else self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """What `forward` gives, computed now."""
        is_changed = self._parameters["weight"] is not self._source
        if is_changed or x.numel() > self._most * self.in_features:
            return super().forward(x)
        return self._packed(x)


Way = Callable[[StoredLinear], tuple[Callable[[Tensor], Tensor], int]]
"""Packs a layer: gives what computes its products, and for how many rows at most."""


def _halved(ahead: PackedAhead, linear: StoredLinear) -> tuple[HalfWeight, int]:
    packed = ahead.take(Weight(linear.stored, linear.bias))
    if packed is None:
        blocks = (block for _, block in linear.blocks())
        packed = HalfWeight(linear.stored, blocks, linear.bias)
    return packed, _ANY


def _blocked(linear: StoredLinear) -> tuple["_BlockedWeight", int]:
    weight = linear.weight
    return _BlockedWeight(weight, linear.bias), _MOST_ROWS[weight.dtype]


class _BlockedWeight:
    """A weight in the blocked layout that oneDNN computes from, and its bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self._bias = bias
        self._fewest = _FEWEST_ROWS[weight.dtype]

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., in]; returns [..., out]."""
        rows = x.numel() // x.shape[-1]
        if rows >= self._fewest:
            return self._product(x)
        padded = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, self._fewest - rows))
        y = self._product(padded)
        return y[:rows].view(*x.shape[:-1], y.shape[-1])

    def _product(self, x: Tensor) -> Tensor:
        operator: Any = torch.ops.mkldnn._linear_pointwise
        y: Tensor = operator(x, self._weight, self._bias, "none", [], "")
        return y


def begin_packing(
    model: nn.Module, threads: Executor, ahead: PackedAhead | None = None
) -> Callable[[], int]:
    """Lets `threads` pack the large bfloat16 and float32 layers of a model on a CPU.

    ahead: where layers are looked for that are packed already; what is left of it is dropped

    The model stays as it is until the returned call has put them in place, which returns how many
    they are. Layers that this torch cannot pack stay plain, and so do those that have their memory
    already where it is short.
    """
    large = {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, StoredLinear) and _can_be_packed(module)
    }
    copied = sum(_parameter(module).nbytes for module in large.values() if not _is_stored(module))
    is_short = copied * _SPARE_COPIES > hardware.free_memory(torch.device("cpu"))
    chosen = {name: m for name, m in large.items() if _is_stored(m) or not is_short}
    ahead = ahead or PackedAhead()
    packed_ones = threads.map(_Packer(ahead), chosen.values())
    return partial(_put_in_place, model, chosen, packed_ones, ahead)


def _put_in_place(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    packed_ones: Iterable[PackedLinear | None],
    ahead: PackedAhead,
) -> int:
    left = []
    for name, packed in zip(linears, packed_ones, strict=True):
        if packed is None:
            left.append(linears[name])
        else:
            model.set_submodule(name, packed)
    ahead.drop()
    widen(model, left)
    return len(linears) - len(left)


def _can_be_packed(linear: nn.Module) -> bool:
    weight = _parameter(linear)
    is_fit = weight.dtype in _FEWEST_ROWS and weight.device.type == "cpu"
    return is_fit and weight.numel() >= SMALLEST


def _is_stored(linear: nn.Module) -> bool:
    return isinstance(linear, StoredLinear) and linear.is_stored


def _parameter(linear: nn.Module) -> Tensor:
    weight = linear._parameters["weight"]
    assert weight is not None
    return weight


class _Packer:
    """Packs a layer if the operators, which torch does not document, exist and are exact.

    What rounding they do follows from a layer's shape, so of each shape one is looked at.
    """

    def __init__(self, ahead: PackedAhead) -> None:
        self._halved = partial(_halved, ahead)
        self._exact: dict[tuple[Way, int, int, bool, torch.dtype], bool] = {}

    def __call__(self, linear: nn.Linear) -> PackedLinear | None:
        """The packed layer, or None."""
        ways: tuple[Way, ...] = (self._halved, _blocked) if _is_stored(linear) else (_blocked,)
        return next(filter(None, (self._packed(linear, way) for way in ways)), None)

    def _packed(self, linear: nn.Linear, way: Way) -> PackedLinear | None:
        shape = linear.in_features, linear.out_features
        kind = way, *shape, linear.bias is not None, _parameter(linear).dtype
        if self._exact.get(kind) is False:
            return None
        try:
            packed = PackedLinear(linear, way)
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
