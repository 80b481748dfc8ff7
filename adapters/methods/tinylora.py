"""TinyLoRA (arXiv:2602.04118): `y += B (Σ v_i P_i) A x`, where v is shared by groups of modules.

A and B, from the base's decomposition, and the random P are in the file.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank
from weft.adapters.plan import AdapterPlan

_DRAWN = "P is not in the file, but drawn from a seed, which need not give the same elsewhere"


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module."""
    adapter = LinearAdapter("tinylora", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    fields.ignore("projection_seed", "init_v_bound", "tinylora_dropout")
    size, length = fields.integer("r", 2), fields.integer("u", 64)
    tying = fields.number("weight_tying", 0.0)
    if not 0 <= tying <= 1:
        raise invalid("weight_tying", "must be between 0 and 1")
    if fields.get("save_projection") is False:
        raise invalid("save_projection", _DRAWN)
    fields.flag("save_projection")
    modules = adapter.modules()
    groups = max(1, round(len(modules) * (1.0 - tying)))
    members = max(1, len(modules) // groups)
    shared = [adapter.take(f"tinylora_v.{group}", length) for group in range(groups)]
    for at, module in enumerate(modules):
        rank = min(size, module.in_features, module.out_features)
        a = adapter.take(f"{module.name}.tinylora_A", rank, module.in_features)
        b = adapter.take(f"{module.name}.tinylora_B", module.out_features, rank)
        mixed = adapter.take(f"{module.name}.tinylora_P", length, rank, rank)
        middle = torch.tensordot(shared[min(at // members, groups - 1)], mixed, dims=1)
        adapter.add(module, low_rank(a, (b @ middle).T))
    return adapter.plan()
