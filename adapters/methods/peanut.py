"""PEANuT (arXiv:2410.01870): `y += scaling · B f(Wᵀ Aᵀ)ᵀ x`, where f is a small network.

It computes one update from the base's own weights, the same for every input.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers.activations import ACT2FN

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank, weight_of
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module, from the base's weight."""
    adapter = LinearAdapter("peanut", checkpoint, tensors, base)
    fields = adapter.fields
    rank, depth = fields.integer("r", 32), fields.count("depth", 0)
    scaling = fields.number("scaling", 1.0)
    activation = fields.get("act_fn") or "relu"
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise invalid("act_fn", f"{activation!r} is not an activation of transformers")
    for module in adapter.modules():
        hidden = _hidden(adapter, module, rank, depth, activation)
        b = adapter.take(f"{module.name}.peanut_B.weight", module.out_features, rank)
        adapter.add(module, low_rank(hidden.T, b.T * scaling))
    return adapter.plan()


def _hidden(
    adapter: LinearAdapter, module: TargetModule, rank: int, depth: int, activation: str
) -> Tensor:
    """The network's output before B, `[in_features, rank]`."""
    activate, name = ACT2FN[activation], module.name
    a = adapter.take(f"{name}.peanut_A.weight", rank, module.out_features)
    hidden: Tensor = activate(weight_of(module).T @ a.T)
    residuals = []
    for at in range(depth):
        residuals.append(hidden)
        hidden = activate(
            hidden @ adapter.take(f"{name}.peanut_encoders.{at}.weight", rank, rank).T
        )
    for at in range(depth):
        decoder = adapter.take(f"{name}.peanut_decoders.{at}.weight", rank, rank)
        hidden = activate(hidden @ decoder.T) + residuals.pop()
    return hidden
