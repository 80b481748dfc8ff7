"""VeRA (arXiv:2310.11454) and PVeRA (arXiv:2512.07703): `y += λb ∘ B (λd ∘ (A x))`.

All modules share one A and B, of which each uses the first columns and rows. PVeRA's A and λd hold
a mean and a variance of each value; what is served is the mean.
"""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank
from weft.adapters.plan import AdapterPlan

_DRAWN = (
    "A and B are not in the file, but drawn from a seed, which need not give the same elsewhere"
)


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module."""
    return _lower("vera", 1, LinearAdapter("vera", checkpoint, tensors, base, conv1d=True))


def lower_probabilistic(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules
) -> AdapterPlan:
    """One pair of means for each selected module."""
    adapter = LinearAdapter("pvera", checkpoint, tensors, base, conv1d=True)
    adapter.fields.refuse({"sample_at_inference": "answers would be random"})
    adapter.fields.ignore("generator_seed")
    return _lower("pvera", 2, adapter)


def _lower(prefix: str, halves: int, adapter: LinearAdapter) -> AdapterPlan:
    fields = adapter.fields
    rank = fields.integer("r", 256)
    fields.ignore(f"{prefix}_dropout", "d_initial", "projection_prng_key")
    if fields.get("save_projection") is False:
        raise invalid("save_projection", _DRAWN)
    fields.flag("save_projection")
    modules = adapter.modules()
    width_in = max(module.in_features for module in modules)
    width_out = max(module.out_features for module in modules)
    shared_a = adapter.take(f"{prefix}_A", halves * rank, width_in)
    shared_b = adapter.take(f"{prefix}_B", width_out, rank)
    for module in modules:
        of_a = adapter.take(f"{module.name}.{prefix}_lambda_d", halves * rank)
        of_b = adapter.take(f"{module.name}.{prefix}_lambda_b", module.out_features)
        a = shared_a[:rank, : module.in_features] * of_a[:rank, None]
        b = shared_b[: module.out_features] * of_b[:, None]
        adapter.add(module, low_rank(a, b.T))
    return adapter.plan()
