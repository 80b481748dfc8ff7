"""DEFT (decompositional fine-tuning): `W' = W - Q Rᵀ W + Q (alpha / r · S)`.

One part of W is removed and another injected. Q and R come from one trained P: itself and its
positive part, or its orthogonal factor twice.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.linear_adapter import LinearAdapter, change, low_rank, weight_of
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module, from the base's weight."""
    adapter = LinearAdapter("deft", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    fields.ignore("deft_dropout", "init_scale")
    size, alpha = fields.integer("r", 8), fields.number("alpha", 0)
    decomposition = fields.choice("decomposition_method", "relu", "qr")
    only_removes = fields.flag("para")
    for module in adapter.modules():
        rank = min(size, module.out_features)
        given = adapter.take(f"{module.name}.deft_P", module.out_features, rank)
        if decomposition == "relu":
            left, right = given, given.relu()
        else:
            left = right = torch.linalg.qr(given)[0]
        removed = right.T @ weight_of(module)
        injected = torch.zeros_like(removed)
        if not only_removes:
            injected = adapter.take(f"{module.name}.deft_R", rank, module.in_features)
            injected = injected * (alpha / rank if alpha else 1.0)
        adapter.add(module, low_rank(change(injected, removed), left.T))
    return adapter.plan()
