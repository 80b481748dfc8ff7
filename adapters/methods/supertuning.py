"""Super-Tuning (arXiv:2607.09287): `y += S x + lora_alpha / r · B A x`, where S is sparse.

The pair is optional. The positions of S are those of W's largest or smallest values when training
began; they are in the file.
"""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank, sparse
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """A sparse matrix, and a pair where the adapter has one, for each selected module."""
    adapter = LinearAdapter("supertuning", checkpoint, tensors, base)
    fields = adapter.fields
    fields.ignore("lora_dropout", "select_top", "sparsity")  # the positions in the file say it
    rank, alpha = fields.count("r", 0), fields.number("lora_alpha", 0)
    if fields.get("save_precomputed_indices") is False:
        reason = "the positions are not in the file; equal values of the base make them ambiguous"
        raise invalid("save_precomputed_indices", reason)
    fields.flag("save_precomputed_indices")
    for module in adapter.modules():
        name = f"{module.name}.supertuning_"
        (count,) = adapter.shape(f"{name}values")[:1] or (1,)
        at = adapter.take_integers(f"{name}indices", count, below=module.elements)
        change = sparse(module, at, adapter.take(f"{name}values", count))
        if not rank:
            adapter.add(module, change)
            continue
        a = adapter.take(f"{name}lora_A.weight", rank, module.in_features)
        b = adapter.take(f"{name}lora_B.weight", module.out_features, rank)
        pair = low_rank(a, b.T * (alpha / rank))
        if isinstance(change, Dense) and isinstance(pair, Dense):
            adapter.add(module, Dense(change.matrix + pair.matrix))
        else:
            adapter.add(module, change, pair)
    return adapter.plan()
