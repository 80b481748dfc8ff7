"""Where one module's low-rank pairs lie in the arena. Knows no files, names or rows."""

from array import array
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
    repeat the table on the arena's device for kernels; it is told of changes when they are read.
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
        self._offsets_a = _Numbers(slots, torch.int64, arena.device)
        self._offsets_b = _Numbers(slots, torch.int64, arena.device)
        self._ranks = _Numbers(slots, torch.int32, arena.device)
        self._elements = len(arena)
        self._places: dict[int, tuple[int, int, int]] = {}
        self._factors: dict[int, tuple[Factors, ...]] = {}
        self._slots_by_rank: Counter[int] = Counter()

    def set(self, slot: int, offset_a: int, offset_b: int, rank: int) -> None:
        """Lets `slot` compute with the pair, or the first expert's, at these offsets in elements.

        Raises ValueError where the slot does not exist, or a tensor leaves the arena or does not
        start at a multiple of ALIGNMENT_BYTES.
        """
        slots = len(self._ranks.values)
        if not 0 <= slot < slots:
            raise ValueError(f"slot {slot} is not in 0..{slots - 1}")
        self._check(offset_a, rank, self.in_features)
        self._check(offset_b, rank, self.out_features)
        self.clear(slot)
        self._places[slot] = offset_a, offset_b, rank
        self._slots_by_rank[rank] += 1
        self._offsets_a.set(slot, offset_a)
        self._offsets_b.set(slot, offset_b)
        self._ranks.set(slot, rank)

    def clear(self, slot: int) -> None:
        """Lets `slot` add nothing; its arena range is the caller's again."""
        if slot in self._places:
            self._ranks.set(slot, 0)
            self._factors.pop(slot, None)
            *_, rank = self._places.pop(slot)
            self._slots_by_rank[rank] -= 1
            if not self._slots_by_rank[rank]:
                del self._slots_by_rank[rank]

    @property
    def offsets_a(self) -> Tensor:
        """See the class."""
        return self._offsets_a.on_device()

    @property
    def offsets_b(self) -> Tensor:
        """See the class."""
        return self._offsets_b.on_device()

    @property
    def ranks(self) -> Tensor:
        """See the class."""
        return self._ranks.on_device()

    def tell_device(self) -> None:
        """Brings `offsets_a`, `offsets_b` and `ranks` up to date, for kernels that are replayed."""
        for numbers in (self._offsets_a, self._offsets_b, self._ranks):
            numbers.on_device()

    def pair(self, slot: int, expert: int = 0) -> Pair | None:
        """The slot's `(a, b)` as views of the arena, or None."""
        factors = self.factors(slot, expert)
        return None if factors is None else (factors[0].T, factors[1])

    def factors(self, slot: int, expert: int = 0) -> Factors | None:
        """The slot's pair as matmul takes it; the views are made once, when they are asked for."""
        factors = self._factors.get(slot)
        if factors is None:
            if slot not in self._places:
                return None
            factors = self._factors[slot] = self._views(*self._places[slot])
        return factors[expert]

    def any_in(self, slots: Iterable[int]) -> bool:
        """Whether any of `slots` has a pair here."""
        return not self._places.keys().isdisjoint(slots)

    @property
    def max_rank(self) -> int:
        """The largest rank of any slot; 0 where there is no pair."""
        return max(self._slots_by_rank, default=0)

    def _views(self, offset_a: int, offset_b: int, rank: int) -> tuple[Factors, ...]:
        a = self._view(offset_a, rank, self.in_features)
        b = self._view(offset_b, rank, self.out_features)
        return tuple(zip(a.mT.unbind(), b.unbind(), strict=True))

    def _view(self, offset: int, rank: int, width: int) -> Tensor:
        """[experts, rank, width]"""
        size = self.experts * rank * width
        return self.arena[offset : offset + size].view(self.experts, rank, width)

    def _check(self, offset: int, rank: int, width: int) -> None:
        if rank < 1 or offset < 0 or offset + self.experts * rank * width > self._elements:
            shape = [self.experts, rank, width]
            raise ValueError(
                f"{shape} at element {offset} does not fit an arena of {self._elements}"
            )
        if offset * self.arena.itemsize % ALIGNMENT_BYTES:
            raise ValueError(f"element {offset} is not at a multiple of {ALIGNMENT_BYTES} bytes")


class _Numbers:
    """An integer for each slot, on the host and, since it was last asked for, on a device."""

    def __init__(self, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        kind = {torch.int64: "q", torch.int32: "i"}[dtype]
        self.values = array(kind, bytes(slots * dtype.itemsize))
        self._device_values = torch.zeros(slots, dtype=dtype, device=device)
        self._changed = False

    def set(self, slot: int, value: int) -> None:
        """Takes a number in; costs no call of torch."""
        self.values[slot] = value
        self._changed = True

    def on_device(self) -> Tensor:
        """[slots], always the same memory."""
        if self._changed:
            values = torch.frombuffer(self.values, dtype=self._device_values.dtype)
            self._device_values.copy_(values, non_blocking=True)
            self._changed = False
        return self._device_values
