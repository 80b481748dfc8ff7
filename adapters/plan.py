"""A version of an adapter, lowered to primitive operations on named modules of the base."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """Adds `(x aᵀ) b` to a module's output; the scaling is folded into `b`.

    a: [rank, in_features] (for an embedding in_features is the vocabulary and x is one-hot)
    b: [rank, out_features], the transpose of peft's B
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Rank as computed, after lowering."""
        return self.a.shape[0]


@dataclass(frozen=True)
class AdapterPlan:
    """What the engine computes for one version, and nothing else of it.

    `ops` maps a base module's full name to its operation. Tensors are on the host, contiguous.
    """

    digest: str
    method: str
    ops: Mapping[str, LowRank]

    @property
    def elements(self) -> int:
        """Number of values on the device."""
        return sum(op.a.numel() + op.b.numel() for op in self.ops.values())
