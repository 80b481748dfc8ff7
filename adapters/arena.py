"""The device memory that adapters are computed from, and how a version gets into it.

Knows no digests, references or eviction: the pool says where, the residency says when.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from weft.adapters.errors import AdapterInvalid
from weft.adapters.module_tables import ModuleTables, PlacedPair
from weft.adapters.operations import LowRank, Operation
from weft.adapters.packed import Packed, typed_view
from weft.adapters.plan import AdapterPlan
from weft.adapters.pool import Placement
from weft.adapters.traits import Traits
from weft.kernels.low_rank import LowRankTable

_Run = tuple[int, int, int]
"""Elements that are copied together: where from, where to, how many."""


class Arena:
    """One 1-D tensor, and for each adaptable module the tables of what lies where in it."""

    def __init__(self, values: Tensor, tables: Mapping[str, ModuleTables]) -> None:
        self.values = values
        self._bytes = values.view(torch.uint8)
        self._tables = tables
        self._modules: dict[int, tuple[str, ...]] = {}
        self._traits: dict[int, Traits] = {}
        self._ranks: dict[int, int | None] = {}
        self._untold: set[str] = set()
        self._stream = _side_stream(values.device) if values.is_cuda else None

    def check(self, plan: AdapterPlan) -> None:
        """Raises AdapterInvalid where a module does not exist or cannot take an operation."""
        for module, op in plan:
            if module not in self._tables:
                raise AdapterInvalid(module, "is not a module of the base that adapters change")
            if not self._tables[module].accepts(op):
                kind = type(op).__name__
                raise AdapterInvalid(module, f"is a module that no {kind} can be applied to")

    def install(self, placement: Placement, packed: Packed) -> "Installation":
        """Begins to copy a version to its place."""
        return Installation(self, placement, packed, self._stream)

    def publish(self, placement: Placement, packed: Packed) -> None:
        """Lets the slot compute with the version, whose tensors are all in place.

        Where that fails for want of memory, `clear` takes back what was done of it.
        """
        self.clear(placement.slot)
        plan, offsets = packed.plan, iter(placement.offsets)
        self._modules[placement.slot] = tuple(plan.ops)
        self._traits[placement.slot] = plan.traits
        self._ranks[placement.slot] = self._pair_rank(plan)
        self._untold.update(plan.ops)
        for module, ops in plan.ops.items():
            placed = [self._placed(op, offsets) for op in ops]
            self._tables[module].set(placement.slot, placed)

    def _placed(self, op: Operation, offsets: Iterator[int]) -> Operation | PlacedPair:
        """The operation as it lies here; of the many pairs only where: views are made in use."""
        dtype = self.values.dtype
        if isinstance(op, LowRank):
            at_a, at_b = next(offsets), next(offsets)
            return PlacedPair(at_a // dtype.itemsize, at_b // dtype.itemsize, op.rank)
        return op.with_tensors(
            typed_view(self._bytes, next(offsets), tensor.shape, op.stored_dtype(tensor, dtype))
            for tensor in op.tensors
        )

    def traits(self, slot: int) -> Traits:
        """What the version in the slot asks of its sequences."""
        return self._traits[slot]

    def pair_rank(self, slot: int) -> int | None:
        """The largest rank of the version in the slot, if it only adds pairs to a step's rows.

        0 where it does nothing to them; None where it does more, or there is none.
        """
        return self._ranks.get(slot)

    @property
    def pairs(self) -> dict[str, LowRankTable]:
        """The tables of all modules where pairs can be added to a step's rows."""
        return {
            name: tables.low_rank
            for name, tables in self._tables.items()
            if tables.takes_pairs and tables.low_rank is not None
        }

    def tell_device(self) -> None:
        """Tells the device which pairs have come and gone, for steps that are replayed.

        Queued on the current stream, before what is launched there next.
        """
        for module in self._untold:
            if (pairs := self._tables[module].low_rank) is not None:
                pairs.tell_device()
        self._untold.clear()

    def _pair_rank(self, plan: AdapterPlan) -> int | None:
        largest = 0
        for module, op in plan:
            rank = self._tables[module].pair_rank(op)
            if rank is None:
                return None
            largest = max(largest, rank)
        return largest

    def clear(self, slot: int) -> None:
        """Lets the slot add nothing anywhere.

        Where that fails for want of memory, the slot is cleared before the next version is
        published in it.
        """
        self._traits.pop(slot, None)
        self._ranks.pop(slot, None)
        self._untold.update(self._modules.get(slot, ()))
        for module in self._modules.get(slot, ()):
            self._tables[module].clear(slot)
        self._modules.pop(slot, None)


class Installation:
    """A version on its way to the device, slice by slice; until the last one it is invisible.

    On CUDA the slices go over a stream of their own, which first waits for the kernels that may
    still read what was there before.
    """

    def __init__(
        self, arena: Arena, placement: Placement, packed: Packed, stream: torch.cuda.Stream | None
    ) -> None:
        self._arena = arena
        self._placement = placement
        self._packed = packed
        self._stream = stream
        self._runs = list(_runs(placement.offsets, packed.sizes, packed.buffer.element_size()))
        self._copied: torch.cuda.Event | None = None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))

    def advance(self, budget: int) -> int:
        """Copies at most about `budget` bytes, at least one element; returns how many."""
        itemsize = self._packed.buffer.element_size()
        room = max(1, budget // itemsize)
        copied = 0
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            while self._runs and copied < room:
                source, target, count = self._runs.pop(0)
                now = min(count, room - copied)
                self._arena.values[target : target + now].copy_(
                    self._packed.buffer[source : source + now], non_blocking=True
                )
                copied += now
                if now < count:
                    self._runs.insert(0, (source + now, target + now, count - now))
        if self._stream is not None and not self._runs and self._copied is None:
            self._copied = self._stream.record_event()
        return copied * itemsize

    def leave(self) -> list[Packed]:
        """What was copied, which nothing here refers to any more; call it last."""
        held = [self._packed]
        del self._packed
        return held

    def finish(self) -> bool:
        """Publishes the version if its last byte has arrived; returns whether it has."""
        if self._runs or (self._copied is not None and not _happened(self._copied)):
            return False
        self._arena.publish(self._placement, self._packed)
        return True


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _happened(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]


def _runs(offsets: Sequence[int], sizes: Sequence[int], itemsize: int) -> Iterator[_Run]:
    """Joins tensors that follow each other both in the buffer and in the arena."""
    source, target, count = 0, offsets[0] if offsets else 0, 0
    for start, offset, size in zip(accumulate(sizes, initial=0), offsets, sizes, strict=False):
        if offset != target + count:
            yield source // itemsize, target // itemsize, count // itemsize
            source, target, count = start, offset, 0
        count += size
    yield source // itemsize, target // itemsize, count // itemsize
