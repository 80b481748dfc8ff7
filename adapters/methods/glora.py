"""GLoRA (arXiv:2306.07967): `W' = W + W ∘ A + B` and `bias' = bias + bias ∘ D + E + W C`.

Each of A to E is a product of two factors, a vector, one value, or nothing. Where the base has no
bias, C, D and E do nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank, weight_of
from weft.adapters.operations import Dense, OutputScale, OutputShift
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """A matrix for each selected module; without A and B as products, a scale and a pair."""
    adapter = LinearAdapter("glora", checkpoint, tensors, base)
    fields = adapter.fields
    rank = fields.integer("r", 8)
    of_weight = fields.choice("config_A_B", "lora", "vector", "constant", "none")
    of_input = fields.choice("config_C", "lora", "vector", "none")
    of_bias = fields.choice("config_D_E", "constant", "vector", "none")
    for module in adapter.modules():
        out, width = module.out_features, module.in_features
        read = _Reader(adapter, module.name, rank)
        biases = adapter.biases(module)
        scale = torch.ones(out)
        if of_weight == "lora":
            a, b = read("A", "lora", (out, width)), read("B", "lora", (out, width))
            adapter.add(module, Dense(weight_of(module) * a + b))
        else:
            scale += read("A", of_weight, (out, 1), none=(out, width))
            b = read("B", of_weight, (out, 1), none=(out, width))
            adapter.add(module, OutputScale(scale), low_rank(torch.ones(1, width), b[None]))
        c = read("C", of_input if biases is not None else "none", (width, 1))
        d = read("D", of_bias if biases is not None else "none", (out,))
        e = read("E", of_bias if biases is not None else "none", (out,))
        if biases is not None:
            own, new = biases
            shift = (1 + d) * new - scale * own + e
            if c.any():
                shift += weight_of(module) @ c
            adapter.add(module, OutputShift(shift))
    return adapter.plan()


class _Reader:
    """Reads A to E of one module."""

    def __init__(self, adapter: LinearAdapter, module: str, rank: int) -> None:
        self._adapter = adapter
        self._module = module
        self._rank = rank

    def __call__(
        self, part: str, kind: str, shape: tuple[int, ...], none: tuple[int, ...] | None = None
    ) -> Tensor:
        """A matrix of `shape`, or a vector where its last dimension is 1.

        none: the shape of the zeros that are in the file where there is nothing
        """
        name, adapter = f"{self._module}.glora_{part}", self._adapter
        if kind == "lora":
            left = adapter.take(f"{name}.Xd", shape[0], self._rank)
            value = left @ adapter.take(f"{name}.Xu", self._rank, shape[1])
        elif kind == "vector":
            value = adapter.take(f"{name}.X", *shape)
        elif kind == "constant":
            value = adapter.take(f"{name}.X", 1).expand(shape)
        else:
            if adapter.take(f"{name}.zeros", *(none or shape)).any():
                raise adapter.refusal(f"{name}.zeros", "must be zero")
            value = torch.zeros(shape)
        return value.squeeze(-1) if shape[-1] == 1 else value
