"""HRA (arXiv:2405.17484): `y = W P x`, where P is a chain of Householder reflections.

`P = (I - 2 u1 u1ᵀ)(I - 2 u2 u2ᵀ)…` differs from I by `-2 C Uᵀ`, which has as many columns as
there are reflections. With `apply_GS` the u are made orthogonal first.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.linear_adapter import LinearAdapter, low_rank, weight_of
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One pair for each selected module, from the base's weight."""
    adapter = LinearAdapter("hra", checkpoint, tensors, base)
    rank = adapter.fields.integer("r", 8)
    orthogonal = adapter.fields.flag("apply_GS")
    for module in adapter.modules():
        given = adapter.take(f"{module.name}.hra_u", module.in_features, rank)
        axes = _orthogonal(given) if orthogonal else given / given.norm(dim=0)
        columns = axes if orthogonal else _chained(axes)
        adapter.add(module, low_rank(axes.T, -2 * (weight_of(module) @ columns).T))
    return adapter.plan()


def _orthogonal(vectors: Tensor) -> Tensor:
    axes: list[Tensor] = []
    for vector in vectors.unbind(1):
        rest = vector
        for axis in axes:
            rest = rest - (axis @ rest) * axis
        axes.append(rest / rest.norm())
    return torch.stack(axes, dim=1)


def _chained(axes: Tensor) -> Tensor:
    """C: each axis as the reflections before it leave it."""
    columns: list[Tensor] = []
    for at, axis in enumerate(axes.unbind(1)):
        column = axis
        for before, earlier in zip(columns, axes.unbind(1)[:at], strict=True):
            column = column - 2 * (earlier @ axis) * before
        columns.append(column)
    return torch.stack(columns, dim=1)
