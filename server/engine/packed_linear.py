"""Linear layers for CPUs whose weights lie in the blocked layout that oneDNN computes from.

A plain layer is brought into that layout again at each call; at few rows that costs as much as the
product itself. Results are the same bit for bit.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from weft.server.engine import hardware

_SMALLEST = 100_000
_EXPECTED_ROWS = 16
_FEWEST_ROWS = 4  # oneDNN takes longer for two rows than for four, and no less for one
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
        self._packed: Tensor = _mkldnn()._reorder_linear_weight(linear.weight, _EXPECTED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]; returns [..., out_features]."""
        if self.weight is not self._source:
            return super().forward(x)
        rows = x.numel() // self.in_features
        if rows >= _FEWEST_ROWS:
            return self._product(x)
        padded = F.pad(x.reshape(rows, self.in_features), (0, 0, 0, _FEWEST_ROWS - rows))
        return self._product(padded)[:rows].view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor) -> Tensor:
        y: Tensor = _mkldnn()._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


def pack_linears(model: nn.Module) -> int:
    """Packs, in place, the large bfloat16 layers of a model on a CPU; returns how many.

    None are packed where memory is short or this torch cannot: the model then runs as it is.
    """
    large = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
        and module.weight.numel() >= _SMALLEST
    }
    needed = sum(module.weight.nbytes for module in large.values())
    if needed * _SPARE_COPIES > hardware.free_memory(torch.device("cpu")):
        return 0
    count = 0
    for name, module in large.items():
        packed = _packed(module)
        if packed is not None:
            model.set_submodule(name, packed)
            count += 1
    return count


def _packed(linear: nn.Linear) -> PackedLinear | None:
    """The packed layer, if the operators, which torch does not document, exist and are exact."""
    x = torch.linspace(-1, 1, 3 * linear.in_features, dtype=linear.weight.dtype)
    x = x.view(3, linear.in_features)
    try:
        packed = PackedLinear(linear)
        exact = torch.equal(packed(x), F.linear(x, linear.weight, linear.bias))
    except (AttributeError, RuntimeError):
        return None
    return packed if exact else None


def _mkldnn() -> Any:
    return torch.ops.mkldnn
