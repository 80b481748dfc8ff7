"""The operations that a version of an adapter may be lowered to, one class a kind.

In one module they are computed in this order, over the rows of the adapter that has them:

    x = InputRotation(x), InputScale(x)         what the module is given
    x += AttendedPrompt(queries)                only where attention ends, or to y at the end
    y = base(x), or Override(x)                 as the base computes it, with its own bias
    y = RowOverride(y), OutputScale(y), OutputShift(y)
    y += LowRank(x), Dense(x), Sparse(x), Kronecker(x)
    y = PairRotation(y)
    y += Bottleneck(y, residual stream)         only where a sublayer ends

What stands before a prompt is an operation too, of which a version has at most one kind:
VirtualTokens of the embedding, or an AttentionPrefix of every attention layer.

To add a kind: its class here, its verb in `weft.kernels`, its place in `weft.adapters.stages`.
Tensors of an operation are on the host and contiguous; a plan's copy on the device is the same
operation with other tensors. Floating-point tensors take the arena's dtype there, all others keep
their own.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self, TypeGuard

import torch
from torch import Tensor

from weft.kernels.bottleneck import Network, Tap
from weft.kernels.dense import CompressedRows

_NO_EFFECT = 1e-6


@dataclass(frozen=True)
class Operation:
    """Base of all kinds: a frozen dataclass whose fields are tensors, or tensors by name, or words.

    keeps_dtype: whether its tensors are computed with by the base's own module, in its dtype
    adds: whether it adds to a module's output what depends on the module's input alone, or stands
        before the prompt; so that it goes with operations of other versions
    """

    keeps_dtype: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the fields."""
        return tuple(tensor for value in self._values() for tensor in _tensors_in(value))

    @property
    def entry(self) -> object:
        """What the kernel's verb takes of a slot."""
        return self.tensors

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """The same operation with these tensors in place of its own, in the order of `tensors`."""
        source = iter(tensors)
        return type(self)(*(_refilled(value, source) for value in self._values()))

    def stored_dtype(self, tensor: Tensor, arena: torch.dtype) -> torch.dtype:
        """The dtype in which one of the tensors lies in an arena of another dtype."""
        return tensor.dtype if self.keeps_dtype or not tensor.is_floating_point() else arena

    def has_effect(self) -> bool:
        """Whether it changes its module's output by more than rounding does."""
        raise NotImplementedError

    def _values(self) -> list[object]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class InputRotation(Operation):
    """`x = x · blockdiag(blocks)`.

    blocks: [in_features / size, size, size], or [1, size, size] for one that all share
    """

    blocks: Tensor

    def has_effect(self) -> bool:
        """Whether a block differs from the identity."""
        identity = torch.eye(self.blocks.shape[-1])
        return bool((self.blocks - identity).abs().max() > _NO_EFFECT)


@dataclass(frozen=True)
class InputScale(Operation):
    """`x = x ∘ factors`; factors: [in_features]."""

    factors: Tensor

    def has_effect(self) -> bool:
        """Whether a factor differs from 1."""
        return bool((self.factors - 1).abs().max() > _NO_EFFECT)


@dataclass(frozen=True)
class Override(Operation):
    """The module's own computation with other parameters, by the names that the module gives them.

    The parameters have the shapes and dtypes of the base's; those not named stay the base's.
    """

    keeps_dtype: ClassVar[bool] = True

    parameters: Mapping[str, Tensor]

    def has_effect(self) -> bool:
        """True: who lowers drops parameters that are equal to the base's."""
        return True


@dataclass(frozen=True)
class RowOverride(Operation):
    """Some rows of the weight replaced: of an embedding by token, of a head by token it predicts.

    ids: int64 [count], ascending   rows: [count, width]; of an embedding as it is put out
    """

    ids: Tensor
    rows: Tensor

    def has_effect(self) -> bool:
        """True: who lowers drops rows that are equal to the base's."""
        return True


@dataclass(frozen=True)
class OutputScale(Operation):
    """`y = y ∘ factors`, the base's bias included; factors: [out_features]."""

    factors: Tensor

    def has_effect(self) -> bool:
        """Whether a factor differs from 1."""
        return bool((self.factors - 1).abs().max() > _NO_EFFECT)


@dataclass(frozen=True)
class OutputShift(Operation):
    """`y = y + offsets`; offsets: [out_features]."""

    adds: ClassVar[bool] = True

    offsets: Tensor

    def has_effect(self) -> bool:
        """Whether an offset is not 0."""
        return bool(self.offsets.any())


@dataclass(frozen=True)
class LowRank(Operation):
    """`y += (x aᵀ) b`; the scaling is folded into `b`.

    a: [rank, in_features] (for an embedding in_features is the vocabulary and x is one-hot)
    b: [rank, out_features], the transpose of peft's B
    On a map of a layer of experts both have one more dimension in front, the expert.
    """

    adds: ClassVar[bool] = True

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Rank as computed, after lowering."""
        return self.a.shape[-2]

    def has_effect(self) -> bool:
        """Whether the product is not zero, also where its terms cancel."""
        a, b = self.a.double(), self.b.double()
        terms = (a @ a.mT) * (b @ b.mT)  # their sum is the squared norm of aᵀ b
        scale = float(terms.diagonal(dim1=-2, dim2=-1).sum())
        return scale > 0 and float(terms.sum()) > _NO_EFFECT**2 * scale


@dataclass(frozen=True)
class Dense(Operation):
    """`y += x matrixᵀ`; matrix: [out_features, in_features]."""

    adds: ClassVar[bool] = True

    matrix: Tensor

    def has_effect(self) -> bool:
        """Whether a value is not 0."""
        return bool(self.matrix.any())


@dataclass(frozen=True)
class Sparse(Operation):
    """`y += x Sᵀ` for a sparse S of [out_features, in_features], by compressed rows.

    starts: int32 [out_features + 1], where each row begins in the other two
    columns: int32 [count], ascending within a row   values: [count]
    """

    adds: ClassVar[bool] = True

    starts: Tensor
    columns: Tensor
    values: Tensor

    @property
    def entry(self) -> CompressedRows:
        """The matrix."""
        return CompressedRows(self.starts, self.columns, self.values)

    def has_effect(self) -> bool:
        """Whether a value is not 0."""
        return bool(self.values.any())


@dataclass(frozen=True)
class Kronecker(Operation):
    """`y += x (outer ⊗ inner)ᵀ`.

    outer: [a, c]   inner: [b, d], with a · b = out_features and c · d = in_features
    """

    adds: ClassVar[bool] = True

    outer: Tensor
    inner: Tensor

    def has_effect(self) -> bool:
        """Whether neither factor is 0."""
        return bool(self.outer.any() and self.inner.any())


@dataclass(frozen=True)
class PairRotation(Operation):
    """`y = y ∘ direct + r(y) ∘ crossed`, where r turns pairs (u, v) of features to (-v, u).

    direct, crossed: [groups, group size]; a pair is a feature of a group's first half and the one
    at the same place in its second half
    """

    direct: Tensor
    crossed: Tensor

    def has_effect(self) -> bool:
        """Whether it differs from the identity."""
        change = torch.maximum((self.direct - 1).abs().max(), self.crossed.abs().max())
        return bool(change > _NO_EFFECT)


@dataclass(frozen=True)
class Bottleneck(Operation):
    """`y += act(x downᵀ + down_bias) upᵀ + up_bias`, where y is a sublayer's output.

    The scaling is folded into `up` and `up_bias`; see `weft.kernels.bottleneck.Network`.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    activation: str
    tap: Tap

    @property
    def entry(self) -> Network:
        """The network."""
        return Network(self.down, self.down_bias, self.up, self.up_bias, self.activation, self.tap)

    def has_effect(self) -> bool:
        """Whether what it adds is not 0 for all inputs."""
        return bool(self.up.any() or self.up_bias.any())


@dataclass(frozen=True)
class AttendedPrompt(Operation):
    """`x += softmax(q keysᵀ / √dim) values` in each head, for the queries q of the attention.

    x: what the attention's output projection is given, or in GPT-2 its output, as peft trains it

    keys, values: [count, kv_heads, dim], the gate folded into the values
    """

    keys: Tensor
    values: Tensor

    def has_effect(self) -> bool:
        """Whether a value is not 0."""
        return bool(self.values.any())


@dataclass(frozen=True)
class VirtualTokens(Operation):
    """Rows that stand before the prompt's own, as if the embedding had put them out.

    rows: [count, width]
    """

    adds: ClassVar[bool] = True

    rows: Tensor

    def has_effect(self) -> bool:
        """True: whatever they are, the prompt attends to them."""
        return True


@dataclass(frozen=True)
class AttentionPrefix(Operation):
    """Keys and values of positions before the prompt's first, as they lie in a KV cache.

    keys: [count, kv_heads, k_dim]   values: [count, kv_heads, v_dim]
    """

    adds: ClassVar[bool] = True

    keys: Tensor
    values: Tensor

    def has_effect(self) -> bool:
        """True: whatever they are, the prompt attends to them."""
        return True


def _tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif _is_named(value):
        yield from value.values()


def _refilled(value: object, source: Iterator[Tensor]) -> object:
    if isinstance(value, Tensor):
        return next(source)
    return {name: next(source) for name in value} if _is_named(value) else value


def _is_named(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(value, Mapping)
