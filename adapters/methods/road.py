"""RoAD (arXiv:2409.00119): pairs of outputs, turned by trained angles and stretched."""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter
from weft.adapters.operations import PairRotation
from weft.adapters.plan import AdapterPlan

# How many angles the file holds for each group, as a multiple of the group's features.
_ANGLES = {"road_1": 0.5, "road_2": 1, "road_4": 2}


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One rotation for each selected module."""
    adapter = LinearAdapter("road", checkpoint, tensors, base)
    variant = adapter.fields.choice("variant", *_ANGLES)
    size = adapter.fields.integer("group_size", 64)
    if size % 2:
        raise invalid("group_size", "must be even")
    for module in adapter.modules():
        if module.out_features % size:
            reason = f"{size} does not divide the {module.out_features} outputs of {module.name}"
            raise invalid("group_size", reason)
        count = int(module.out_features * _ANGLES[variant])
        angles, stretches = (
            adapter.take(f"{module.name}.road_{part}", count) for part in ("theta", "alpha")
        )
        adapter.add(module, _rotation(variant, size, angles, stretches))
    return adapter.plan()


def _rotation(variant: str, size: int, angles: Tensor, stretches: Tensor) -> PairRotation:
    """road_1: one angle for each pair; road_2: for each feature; road_4: for each factor of it."""
    if variant == "road_1":
        angles, stretches = (
            values.view(-1, size // 2).repeat(1, 2) for values in (angles, stretches)
        )
    cosines, sines = angles.cos() * stretches, angles.sin() * stretches
    if variant == "road_4":
        return PairRotation(cosines.view(-1, 2, size)[:, 0], sines.view(-1, 2, size)[:, 1])
    return PairRotation(cosines.view(-1, size), sines.view(-1, size))
