"""C3A (arXiv:2407.19342): `y += K x / in_features`, where K is made of circulant blocks.

Each block of b × b repeats one vector of b values; as a matrix it is in full.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import positive_integer
from weft.adapters.methods.linear_adapter import LinearAdapter, parts
from weft.adapters.methods.patterns import AFTER_A_DOT, first_match
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One matrix for each selected module."""
    adapter = LinearAdapter("c3a", checkpoint, tensors, base)
    fields = adapter.fields
    sizes = fields.table("block_size_pattern", positive_integer)
    default = fields.integer("block_size", 256)
    size_of = first_match(sizes, default, "block_size_pattern", AFTER_A_DOT)
    for module in adapter.modules():
        size = size_of(module.name)
        blocks_in, blocks_out = parts(module, size, "block_size")
        kernel = adapter.take(f"{module.name}.c3a_kernel", blocks_out, blocks_in, size)
        at = torch.arange(size)
        blocks = kernel[:, :, (at - at[:, None]) % size]
        matrix = blocks.transpose(1, 2).reshape(module.out_features, module.in_features)
        adapter.add(module, Dense(matrix / module.in_features))
    return adapter.plan()
