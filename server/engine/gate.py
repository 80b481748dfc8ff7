"""Whose adapter is on the device, and which one must give way to one that waited long enough.

Knows the demand for adapters, neither pages nor turns: the scheduler acts on what the gate says.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from weft.adapters.pool import SlotRef
from weft.adapters.presence import Presence
from weft.adapters.tenancy import TenantContext
from weft.adapters.traits import PLAIN, Traits, combined
from weft.server.engine.residency import Residency, error_code
from weft.server.engine.sequence import Sequence, Share, Status


@dataclass(eq=False, slots=True)
class Demand:
    """All live sequences that use one adapter version; they hold one reference to its slot."""

    digest: str
    tenant: TenantContext  # of the first one
    waiting_since: float
    ref: SlotRef | None = None
    traits: Traits = PLAIN  # known once it had a slot
    drained: bool = False  # lost its slot to another one, which may not have taken it yet
    members: dict[int, Sequence] = field(default_factory=dict)  # by arrival


@dataclass(frozen=True, slots=True)
class Passage:
    """What changed: demands that will never get a slot (code), and those that got one."""

    failed: list[tuple[Demand, str]] = field(default_factory=list)
    opened: list[Demand] = field(default_factory=list)


class AdapterGate:
    """Loads what is wanted, oldest demand first, and bounds how long a demand waits for room.

    A version with live sequences stays on the device until another one has waited for a turn; then
    it is drained, unless it came less than a turn ago. A turn is `patience` seconds, or less where
    versions come back so fast that even then little time goes into bringing them, and sequences
    find what they had computed: each stay is worth its load. While an overdue demand waits for a
    stay to end, no other one gets room, so that many small versions cannot starve a large one. A
    sequence of several versions runs once it has all: the first one of those that wait loses none
    of them to others meanwhile.
    """

    WINDOW = 32  # demands polled per step, so that its cost does not grow with the queue
    WORTH = 24  # turns are so many times as long as it takes to bring back all that are in use

    def __init__(self, residency: Residency, patience: float, clock: Callable[[], float]) -> None:
        self._residency = residency
        self._patience = self._turn = patience
        self._clock = clock
        self._patient_until = 0.0
        self._demands: dict[str, Demand] = {}
        self._pending: dict[str, Demand] = {}  # those without a slot, longest waiting first
        self._blends: dict[int, Sequence] = {}  # those that need several versions, by arrival
        self._stays: dict[int, tuple[int, float]] = {}  # slot → generation, and when it came

    def renewed(self) -> "AdapterGate":
        """One like this that nobody has come to yet."""
        return AdapterGate(self._residency, self._patience, self._clock)

    @property
    def demand(self) -> dict[str, int]:
        """Live sequences of each wanted version."""
        return {digest: len(demand.members) for digest, demand in self._demands.items()}

    def shares(self, seq: Sequence) -> tuple[Share, ...]:
        """The slots of the sequence's adapters, which are there; see Sequence."""
        demands = [(self._demands[part.digest], part.weight) for part in seq.blend]
        demands.sort(key=lambda used: used[0].traits.additive)
        return tuple(Share(demand.ref, weight) for demand, weight in demands if demand.ref)

    def traits(self, seq: Sequence) -> Traits:
        """What the sequence's adapters, which are there, ask of it; see `combined`."""
        parts = [(self._demands[part.digest].traits, part.weight) for part in seq.blend]
        return combined(parts) if parts else PLAIN

    def passable(self, seq: Sequence) -> bool:
        """Whether the sequence could be computed now."""
        return all(self._demands[part.digest].ref is not None for part in seq.blend)

    def join(self, seq: Sequence) -> None:
        """A sequence begins to live: its adapters are wanted."""
        if len(seq.blend) > 1:
            self._blends[seq.arrival] = seq
        for digest in _digests(seq):
            demand = self._demands.get(digest)
            if demand is None:
                demand = Demand(digest, seq.tenant, self._clock())
                self._demands[digest] = demand
                if self._residency.ensure(digest, seq.tenant) is Presence.DEVICE:
                    self._open(demand)
                else:
                    self._pending[digest] = demand
            demand.members[seq.arrival] = seq

    def leave(self, seq: Sequence) -> None:
        """A sequence ended; the last one of an adapter gives the slot back."""
        self._blends.pop(seq.arrival, None)
        for digest in _digests(seq):
            demand = self._demands[digest]
            del demand.members[seq.arrival]
            if not demand.members:
                del self._demands[digest]
                if self._pending.pop(digest, None) is not None:
                    self._residency.give_up(digest)
                elif demand.ref is not None:
                    self._residency.release(demand.ref)

    def be_patient(self) -> None:
        """What a sequence had computed was lost while it waited: such turns are too short now."""
        self._patient_until = self._clock() + self._patience

    def give_way(self) -> list[Demand]:
        """Makes room for the demands that waited too long: those that lost their slots for it.

        Called before versions move, and `poll` after that: so the room is never empty in a step.
        """
        if not self._pending:
            return []
        self._turn = self._patience
        if self._clock() >= self._patient_until:
            in_use = (demand.digest for demand in self._demands.values() if demand.ref is not None)
            self._turn = min(self._patience, self.WORTH * self._residency.return_seconds(in_use))
        drained: list[Demand] = []
        for demand in self._polled():
            if self._overdue(demand.waiting_since):
                presence = self._residency.ensure(demand.digest, demand.tenant)
                if presence is Presence.WAITING:
                    drained += self._make_room(demand)
        return drained

    def poll(self) -> Passage:
        """Asks after the longest waiting demands."""
        passage = Passage()
        making_room = False
        for demand in self._polled():
            presence = self._residency.ensure(demand.digest, demand.tenant)
            demand.drained &= presence is Presence.DEVICE
            if presence is Presence.DEVICE:
                if not (demand.drained and making_room):
                    self._open(demand)
                    passage.opened.append(demand)
            elif presence is Presence.WAITING:
                making_room |= self._overdue(demand.waiting_since)
            elif presence is Presence.FAILED:
                code = error_code(self._residency.error(demand.digest))
                passage.failed.append((demand, code))
        return passage

    def _polled(self) -> list[Demand]:
        """Those of the first blend come first: what it has is kept, so others may wait for long."""
        first = self._first_blend()
        ahead = [self._pending[digest] for digest in sorted(first & self._pending.keys())]
        others = (demand for demand in self._pending.values() if demand.digest not in first)
        return [*ahead, *islice(others, self.WINDOW)]

    def check(self, live: Iterable[Sequence]) -> tuple[str, ...]:
        """The broken invariants; empty when sound."""
        live = list(live)
        members = [(d.digest, seq) for d in self._demands.values() for seq in d.members.values()]
        wanting = [(digest, seq) for seq in live for digest in _digests(seq)]
        broken = {
            "adapters: demanded by exactly the live sequences": len(members) == len(wanting)
            and set(members) == set(wanting),
            "adapters: no demand without members": all(d.members for d in self._demands.values()),
            "adapters: pending are those without a slot": self._pending.keys()
            == {d.digest for d in self._demands.values() if d.ref is None},
            "adapters: a running sequence uses its demand's slot": all(
                seq.shares == self.shares(seq) for seq in live if seq.status is Status.RUNNING
            ),
            "adapters: who could be computed is not parked": all(
                self.passable(seq) for seq in live if seq.status is Status.QUEUED
            )
            and not any(self.passable(seq) for seq in live if seq.status is Status.PARKED),
            "adapters: each slot belongs to one digest": len(
                {d.ref.slot for d in self._demands.values() if d.ref}
            )
            == len(self._demands) - len(self._pending),
        }
        return tuple(name for name, holds in broken.items() if not holds)

    def _open(self, demand: Demand) -> None:
        self._pending.pop(demand.digest, None)
        demand.ref = ref = self._residency.acquire(demand.digest)
        demand.traits = self._residency.traits(ref)
        generation, _ = self._stays.get(ref.slot, (None, 0.0))
        if generation != ref.generation:
            self._stays[ref.slot] = (ref.generation, self._clock())

    def _make_room(self, demand: Demand) -> list[Demand]:
        """Takes the slots of those who must go, unless one of them only just came."""
        first = self._first_blend()
        found = self._residency.victims_for(demand.digest, last=first)
        victims = [self._demands.get(digest) for digest in found]
        kept = () if demand.digest in first else first
        drained = [v for v in victims if v is not None and v.digest not in kept and self._may_go(v)]
        if len(drained) < len(victims):
            return []
        for victim in drained:
            if victim.ref is not None:
                self._residency.release(victim.ref)
            victim.ref = None
            victim.drained = True
            victim.waiting_since = self._clock()
            self._pending[victim.digest] = victim
        return drained

    def _first_blend(self) -> set[str]:
        """The versions of the first sequence that waits for some of several.

        What it has is not taken from it: else those that wait for each other's might never run.
        """
        waiting = (seq for seq in self._blends.values() if not self.passable(seq))
        first = next(waiting, None)
        return _digests(first) if first else set()

    def _may_go(self, demand: Demand) -> bool:
        return demand.ref is not None and self._overdue(self._stays[demand.ref.slot][1])

    def _overdue(self, since: float) -> bool:
        return self._clock() - since >= self._turn


def _digests(seq: Sequence) -> set[str]:
    return {part.digest for part in seq.blend}
