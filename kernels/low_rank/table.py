"""Where one module's low-rank pairs lie in the arena. Knows no files, names or rows."""

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from weft.kernels.low_rank.batches import Batch, Owner, Place, batches

Pair = tuple[Tensor, Tensor]
"""`a: [rank, in_features]` and `b: [rank, out_features]`."""

Factors = tuple[Tensor, Tensor]
"""`aᵀ: [in_features, rank]` and `b: [rank, out_features]`, so that the pair adds `x · aᵀ · b`.

Of a batch of several pairs both have one more dimension in front, the pair.
"""

ALIGNMENT_BYTES = 16
"""Of every offset: the widest load of one thread."""

_KEPT_FACTORS = 256
_KEPT_STEPS = 4
Kept = TypeVar("Kept")


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
        self._places: dict[int, Place] = {}
        self._batches: dict[Hashable, tuple[Batch, ...]] = {}
        self._factors: dict[Hashable, Factors] = {}
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
        self._batches.clear()
        self._places[slot] = offset_a, offset_b, rank
        self._slots_by_rank[rank] += 1
        self._offsets_a.set(slot, offset_a)
        self._offsets_b.set(slot, offset_b)
        self._ranks.set(slot, rank)

    def clear(self, slot: int) -> None:
        """Lets `slot` add nothing; its arena range is the caller's again."""
        if slot in self._places:
            self._ranks.set(slot, 0)
            self._batches.clear()
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

    def place(self, slot: int, expert: int = 0) -> Place | None:
        """Where the slot's pair lies, or None."""
        if (place := self._places.get(slot)) is None:
            return None
        at_a, at_b, rank = place
        return (
            at_a + expert * rank * self.in_features,
            at_b + expert * rank * self.out_features,
            rank,
        )

    def pair(self, slot: int, expert: int = 0) -> Pair | None:
        """The slot's `(a, b)` as views of the arena, or None."""
        if (place := self.place(slot, expert)) is None:
            return None
        a, b = self.factors(Batch(1, 1, place))
        return a.T, b

    def batches(self, owners: tuple[Owner, ...], sizes: tuple[int, ...]) -> tuple[Batch, ...]:
        """How the products of owners that follow each other are computed; sizes: rows of each."""
        key = owners, sizes
        found = self._batches.get(key)
        if found is None:
            width = min(self.in_features, self.out_features)
            found = batches([self.place(*owner) for owner in owners], sizes, width)
            _keep(self._batches, key, found, _KEPT_STEPS)
        return found

    def factors(self, batch: Batch) -> Factors:
        """The pairs of a batch that has any, as matmul takes them."""
        key = batch.first, batch.owners, batch.steps
        found = self._factors.get(key)
        if found is None:
            found = self._views(batch)
            _keep(self._factors, key, found, _KEPT_FACTORS)
        return found

    def any_in(self, slots: Iterable[int]) -> bool:
        """Whether any of `slots` has a pair here."""
        return not self._places.keys().isdisjoint(slots)

    @property
    def max_rank(self) -> int:
        """The largest rank of any slot; 0 where there is no pair."""
        return max(self._slots_by_rank, default=0)

    def _views(self, batch: Batch) -> Factors:
        assert batch.first is not None
        (at_a, at_b, rank), (step_a, step_b) = batch.first, batch.steps
        a = self._view(at_a, step_a, batch.owners, rank, self.in_features)
        b = self._view(at_b, step_b, batch.owners, rank, self.out_features)
        return (a.mT, b) if batch.owners > 1 else (a[0].T, b[0])

    def _view(self, offset: int, step: int, count: int, rank: int, width: int) -> Tensor:
        """[count, rank, width]"""
        start = int(self.arena.storage_offset()) + offset
        return self.arena.as_strided((count, rank, width), (step, width, 1), start)

    def _check(self, offset: int, rank: int, width: int) -> None:
        if rank < 1 or offset < 0 or offset + self.experts * rank * width > self._elements:
            shape = [self.experts, rank, width]
            raise ValueError(
                f"{shape} at element {offset} does not fit an arena of {self._elements}"
            )
        if offset * self.arena.itemsize % ALIGNMENT_BYTES:
            raise ValueError(f"element {offset} is not at a multiple of {ALIGNMENT_BYTES} bytes")


def _keep(kept: dict[Hashable, Kept], key: Hashable, value: Kept, most: int) -> None:
    """Lets go of all others where they are too many."""
    if len(kept) >= most:
        kept.clear()
    kept[key] = value


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
