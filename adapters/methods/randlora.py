"""RandLoRA (arXiv:2502.00987): a sum of random pairs of full rank, each with trained strengths.

`y += alpha / r · B (λ ∘ A ∘ γ) x`, or its transpose where the output is the narrower side. All
modules share one A and B, of which each uses the first rows, pairs and columns.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan

_DRAWN = (
    "A and B are not in the file, but drawn from a seed, which need not give the same elsewhere"
)


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One matrix for each selected module: the rank of the sum is that of W."""
    adapter = LinearAdapter("randlora", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    rank = fields.integer("r", 32)
    scaling = fields.number("randlora_alpha", 640) / rank
    fields.ignore("randlora_dropout", "projection_prng_key", "sparse", "very_sparse")
    if fields.get("save_projection") is False:
        raise invalid("save_projection", _DRAWN)
    fields.flag("save_projection")
    modules = adapter.modules()
    largest = (
        max(module.out_features for module in modules),
        max(module.in_features for module in modules),
    )
    shape_a = (rank, 1, min(largest))
    shape_b = (max(largest), -(-min(largest) // rank), rank)
    shared_a = adapter.take("randlora_A", *shape_a)
    shared_b = adapter.take("randlora_B", *shape_b)
    for module in modules:
        _drop_copy(adapter, f"{module.name}.randlora_A", shared_a)
        _drop_copy(adapter, f"{module.name}.randlora_B", shared_b)
        adapter.add(module, Dense(_matrix(adapter, module, shared_a, shared_b) * scaling))
    return adapter.plan()


def _matrix(
    adapter: LinearAdapter, module: TargetModule, shared_a: Tensor, shared_b: Tensor
) -> Tensor:
    rank = len(shared_a)
    narrow, wide = sorted((module.in_features, module.out_features))
    pairs = -(-narrow // rank)
    strengths = adapter.take(f"{module.name}.randlora_lambda", rank, pairs)
    weights = adapter.take(f"{module.name}.randlora_gamma", pairs, narrow)
    a = (strengths[:, :, None] * shared_a[:, :, :narrow] * weights).flatten(0, 1)
    matrix = shared_b[:wide, :pairs].flatten(1) @ a
    return matrix if module.in_features == narrow else matrix.T


def _drop_copy(adapter: LinearAdapter, name: str, shared: Tensor) -> None:
    """Takes the copy that some versions of peft save with each module."""
    if adapter.has(name) and not torch.equal(adapter.take(name, *shared.shape), shared):
        raise adapter.refusal(name, "differs from the one that all modules share")
