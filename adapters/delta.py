"""How large an adapter's updates are beside the weights that they change, and what has none."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.errors import AdapterInvalid
from weft.adapters.operations import (
    AttendedPrompt,
    AttentionPrefix,
    Bottleneck,
    Dense,
    InputRotation,
    InputScale,
    Kronecker,
    LowRank,
    Operation,
    OutputScale,
    OutputShift,
    Override,
    PairRotation,
    RowOverride,
    Sparse,
    VirtualTokens,
)
from weft.adapters.plan import AdapterPlan

_BESIDE_WEIGHTS = (AttendedPrompt, AttentionPrefix, Bottleneck, VirtualTokens)
"""What computes something of its own: there is no weight that it could be compared with."""
_BLOCKS = 8
_BLOCK_ROWS = 64
_LAYER = re.compile(r"(.*?\.(\d+))(?:\.|$)")
_NAMED = 3


class Rows(Protocol):
    """A matrix that is read by ranges of rows: a tensor, or a part of a file."""

    def __getitem__(self, rows: slice) -> Tensor:
        """Some rows."""


class Weights(Protocol):
    """What can be read here of the base's weights."""

    def norm(self, module: str) -> float | None:
        """The Frobenius norm of a module's weight as it is put to use, or None."""

    def parameter(self, module: str, name: str) -> Tensor | None:
        """A parameter's values, or None."""


@dataclass(frozen=True)
class Deltas:
    """Norms of the updates and of the weights that they change, by module."""

    updates: Mapping[str, float]
    weights: Mapping[str, float]

    @classmethod
    def of(cls, plan: AdapterPlan, base: BaseModules, weights: Weights) -> "Deltas":
        """Those of the modules whose updates and weights can both be told."""
        updates: dict[str, float] = {}
        norms: dict[str, float] = {}
        for module, ops in plan.ops.items():
            scale = base[module].scale if module in base else 1.0
            changes = [op for op in ops if not isinstance(op, _BESIDE_WEIGHTS)]
            norm = _own_norm(module, changes, weights) if changes else None
            if not norm:
                continue
            update = _Change(module, norm * scale, scale, weights).norm(changes)
            if update is not None:
                updates[module], norms[module] = update, norm * scale
        return cls(updates, norms)

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


def _own_norm(module: str, changes: Sequence[Operation], weights: Weights) -> float | None:
    """Of the weight that operations change; of a module of other parameters those they replace."""
    norm = weights.norm(module)
    if norm is not None or not all(isinstance(op, Override) for op in changes):
        return norm
    names = (name for op in changes if isinstance(op, Override) for name in op.parameters)
    own = [weights.parameter(module, name) for name in names]
    known = [_frobenius(parameter) for parameter in own if parameter is not None]
    return math.hypot(*known) if len(known) == len(own) else None


class LoadedWeights:
    """Those of a loaded base; each norm is computed once."""

    def __init__(self, base: BaseModules) -> None:
        self._base = base
        self._norms: dict[str, float | None] = {}

    def norm(self, module: str) -> float | None:
        """See Weights."""
        if module not in self._norms:
            weight = self.parameter(*self._base.weight_of(module))
            self._norms[module] = None if weight is None else norm_of(weight)
        return self._norms[module]

    def parameter(self, module: str, name: str) -> Tensor | None:
        """See Weights."""
        try:
            return self._base.parameter(module, name)
        except AdapterInvalid:
            return None


def norm_of(weight: Tensor) -> float | None:
    """The norm of a vector, or of a matrix or several, estimated; None without dimensions."""
    if weight.dim() < 2:
        return _frobenius(weight) if weight.dim() else None
    rows = weight.flatten(0, -2)
    return estimated_norm(rows, len(rows))


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
            for name in (*base, *base.experts)
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


@dataclass(frozen=True)
class _Change:
    """What operations add to one module's weight.

    weight: norm of the weight, times `scale`, by which the module multiplies what it puts out
    """

    module: str
    weight: float
    scale: float
    weights: Weights

    def norm(self, ops: Sequence[Operation]) -> float | None:
        """Of all operations, taken as independent of each other; None if one has no norm."""
        norms = [self._norm(op) for op in ops]
        known = [norm for norm in norms if norm is not None]
        return math.hypot(*known) if len(known) == len(norms) else None

    def _norm(self, op: Operation) -> float | None:
        match op:
            case LowRank():
                a, b = op.a.double(), op.b.double()
                # The squared norm of aᵀ b, by matrices of rank × rank.
                return math.sqrt(max(float(((a @ a.mT) * (b @ b.mT)).sum()), 0.0))
            case Dense():
                return _frobenius(op.matrix)
            case Sparse():
                return _frobenius(op.values)
            case Kronecker():
                return _frobenius(op.outer) * _frobenius(op.inner)
            case OutputShift():  # a column of the weight, for an input that is always 1
                return _frobenius(op.offsets)
            case Override():
                return self._replaced(op)
            case RowOverride():
                own = self.weights.parameter(self.module, "weight")
                return None if own is None else _frobenius(op.rows - self._rows(own, op.ids))
        turned = _relative(op)
        return None if turned is None else self.weight * turned

    def _rows(self, weight: Tensor, ids: Tensor) -> Tensor:
        return weight[ids.to(weight.device)].cpu().float() * self.scale

    def _replaced(self, op: Override) -> float | None:
        """Of the differences between the parameters of both sides."""
        squares = 0.0
        for name, value in op.parameters.items():
            own = self.weights.parameter(self.module, name)
            if own is None:
                return None
            squares += _frobenius(value.float() - own.cpu().float()) ** 2
        return self.scale * math.sqrt(squares)


def _relative(op: Operation) -> float | None:
    """Of what multiplies a weight, as if all rows, or columns, of the weight were of one size."""
    match op:
        case OutputScale() | InputScale():
            return _frobenius(op.factors - 1) / math.sqrt(op.factors.numel())
        case InputRotation():
            blocks, size, _ = op.blocks.shape
            return _frobenius(op.blocks - torch.eye(size)) / math.sqrt(blocks * size)
        case PairRotation():
            change = math.hypot(_frobenius(op.direct - 1), _frobenius(op.crossed))
            return change / math.sqrt(op.direct.numel())
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
