"""SHiRA (arXiv:2406.13175): `y += S x` for a sparse S, whose positions are in the file."""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.linear_adapter import LinearAdapter, sparse
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One sparse matrix for each selected module."""
    adapter = LinearAdapter("shira", checkpoint, tensors, base)
    rank = adapter.fields.integer("r", 32)
    adapter.fields.ignore("mask_type", "random_seed")  # how the positions were chosen
    for module in adapter.modules():
        count = rank * (module.in_features + module.out_features)
        longer = max(module.in_features, module.out_features)
        at = adapter.take_integers(f"{module.name}.shira_indices", 2, count, below=longer)
        values = adapter.take(f"{module.name}.shira_weight", count)
        adapter.add(module, sparse(module, at[0] * module.in_features + at[1], values))
    return adapter.plan()
