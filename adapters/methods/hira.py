"""HiRA (Hadamard high-rank adaptation, ICLR 2025): `y += (W ∘ (B A)) x`."""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.linear_adapter import LinearAdapter, weight_of
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One matrix for each selected module, from the base's weight: it is of no low rank."""
    adapter = LinearAdapter("hira", checkpoint, tensors, base, conv1d=True)
    # The file says the rank: nothing is scaled with it, and peft does not follow its rank_pattern.
    adapter.fields.ignore("hira_dropout", "r", "rank_pattern")
    for module in adapter.modules():
        rank = adapter.shape(f"{module.name}.hira_A")[0]
        a = adapter.take(f"{module.name}.hira_A", rank, module.in_features)
        b = adapter.take(f"{module.name}.hira_B", module.out_features, rank)
        adapter.add(module, Dense(weight_of(module) * (b @ a)))
    return adapter.plan()
