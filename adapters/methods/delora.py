"""DeLoRA (arXiv:2503.18225): `y += λ / r · B diag(1 / (‖A_k‖ ‖B_k‖)) A (w ∘ x)`.

λ and w, the norms of W's columns as they were at the start of training, are in the file.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import finite_number, positive_integer
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank
from weft.adapters.methods.patterns import first_match
from weft.adapters.plan import AdapterPlan

_SMALLEST_NORM = 1e-4


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module."""
    adapter = LinearAdapter("delora", checkpoint, tensors, base)
    fields = adapter.fields
    fields.ignore("module_dropout")
    fields.number("delora_lambda", 15)  # where training began; the file says where it ended
    fields.table("lambda_pattern", finite_number)
    ranks = fields.table("rank_pattern", positive_integer)
    rank_of = first_match(ranks, fields.integer("r", 8), "rank_pattern")
    for module in adapter.modules():
        name, rank = module.name, rank_of(module.name)
        a = adapter.take(f"{name}.delora_A", rank, module.in_features)
        b = adapter.take(f"{name}.delora_B", module.out_features, rank)
        strength = adapter.take(f"{name}.delora_lambda", 1) / rank
        norms = adapter.take(f"{name}.delora_w_norm", module.in_features)
        strength = strength / (_lengths(a) * _lengths(b.T))
        adapter.add(module, low_rank(a * norms, b.T * strength[:, None]))
    return adapter.plan()


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.clamp(min=_SMALLEST_NORM)
