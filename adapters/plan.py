"""A version of an adapter, lowered to primitive operations on named modules of the base."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from weft.adapters.operations import AttentionPrefix, Operation, VirtualTokens
from weft.adapters.traits import Traits

Kind = TypeVar("Kind", bound=Operation)


@dataclass(frozen=True)
class AdapterPlan:
    """What the engine computes for one version, and nothing else of it.

    `ops` maps a base module's full name to its operations, at most one of each kind. Tensors are
    on the host, contiguous.

    invocation: see Traits
    """

    digest: str
    method: str
    ops: Mapping[str, tuple[Operation, ...]]
    invocation: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for module, ops in self.ops.items():
            if len({type(op) for op in ops}) < len(ops):
                raise ValueError(f"{module} has two operations of one kind")

    def __iter__(self) -> Iterator[tuple[str, Operation]]:
        """Every operation with its module's name; the order of everything that is laid out."""
        for module, ops in self.ops.items():
            for op in ops:
                yield module, op

    @property
    def traits(self) -> Traits:
        """What the version asks of the sequences that use it."""
        embedded = self.of_kind(VirtualTokens).values()
        attended = self.of_kind(AttentionPrefix).values()
        return Traits(
            embeddings=max((len(op.rows) for op in embedded), default=0),
            prefix=max((len(op.keys) for op in attended), default=0),
            invocation=self.invocation,
            additive=not self.exclusive,
        )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """The modules to which it does more than add."""
        return tuple(m for m, ops in self.ops.items() if not all(op.adds for op in ops))

    def of_kind(self, kind: type[Kind]) -> dict[str, Kind]:
        """The operations of one kind, by module."""
        return {module: op for module, op in self if isinstance(op, kind)}

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """The same plan with these tensors in place of its own, in its order."""
        source = iter(tensors)
        ops = {
            module: tuple(op.with_tensors(source) for op in ops) for module, ops in self.ops.items()
        }
        return replace(self, ops=ops)

    def stored(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, torch.dtype]]:
        """Every tensor with its module's name and the dtype that it has in an arena of `dtype`."""
        for module, op in self:
            for tensor in op.tensors:
                yield module, tensor, op.stored_dtype(tensor, dtype)

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of all values in an arena of `dtype`."""
        return sum(tensor.numel() * own.itemsize for _, tensor, own in self.stored(dtype))
