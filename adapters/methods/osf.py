"""OSF (arXiv:2504.07097): the smallest singular values of W and their vectors, trained on.

`y += (U S V - U0 S0 V0) x`, where U0 S0 V0 is that part of the base's W, found again at load; the
product is unique, the factors are not.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank, weight_of
from weft.adapters.methods.patterns import ANYWHERE, first_match
from weft.adapters.plan import AdapterPlan
from weft.adapters.strict_json import Json


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module, or a matrix where that is smaller."""
    adapter = LinearAdapter("osf", checkpoint, tensors, base)
    fields = adapter.fields
    fields.ignore("target_svd_config")
    default = fields.get("effective_rank")
    kept = 0.5 if default is None else _kept(default, "effective_rank")
    kept_of = first_match(fields.table("rank_pattern", _kept), kept, "rank_pattern", ANYWHERE)
    for module in adapter.modules():
        name = module.name
        smaller = min(module.in_features, module.out_features)
        wanted = kept_of(name)
        frozen = min(smaller, int(wanted * smaller if isinstance(wanted, float) else wanted))
        rank = smaller - frozen
        part = f"{name}.osf_svd_params"
        left = adapter.take(f"{part}.U_low", module.out_features, rank)
        values = adapter.take(f"{part}.S_low", rank)
        right = adapter.take(f"{part}.V_low", rank, module.in_features)
        if rank:
            base_left, base_values, base_right = torch.linalg.svd(
                weight_of(module), full_matrices=False
            )
            b = torch.cat([left * values, -(base_left * base_values)[:, frozen:]], dim=1)
            adapter.add(module, low_rank(torch.cat([right, base_right[frozen:]]), b.T))
    return adapter.plan()


def _kept(value: Json, field: str) -> int | float:
    """How many singular values stay as they are: a number, or a fraction as a float up to 1."""
    if type(value) is int and value > 0:
        return value
    if isinstance(value, float) and value > 0:
        return value if value <= 1 else int(value)
    raise invalid(field, "must be a positive number or a fraction")
