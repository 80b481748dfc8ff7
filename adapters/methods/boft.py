"""BOFT (arXiv:2311.06243): `y = s ∘ (W R x) + bias`, where R is a product of sparse rotations.

A single one, the only kind that peft makes without its CUDA extension, is block-diagonal; several
are interleaved as a butterfly, and served as the matrix `s ∘ (W R) - W`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid
from weft.adapters.methods.linear_adapter import LinearAdapter, weight_of
from weft.adapters.operations import Dense, InputRotation, OutputScale, OutputShift
from weft.adapters.plan import AdapterPlan


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """A rotation and a scale, or a matrix, for each selected module."""
    adapter = LinearAdapter("boft", checkpoint, tensors, base)
    fields = adapter.fields
    fields.ignore("boft_dropout")
    size, count = fields.count("boft_block_size", 4), fields.count("boft_block_num", 0)
    factors = fields.integer("boft_n_butterfly_factor", 1)
    if bool(size) == bool(count):
        raise invalid("boft_block_num", "must be set where boft_block_size is 0, and only there")
    for module in adapter.modules():
        field = "boft_block_size" if size else "boft_block_num"
        if module.in_features % (size or count):
            raise invalid(field, f"{size or count} does not divide the width of {module.name}")
        blocks = count or module.in_features // size
        width = module.in_features // blocks
        name = f"{module.name}.boft_R"
        single = adapter.shape(name)[:1] == (1,)
        if not single and (width % 2 or blocks % (1 << (factors - 1))):
            reason = f"{factors} cannot interleave {blocks} blocks of {width}"
            raise invalid("boft_n_butterfly_factor", reason)
        given = adapter.take(name, 1 if single else factors, blocks, width, width)
        scale = adapter.take(f"{module.name}.boft_s", module.out_features, 1)
        rotations = _rotations(given)
        if single:
            _add_rotation(adapter, module, rotations[0], scale[:, 0])
        else:
            weight = weight_of(module)
            adapter.add(module, Dense(scale * (weight @ _butterfly(rotations).T) - weight))
    return adapter.plan()


def _rotations(given: Tensor) -> Tensor:
    """The Cayley transform of each block's skew part, `(I - S)(I + S)⁻¹`."""
    skew = (given - given.transpose(-1, -2)) / 2
    identity = torch.eye(given.shape[-1])
    rotations: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
    return rotations


def _add_rotation(
    adapter: LinearAdapter, module: TargetModule, blocks: Tensor, scale: Tensor
) -> None:
    adapter.add(module, InputRotation(blocks), OutputScale(scale))
    biases = adapter.biases(module)
    if biases is not None:
        own, new = biases
        adapter.add(module, OutputShift(new - scale * own))


def _butterfly(rotations: Tensor) -> Tensor:
    """The product of all factors, each of which rotates other groups, `[width, width]`."""
    factors, count, size, _ = rotations.shape
    product = torch.eye(count * size)
    for at in range(factors):
        runs = torch.arange(count * size).view(count >> at, -1, size // 2)
        order = torch.cat([runs[:, ::2], runs[:, 1::2]], dim=1).flatten()
        blocks: Tensor = torch.block_diag(*rotations[at])  # type: ignore[no-untyped-call]
        product = blocks[order[:, None], order] @ product
    return product
