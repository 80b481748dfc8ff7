"""Who holds which slot and which bytes of the device arena. Knows no tensors and no files."""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from weft.adapters.errors import AdapterTooLarge
from weft.adapters.extents import Extents, Room


@dataclass(frozen=True, slots=True)
class SlotRef:
    """A reference to the version in a slot; the generation tells it from the slot's next one.

    place: its bytes in the arena and where they begin; in this order alike versions follow each
        other at even distances as far as may be, which lets kernels compute them together
    """

    slot: int
    generation: int
    place: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a version goes: its slot and each tensor's byte offset in the arena.

    `evicted` are the slots whose versions made room; nothing refers to them any more.
    """

    slot: int
    offsets: tuple[int, ...]
    evicted: tuple[int, ...]


@dataclass(slots=True)
class _Resident:
    slot: int
    room: Room
    size: int
    refs: int = 0
    ready: bool = False


class Pool:
    """Slots and bytes of one device arena, by version digest.

    A version takes its own bytes, each tensor rounded up to `align`. It is reserved, filled by
    somebody else, committed, and from then on referenced. Only versions that are committed,
    unreferenced and unpinned are evicted, the least recently used first.

    capacity: bytes of the arena   slots: versions at a time   align: bytes
    """

    def __init__(self, capacity: int, slots: int, align: int = 16) -> None:
        self.capacity = capacity - capacity % align
        self.slots = slots
        self.align = align
        self.evictions = 0
        self._evicted: list[str] = []
        self._space = Extents(self.capacity)
        self._free_slots = list(range(slots))[::-1]
        self._generations = [0] * slots
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._digests: dict[int, str] = {}
        self._pinned: set[str] = set()

    # ---- coming and going

    def reserve(
        self, digest: str, sizes: Sequence[int], keep: Collection[str] = ()
    ) -> Placement | None:
        """Takes a slot and bytes for a version's tensors, evicting what must and may go.

        sizes: bytes of each tensor   keep: digests not to evict now
        None, and nothing evicted, where that would not be enough. Raises AdapterTooLarge.
        """
        if digest in self._residents:
            raise ValueError(f"version {digest} is resident already")
        rounded = self._rounded(sizes)
        found = self._find(rounded, (d for d in self._evictable() if d not in keep))
        if found is None:
            return None
        victims, space, room = found
        evicted = tuple(self._remove(victim) for victim in victims)
        self.evictions += len(evicted)
        self._evicted += victims
        self._space = space
        slot = self._free_slots.pop()
        self._generations[slot] += 1
        self._residents[digest] = _Resident(slot, room, sum(rounded))
        self._digests[slot] = digest
        return Placement(slot, room.offsets, evicted)

    def commit(self, digest: str) -> None:
        """The version's bytes are all in place: it can be acquired."""
        self._residents[digest].ready = True

    def drop(self, digest: str) -> int:
        """Takes an unreferenced version off the device; returns its slot.

        Raises RuntimeError where it is in use.
        """
        resident = self._residents[digest]
        if resident.refs:
            raise RuntimeError(f"version {digest} has {resident.refs} references")
        self._space.give(resident.room.extents)
        return self._remove(digest)

    def victims_for(self, sizes: Sequence[int], last: Collection[str] = ()) -> tuple[str, ...]:
        """The referenced versions to drain, least recently used first, so that `sizes` fit.

        last: digests to drain only where all others are not enough   Empty where they fit without.
        Raises AdapterTooLarge where draining all is not enough.
        """
        evictable = self._evictable()
        unpinned = [(d, r) for d, r in self._residents.items() if d not in self._pinned]
        busy = [digest for digest, resident in unpinned if resident.refs]
        arriving = [digest for digest, resident in unpinned if not resident.ready]
        candidates = sorted([*evictable, *busy, *arriving], key=lambda digest: digest in last)
        found = self._find(self._rounded(sizes), candidates)
        if found is None:
            raise AdapterTooLarge("adapter", self._no_room(sum(sizes)))
        return tuple(digest for digest in found[0] if digest in busy)

    def take_evicted(self) -> tuple[str, ...]:
        """The versions evicted since the last call, each as often as it was."""
        evicted, self._evicted = tuple(self._evicted), []
        return evicted

    def begin_again(self) -> tuple[int, ...]:
        """After an exception anywhere in here: what is committed stays, referenced by nobody.

        References from before are not held. Returns the slots that hold nothing.
        """
        self._residents = OrderedDict((d, r) for d, r in self._residents.items() if r.ready)
        residents = self._residents.values()
        for resident in residents:
            resident.refs = 0
        extents = (extent for resident in residents for extent in resident.room.extents)
        self._space = Extents.around(self.capacity, extents)
        self._digests = {resident.slot: d for d, resident in self._residents.items()}
        self._generations = [generation + 1 for generation in self._generations]
        self._free_slots = [slot for slot in range(self.slots)[::-1] if slot not in self._digests]
        return tuple(self._free_slots)

    # ---- use

    def acquire(self, digest: str) -> SlotRef:
        """One more reference to a committed version; until released its slot stays as it is."""
        resident = self._residents[digest]
        if not resident.ready:
            raise RuntimeError(f"version {digest} is not in place yet")
        resident.refs += 1
        self._residents.move_to_end(digest)
        first = resident.room.offsets[0] if resident.room.offsets else 0
        return SlotRef(resident.slot, self._generations[resident.slot], (resident.size, first))

    def release(self, ref: SlotRef) -> str:
        """Gives one reference back; returns the digest. RuntimeError for a reference not held."""
        digest = self._digests.get(ref.slot)
        if digest is None or not self.valid(ref) or not self._residents[digest].refs:
            raise RuntimeError(f"{ref} is not held")
        self._residents[digest].refs -= 1
        self._residents.move_to_end(digest)
        return digest

    def valid(self, ref: SlotRef) -> bool:
        """Whether the slot still holds the version that the reference was taken on."""
        return ref.slot in self._digests and self._generations[ref.slot] == ref.generation

    def pin(self, digest: str) -> None:
        """Never evict this version, now or once it is here."""
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        """Let this version be evicted again."""
        self._pinned.discard(digest)

    # ---- looking

    def ready(self, digest: str) -> bool:
        """Whether the version can be acquired."""
        resident = self._residents.get(digest)
        return resident is not None and resident.ready

    def refs(self, digest: str) -> int:
        """References to a version; 0 where it is not resident."""
        resident = self._residents.get(digest)
        return resident.refs if resident else 0

    def size(self, digest: str) -> int:
        """Bytes that a version takes in the arena; 0 where it is not resident."""
        resident = self._residents.get(digest)
        return resident.size if resident else 0

    def pinned(self, digest: str) -> bool:
        """Whether the version is pinned, resident or not."""
        return digest in self._pinned

    @property
    def digests(self) -> tuple[str, ...]:
        """The versions that hold a slot, least recently used first."""
        return tuple(self._residents)

    @property
    def used(self) -> int:
        """Bytes taken."""
        return self.capacity - self._space.free

    def check(self) -> tuple[str, ...]:
        """The invariants that do not hold; empty is healthy."""
        residents = self._residents.values()
        taken = sorted(extent for r in residents for extent in r.room.extents)
        ranges = sorted([*taken, *self._space.holes])
        tiled = [0, *(stop for _, stop in ranges)] == [
            *(start for start, _ in ranges),
            self.capacity,
        ]
        slots = sorted([*self._free_slots, *(r.slot for r in residents)])
        claims = {
            "arena bytes are each free or taken once": tiled,
            "slots are each free or taken once": slots == list(range(self.slots)),
            "slot and digest are a bijection": self._digests
            == {r.slot: digest for digest, r in self._residents.items()},
            "references are not negative": all(r.refs >= 0 for r in residents),
            "only committed versions are referenced": all(r.ready or not r.refs for r in residents),
        }
        return tuple(claim for claim, holds in claims.items() if not holds)

    # ---- room

    def _evictable(self) -> list[str]:
        return [
            digest
            for digest, resident in self._residents.items()
            if resident.ready and not resident.refs and digest not in self._pinned
        ]

    def _find(
        self, sizes: Sequence[int], candidates: Iterable[str]
    ) -> tuple[list[str], Extents, Room] | None:
        """The first candidates that must go, the space then left, and the room taken in it."""
        if sum(sizes) > self.capacity or not self.slots:
            raise AdapterTooLarge("adapter", self._no_room(sum(sizes)))
        space = self._space.copy()
        victims: list[str] = []
        waiting = iter(candidates)
        while True:
            if self._free_slots or victims:
                room = space.take(sizes)
                if room is not None:
                    return victims, space, room
            victim = next(waiting, None)
            if victim is None:
                return None
            space.give(self._residents[victim].room.extents)
            victims.append(victim)

    def _remove(self, digest: str) -> int:
        slot = self._residents.pop(digest).slot
        del self._digests[slot]
        self._free_slots.append(slot)
        return slot

    def _rounded(self, sizes: Sequence[int]) -> list[int]:
        return [size + -size % self.align for size in sizes]

    def _no_room(self, size: int) -> str:
        pinned = sum(r.size for d, r in self._residents.items() if d in self._pinned)
        of_them = f", of which pinned adapters hold {pinned}" if pinned else ""
        return f"needs {size} bytes on the device; the adapter pool has {self.capacity}{of_them}"
