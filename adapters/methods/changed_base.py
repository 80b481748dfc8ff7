"""PiSSA and OLoRA: training that first took a low-rank part out of the base's own weights.

Such an adapter belongs to the base without that part. The served base keeps its weights, so the
part is taken out by a second low-rank pair, found again from the weights as the trainer found it.
"""

import torch

from weft.adapters.base import BaseModules
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods.lora_config import Init, Strength
from weft.adapters.operations import LowRank


def base_change(init: Init, base: BaseModules, name: str, strength: Strength) -> LowRank | None:
    """What training added to the base's weight of module `name` before it began; None = nothing.

    Raises AdapterInvalid where the change cannot be confined to this adapter or found again.
    """
    module = base[name]
    if init == "plain" or module.kind == "embedding":
        return None
    if name in base.tied:
        raise AdapterInvalid(name, f"{init} on a head that is tied also changed the embedding")
    weight = module.weight().to("cpu", torch.float32)
    base.refuse_quantized(name, init)
    if strength.rank > min(weight.shape):
        raise AdapterInvalid(name, f"{init} needs a rank of at most {min(weight.shape)}")
    if init == "pissa":
        return _principal_part(weight, strength.rank)
    if module.kind == "conv1d":
        raise AdapterInvalid(name, "olora on a Conv1D layer decomposes a transposed weight")
    return _leading_columns(weight, strength)


def _principal_part(weight: torch.Tensor, rank: int) -> LowRank:
    """`-U S V` of the largest singular values; the product is unique, the factors are not."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:rank, None].sqrt()
    return LowRank(root * right[:rank], -root * left[:, :rank].T)


def _leading_columns(weight: torch.Tensor, strength: Strength) -> LowRank:
    """`-scaling · Q R` of the first columns of Q and rows of R; unique as a product."""
    q, r = torch.linalg.qr(weight)
    rank = strength.rank
    return LowRank(r[:rank].contiguous(), (-strength.scaling * q[:, :rank].T).contiguous())
