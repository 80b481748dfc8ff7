"""How large an adapter's updates are beside the weights that they change, and what has none."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.errors import AdapterInvalid
from weft.adapters.operations import (
    Dense,
    InputScale,
    Kronecker,
    LowRank,
    Operation,
    OutputScale,
    Sparse,
)
from weft.adapters.plan import AdapterPlan

WeightNorm = Callable[[str], float | None]
"""Gives the Frobenius norm of a module's weight; None where the weight cannot be read here."""

_BLOCKS = 8
_BLOCK_ROWS = 64
_LAYER = re.compile(r"(.*?\.(\d+))(?:\.|$)")
_NAMED = 3


class Rows(Protocol):
    """A matrix that is read by ranges of rows: a tensor, or a part of a file."""

    def __getitem__(self, rows: slice) -> Tensor:
        """Some rows."""


@dataclass(frozen=True)
class Deltas:
    """Norms of the updates and of the weights that they change, by module."""

    updates: Mapping[str, float]
    weights: Mapping[str, float]

    @classmethod
    def of(cls, plan: AdapterPlan, weight_norm: WeightNorm) -> "Deltas":
        """Those of the modules whose updates and weights can both be told."""
        updates: dict[str, float] = {}
        weights: dict[str, float] = {}
        for module, ops in plan.ops.items():
            weight = weight_norm(module)
            update = None if not weight else _update_norm(ops, weight)
            if weight and update is not None:
                updates[module], weights[module] = update, weight
        return cls(updates, weights)

    def by_layer(self) -> dict[str, float]:
        """The updates' norm over the weights' for each layer, and each module outside of one."""
        sums: dict[str, list[float]] = {}
        for module, update in self.updates.items():
            total = sums.setdefault(_layer(module)[0], [0.0, 0.0])
            total[0] += update**2
            total[1] += self.weights[module] ** 2
        return {layer: math.sqrt(update / weight) for layer, (update, weight) in sums.items()}

    def warnings(self) -> Iterator[str]:
        """Updates that are larger than what they should only adjust."""
        ratios = {module: update / self.weights[module] for module, update in self.updates.items()}
        larger = sorted((m for m in ratios if ratios[m] > 1), key=lambda m: -ratios[m])
        if larger:
            others = f" (and {len(larger) - 1} more are larger than theirs)" * (len(larger) > 1)
            yield (
                f"the update of {larger[0]} is {ratios[larger[0]]:.3g} times as large as its "
                f"weights{others}: a wrong alpha or learning rate does that"
            )


def weight_norms(base: BaseModules) -> WeightNorm:
    """The norms of a loaded base, each computed once."""

    @cache
    def norm(module: str) -> float | None:
        try:
            weight = base.parameter(module, "weight")
        except AdapterInvalid:
            return None
        return estimated_norm(weight, len(weight)) if weight.dim() == 2 else None

    return norm


def estimated_norm(matrix: Rows, rows: int) -> float:
    """The Frobenius norm, estimated from rows spread over a matrix that has many.

    A warning needs no more, and to read a whole base for it would take as long as to load it.
    """
    blocks = [matrix[part].float() for part in _spread(rows)]
    read = sum(len(block) for block in blocks)
    squares = torch.stack([block.square().sum() for block in blocks]).sum()
    return math.sqrt(float(squares) * rows / read)


def missing_warnings(plan: AdapterPlan, base: BaseModules) -> Iterator[str]:
    """Kinds of modules of which at least half have no update, though others of their kind do."""
    for kind in sorted({name.rpartition(".")[2] for name in plan.ops}):
        layers = {
            name: layer
            for name in base
            if name.rpartition(".")[2] == kind and (layer := _layer(name)[1]) is not None
        }
        missing = [name for name in layers if name not in plan.ops]
        if missing and 2 * len(missing) >= len(layers) > len(missing):
            bare = {layers[name] for name in missing}
            bare -= {layers[name] for name in layers if name in plan.ops}
            where = f": none in layers {_ranges(sorted(bare))}" if bare else ""
            changed = len(layers) - len(missing)
            yield f"only {changed} of {len(layers)} {kind} have an update{where}"


def _spread(rows: int) -> list[slice]:
    if rows <= _BLOCKS * _BLOCK_ROWS:
        return [slice(0, rows)]
    starts = (i * (rows - _BLOCK_ROWS) // (_BLOCKS - 1) for i in range(_BLOCKS))
    return [slice(start, start + _BLOCK_ROWS) for start in starts]


def _update_norm(ops: Sequence[Operation], weight: float) -> float | None:
    """Of all updates of a module, taken as independent of each other; None if one has no norm."""
    norms = [_norm(op, weight) for op in ops]
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) if len(known) == len(norms) else None


def _norm(op: Operation, weight: float) -> float | None:
    """The Frobenius norm of what an operation adds to a weight of this norm."""
    match op:
        case LowRank():
            a, b = op.a.double(), op.b.double()
            # The squared norm of aᵀ b, by matrices of rank × rank.
            return math.sqrt(max(float(((a @ a.T) * (b @ b.T)).sum()), 0.0))
        case Dense():
            return _frobenius(op.matrix)
        case Sparse():
            return _frobenius(op.values)
        case Kronecker():
            return _frobenius(op.outer) * _frobenius(op.inner)
        case OutputScale() | InputScale():
            # As if all rows, or columns, of the weight were of one size.
            return weight * _frobenius(op.factors - 1) / math.sqrt(op.factors.numel())
    return None


def _frobenius(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.float()))


def _layer(module: str) -> tuple[str, int | None]:
    """The name up to its first number, and that number; the whole name where it has none."""
    match = _LAYER.match(module)
    return (match[1], int(match[2])) if match else (module, None)


def _ranges(numbers: Sequence[int]) -> str:
    """`0, 2–5` from ascending numbers; the first few ranges of many."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [str(a) if a == b else f"{a}–{b}" for a, b in found[:_NAMED]]
    return ", ".join(shown + ["…"] * (len(found) > _NAMED))
