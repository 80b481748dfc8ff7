"""LoHa (arXiv:2108.06098): `y += alpha / r · ((A1 B1) ∘ (A2 B2)) x`, a product of rank r²."""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import finite_number, positive_integer
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank
from weft.adapters.methods.patterns import first_match
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair of rank r² for each selected module, or a matrix where that is smaller."""
    adapter = LinearAdapter("loha", checkpoint, tensors, base)
    fields = adapter.fields
    fields.ignore("rank_dropout", "module_dropout", "use_effective_conv2d")
    ranks = fields.table("rank_pattern", positive_integer)
    alphas = fields.table("alpha_pattern", finite_number)
    rank_of = first_match(ranks, fields.integer("r", 8), "rank_pattern")
    alpha_of = first_match(alphas, fields.number("alpha", 8), "alpha_pattern")
    for module in adapter.modules():
        name, rank = module.name, rank_of(module.name)
        scaling = alpha_of(name) / rank
        out1, out2 = (
            adapter.take(f"{name}.hada_w{at}_a", module.out_features, rank) for at in (1, 2)
        )
        in1, in2 = (adapter.take(f"{name}.hada_w{at}_b", rank, module.in_features) for at in (1, 2))
        if rank**2 * (module.in_features + module.out_features) > module.elements:
            adapter.add(module, Dense((out1 @ in1) * (out2 @ in2) * scaling))
        else:
            adapter.add(module, low_rank(_products(in1, in2), _products(out1.T, out2.T) * scaling))
    return adapter.plan()


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Each row of the first times each of the second, `[rank², width]`."""
    return (first[:, None] * second[None]).flatten(0, 1)
