"""KaSA (arXiv:2412.06071): LoRA with trained values between A and B, beside a truncated base.

Training first took the parts of the r smallest singular values out of W; the served base keeps its
weights, so they are taken out by a low-rank pair, found again from the weights.
"""

import torch

from weft.adapters.base import BaseModules
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.methods.linear_adapter import weight_of
from weft.adapters.operations import LowRank

FIELD = "kasa_config"


def read(fields: Fields) -> bool:
    """Whether the adapter is one of KaSA's; what its fields say is for training alone."""
    value = fields.get(FIELD)
    if value is None or isinstance(value, dict):
        return value is not None
    raise invalid(FIELD, "must be an object")


def values_name(module: str) -> str:
    """What the file calls the values between A and B."""
    return f"{module}.lora_diag"


def base_change(base: BaseModules, name: str, rank: int) -> LowRank:
    """What training took out of the base's weight of module `name` before it began.

    The product is unique, the factors are not. Raises AdapterInvalid where the change cannot be
    confined to this adapter or found again.
    """
    module = base[name]
    if module.kind != "linear":
        raise AdapterInvalid(name, f"KaSA truncates linear layers, not one of kind {module.kind}")
    if name in base.tied:
        raise AdapterInvalid(name, "KaSA on a head that is tied also changed the embedding")
    kept = min(module.in_features, module.out_features) - rank
    if kept <= 0:
        raise AdapterInvalid(name, f"KaSA of rank {rank} leaves nothing of the base's weight")
    base.refuse_quantized(name, "KaSA")
    left, values, right = torch.linalg.svd(weight_of(module), full_matrices=False)
    return LowRank(right[kept:].contiguous(), -(left * values)[:, kept:].T.contiguous())
