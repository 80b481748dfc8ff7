"""MiSS (arXiv:2409.15371): one block for all pieces of a row of W, in three variants.

plain: `y_j += Σ_k block_kj · Σ x_i` over the i with `i mod r = k`, a pair whose A only adds up
mini: the same, with a narrow block repeated over the outputs
bat: `W'_pq = W_pq + W_pq · block_p + block_p` for every r × r piece of W, which has full rank
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank, parts, weight_of
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module; for bat a matrix, from the base's weight."""
    adapter = LinearAdapter("miss", checkpoint, tensors, base)
    fields = adapter.fields
    fields.ignore("miss_dropout")
    rank, narrow = fields.integer("r", 64), fields.integer("mini_r", 1)
    variant = _variant(fields.get("init_weights"))
    for module in adapter.modules():
        name = f"{module.name}.miss_block"
        if variant == "bat":
            parts(module, rank, "r")
            block = adapter.take(name, module.out_features // rank, rank, rank)
            adapter.add(module, Dense(_blockwise(module, block)))
            continue
        if rank > module.in_features:
            raise invalid("r", f"{rank} is wider than {module.name}")
        if variant == "mini":
            if module.out_features % narrow:
                raise invalid("mini_r", f"{narrow} does not divide the width of {module.name}")
            b = adapter.take(name, rank, narrow).repeat(1, module.out_features // narrow)
        else:
            b = adapter.take(name, rank, module.out_features)
        adapter.add(module, low_rank(_folds(rank, module.in_features), b))
    return adapter.plan()


def _variant(init: object) -> str:
    if init is None or isinstance(init, bool):
        return "plain"
    if isinstance(init, str) and init in ("bat", "mini"):
        return init
    raise invalid("init_weights", f"{init!r} is not a variant of MiSS")


def _folds(rank: int, width: int) -> Tensor:
    """`[rank, width]`, 1 where the column leaves the row as its rest."""
    return (torch.arange(width) % rank == torch.arange(rank)[:, None]).float()


def _blockwise(module: TargetModule, block: Tensor) -> Tensor:
    rank = block.shape[-1]
    weight = weight_of(module)
    pieces = weight.view(len(block), rank, -1, rank).permute(2, 0, 1, 3)
    return (pieces @ block + block).permute(1, 2, 0, 3).reshape(weight.shape)
