"""OFT (arXiv:2306.07280): the input, rotated block by block before the linear layer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import Fields, invalid
from weft.adapters.methods.linear_adapter import LinearAdapter
from weft.adapters.operations import InputRotation
from weft.adapters.plan import AdapterPlan

_SERIES_SINCE = (0, 18)


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One block-diagonal rotation for each selected module."""
    adapter = LinearAdapter("oft", checkpoint, tensors, base)
    config = _Config.read(adapter.fields)
    for module in adapter.modules():
        count, size = config.blocks(module)
        rows = 1 if config.shared else count
        angles = adapter.take(f"{module.name}.oft_R.weight", rows, size * (size - 1) // 2)
        adapter.add(module, InputRotation(config.rotations(_skew(angles, size))))
    return adapter.plan()


@dataclass(frozen=True)
class _Config:
    """count, size: of the blocks; one is 0 and follows from the other
    shared: whether all blocks are one   limit: of COFT, how far blocks may be from the identity
    terms: of the series that stands for the exact rotation, or None for the exact one
    """

    count: int
    size: int
    shared: bool
    limit: float | None
    terms: int | None

    @classmethod
    def read(cls, fields: Fields) -> Self:
        if fields.get("oft_block_size") is None:
            raise invalid("oft_block_size", "is missing: PEFT before 0.14 had another OFT")
        count, size = fields.count("r", 0), fields.count("oft_block_size", 0)
        if bool(count) == bool(size):
            raise invalid("oft_block_size", "exactly one of it and r must be set")
        fields.ignore("module_dropout")
        coft, limit = fields.flag("coft"), fields.number("eps", 6e-5)
        is_series = fields.get("use_cayley_neumann") is None or fields.flag("use_cayley_neumann")
        terms = fields.integer("num_cayley_neumann_terms", 5)
        if is_series and _version(fields.get("peft_version")) < _SERIES_SINCE:
            reason = "the series of PEFT before 0.18 was another one: train it again"
            raise invalid("use_cayley_neumann", reason)
        return cls(
            count,
            size,
            fields.flag("block_share"),
            limit if coft else None,
            terms if is_series else None,
        )

    def blocks(self, module: TargetModule) -> tuple[int, int]:
        """Number and size of a module's blocks."""
        width = module.in_features
        if self.size:
            size = _nearest_divisor(self.size, width)
            return width // size, size
        count = _nearest_divisor(self.count, width)
        return count, width // count

    def rotations(self, skew: Tensor) -> Tensor:
        """The rotations that skew-symmetric blocks `[count, size, size]` stand for."""
        if self.limit is not None:
            limit = self.limit / len(skew) ** 0.5
            norms = torch.linalg.matrix_norm(skew, keepdim=True)
            skew = torch.where(norms <= limit, skew, skew * (limit / norms))
        identity = torch.eye(skew.shape[-1])
        if self.terms is None:
            exact: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
            return exact
        return _series(skew, identity, self.terms)


def _series(skew: Tensor, identity: Tensor, terms: int) -> Tensor:
    """`I + 2 Q + 2 Q² + … + Qⁿ`: the Neumann series of Cayley's rotation, its last term halved."""
    result = identity.expand_as(skew)
    if terms > 1:
        result = result + 2 * skew
    if terms > 2:
        power = skew @ skew
        result = result + 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            result = result + 2 * power
        result = result + power @ skew
    return result


def _skew(values: Tensor, size: int) -> Tensor:
    """Skew-symmetric `[count, size, size]` from the values above the diagonal, row by row."""
    rows, columns = torch.triu_indices(size, size, 1)
    upper = torch.zeros(len(values), size, size)
    upper[:, rows, columns] = values
    return upper - upper.transpose(1, 2)


def _nearest_divisor(wanted: int, width: int) -> int:
    """The divisor of `width` that is nearest, the smaller one of two."""
    divisors = (value for value in range(1, width + 1) if width % value == 0)
    return min(divisors, key=lambda value: (abs(value - wanted), value))


def _version(text: object) -> tuple[int, int]:
    """The first two numbers of a version; none where it is missing."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else (0, 0)
