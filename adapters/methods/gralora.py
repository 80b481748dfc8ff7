"""GraLoRA (arXiv:2505.20355): W in k × k pieces, each with a pair of its own of rank r / k.

`y += alpha / (r + hybrid_r) · (Σ B_ij A_ij x_j + B A x)`, the last a pair over the whole.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank, parts
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair of rank r · k + hybrid_r for each selected module, or a matrix if smaller."""
    adapter = LinearAdapter("gralora", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    fields.ignore("gralora_dropout")
    rank, hybrid = fields.integer("r", 32), fields.count("hybrid_r", 0)
    pieces = fields.integer("gralora_k", 2)
    scaling = fields.number("alpha", 64) / (rank + hybrid)
    if rank % pieces:
        raise invalid("gralora_k", f"does not divide r, {rank}")
    for module in adapter.modules():
        a, b = _pairs(adapter, module, rank, pieces)
        if hybrid:
            whole = f"{module.name}.gralora_"
            whole_a = adapter.take(f"{whole}A_general.weight", hybrid, module.in_features)
            whole_b = adapter.take(f"{whole}B_general.weight", module.out_features, hybrid)
            a, b = torch.cat([a, whole_a]), torch.cat([b, whole_b.T])
        adapter.add(module, low_rank(a, b * scaling))
    return adapter.plan()


def _pairs(
    adapter: LinearAdapter, module: TargetModule, rank: int, pieces: int
) -> tuple[Tensor, Tensor]:
    """The pairs of all pieces as one of rank r · k: by input, then by output, then by rank."""
    width_in, width_out = parts(module, pieces, "gralora_k")
    given_a = adapter.take(f"{module.name}.gralora_A", pieces, width_in, rank)
    given_b = adapter.take(f"{module.name}.gralora_B", pieces, rank, width_out)
    each = rank // pieces
    a = torch.zeros(pieces, pieces, each, pieces, width_in)
    b = torch.zeros(pieces, pieces, each, pieces, width_out)
    for source in range(pieces):
        for target in range(pieces):
            of_target = slice(target * each, (target + 1) * each)
            of_source = slice(source * each, (source + 1) * each)
            a[source, target, :, source] = given_a[source, :, of_target].T
            b[source, target, :, target] = given_b[target, of_source]
    return a.view(pieces * rank, -1), b.view(pieces * rank, -1)
