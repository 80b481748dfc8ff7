"""Where one module's low-rank pairs lie in the arena. Knows no files, names or rows."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""`a: [rank, in_features]` and `b: [rank, out_features]`."""

Factors = tuple[Tensor, Tensor]
"""`aᵀ: [in_features, rank]` and `b: [rank, out_features]`, so that the pair adds `x · aᵀ · b`."""

ALIGNMENT_BYTES = 16
"""Of every offset: the widest load of one thread."""


class LowRankTable:
    """The low-rank pairs of one module by slot; a slot without a pair adds nothing there.

    A pair is `a: [rank, in_features]` and `b: [rank, out_features]`, row-major in the arena; of a
    layer of several experts each expert has one, and they lie one after the other.
    `offsets_a`, `offsets_b` (int64 [slots], in elements) and `ranks` (int32 [slots], 0 = no pair)
    repeat the table on the arena's device for kernels.
    """

    def __init__(
        self, arena: Tensor, slots: int, in_features: int, out_features: int, experts: int = 1
    ) -> None:
        if arena.dim() != 1 or not arena.is_contiguous():
            raise ValueError("the arena must be one contiguous dimension")
        self.arena = arena
        self.in_features = in_features
        self.out_features = out_features
        self.experts = experts
        self.offsets_a = torch.zeros(slots, dtype=torch.int64, device=arena.device)
        self.offsets_b = torch.zeros(slots, dtype=torch.int64, device=arena.device)
        self.ranks = torch.zeros(slots, dtype=torch.int32, device=arena.device)
        self._factors: dict[int, tuple[Factors, ...]] = {}
        self._slots_by_rank: Counter[int] = Counter()

    def set(self, slot: int, offset_a: int, offset_b: int, rank: int) -> None:
        """Lets `slot` compute with the pair, or the first expert's, at these offsets in elements.

        Raises ValueError where the slot does not exist, or a tensor leaves the arena or does not
        start at a multiple of ALIGNMENT_BYTES.
        """
        if not 0 <= slot < len(self.ranks):
            raise ValueError(f"slot {slot} is not in 0..{len(self.ranks) - 1}")
        a = self._view(offset_a, rank, self.in_features)
        b = self._view(offset_b, rank, self.out_features)
        self.clear(slot)
        # First what `clear` goes by, so that it clears also what a failure leaves half done.
        self._factors[slot] = tuple(zip(a.mT.unbind(), b.unbind(), strict=True))
        self._slots_by_rank[rank] += 1
        self.offsets_a[slot] = offset_a
        self.offsets_b[slot] = offset_b
        self.ranks[slot] = rank

    def clear(self, slot: int) -> None:
        """Lets `slot` add nothing; its arena range is the caller's again.

        Where that fails for want of memory, nothing was changed.
        """
        if slot in self._factors:
            self.ranks[slot] = 0
            factors = self._factors.pop(slot)
            self._slots_by_rank -= Counter([len(factors[0][1])])  # drops what falls to zero

    def pair(self, slot: int, expert: int = 0) -> Pair | None:
        """The slot's `(a, b)` as views of the arena, or None."""
        factors = self.factors(slot, expert)
        return None if factors is None else (factors[0].T, factors[1])

    def factors(self, slot: int, expert: int = 0) -> Factors | None:
        """The slot's pair as matmul takes it; the views are made once."""
        factors = self._factors.get(slot)
        return None if factors is None else factors[expert]

    def any_in(self, slots: Iterable[int]) -> bool:
        """Whether any of `slots` has a pair here."""
        return not self._factors.keys().isdisjoint(slots)

    @property
    def max_rank(self) -> int:
        """The largest rank of any slot; 0 where there is no pair."""
        return max(self._slots_by_rank, default=0)

    def _view(self, offset: int, rank: int, width: int) -> Tensor:
        """[experts, rank, width]"""
        shape = (self.experts, rank, width)
        size = self.experts * rank * width
        if rank < 1 or offset < 0 or offset + size > len(self.arena):
            raise ValueError(
                f"{list(shape)} at element {offset} does not fit an arena of {len(self.arena)}"
            )
        if offset * self.arena.itemsize % ALIGNMENT_BYTES:
            raise ValueError(f"element {offset} is not at a multiple of {ALIGNMENT_BYTES} bytes")
        return self.arena[offset : offset + size].view(shape)
