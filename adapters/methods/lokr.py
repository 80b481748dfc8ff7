"""LoKr (arXiv:2309.14859): `y += alpha / r · (W1 ⊗ W2) x`, each W in full or as two factors."""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods.fields import finite_number, positive_integer
from weft.adapters.methods.linear_adapter import LinearAdapter
from weft.adapters.methods.patterns import first_match
from weft.adapters.operations import Kronecker
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One Kronecker product for each selected module."""
    adapter = LinearAdapter("lokr", checkpoint, tensors, base)
    fields = adapter.fields
    fields.ignore("rank_dropout", "module_dropout", "rank_dropout_scale", "use_effective_conv2d")
    fields.ignore("decompose_both", "decompose_factor")  # the shapes in the file say it
    ranks = fields.table("rank_pattern", positive_integer)
    alphas = fields.table("alpha_pattern", finite_number)
    rank_of = first_match(ranks, fields.integer("r", 8), "rank_pattern")
    alpha_of = first_match(alphas, fields.number("alpha", 8), "alpha_pattern")
    for module in adapter.modules():
        name, rank = module.name, rank_of(module.name)
        part = f"{name}.lokr_w1"
        outer = _factor(adapter, part, rank, _size(adapter, part))
        rows, columns = outer.shape
        size = (module.out_features // rows, module.in_features // columns)
        if (rows * size[0], columns * size[1]) != (module.out_features, module.in_features):
            reason = f"has a first factor of shape {[rows, columns]}, which does not divide W's"
            raise AdapterInvalid(name, reason)
        inner = _factor(adapter, f"{name}.lokr_w2", rank, size)
        adapter.add(module, Kronecker(outer * (alpha_of(name) / rank), inner))
    return adapter.plan()


def _size(adapter: LinearAdapter, part: str) -> tuple[int, int]:
    """Rows and columns of a factor, in full or in two; at least 1."""
    if adapter.has(part):
        shape = adapter.shape(part)
    else:
        shape = adapter.shape(f"{part}_a")[:1] + adapter.shape(f"{part}_b")[1:]
    rows, columns = (*shape, 1, 1)[:2]
    return max(1, rows), max(1, columns)


def _factor(adapter: LinearAdapter, part: str, rank: int, size: tuple[int, int]) -> Tensor:
    if adapter.has(part):
        return adapter.take(part, *size)
    return adapter.take(f"{part}_a", size[0], rank) @ adapter.take(f"{part}_b", rank, size[1])
