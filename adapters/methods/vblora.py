"""VB-LoRA (arXiv:2405.15179): `y += B A x`, whose rows are cut from one bank of vectors.

Each piece of A and B is a mixture of a few vectors of the bank. The file holds logits for all
vectors, or only the weights and numbers of those that are used.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module."""
    adapter = LinearAdapter("vblora", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    fields.ignore("vblora_dropout", "init_vector_bank_bound", "init_logits_std")
    rank, top = fields.integer("r", 4), fields.integer("topk", 2)
    count, length = fields.integer("num_vectors", 256), fields.integer("vector_length", 256)
    only_top = fields.flag("save_only_topk_weights")
    if top > count:
        raise invalid("topk", f"is larger than num_vectors, {count}")
    modules = adapter.modules()
    bank = adapter.take("vblora_vector_bank", count, length)

    def mixed(name: str, *shape: int) -> Tensor:
        read = _top if only_top else _all
        weights, chosen = read(adapter, name, shape, top, count)
        return (weights[..., None] * bank[chosen]).sum(-2)

    for module in modules:
        for width in (module.in_features, module.out_features):
            if width % length:
                raise invalid("vector_length", f"{length} does not divide a width of {module.name}")
        pieces_in, pieces_out = module.in_features // length, module.out_features // length
        a = mixed(f"{module.name}.vblora_logits_A", rank, pieces_in).flatten(1)
        b = mixed(f"{module.name}.vblora_logits_B", pieces_out, rank).transpose(0, 1).flatten(1)
        adapter.add(module, low_rank(a, b))
    return adapter.plan()


def _all(
    adapter: LinearAdapter, name: str, shape: tuple[int, ...], top: int, count: int
) -> tuple[Tensor, Tensor]:
    logits, chosen = adapter.take(name, *shape, count).topk(top, dim=-1)
    return logits.softmax(-1), chosen


def _top(
    adapter: LinearAdapter, name: str, shape: tuple[int, ...], top: int, count: int
) -> tuple[Tensor, Tensor]:
    """The last weight is not in the file: all add up to 1."""
    weights = adapter.take(f"{name}_topk_weights", *shape, top - 1)
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    return weights, adapter.take_integers(f"{name}_topk_indices", *shape, top, below=count)
