"""Which versions are on the device, and what is done so that the wanted ones get there.

Composes pool, arena and loader; used only from the engine's thread. Knows no requests: the
scheduler asks for digests and takes references.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from weft.adapters.arena import Arena, Installation
from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, AdapterTooLarge
from weft.adapters.loader import Loader
from weft.adapters.out_of_memory import is_out_of_memory
from weft.adapters.packed import Packed
from weft.adapters.places import Places
from weft.adapters.pool import Pool, SlotRef
from weft.adapters.presence import Presence
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.adapters.traits import Traits

PLACES = 8
"""Versions that may be loading or waiting for room at a time; it bounds host memory."""
_ATTENTION = 16
"""Steps after which a loaded version that nobody asked for any more stops waiting for room."""


@dataclass(frozen=True, slots=True)
class ResidentState:
    """Where a version is: tier "device" or "host"; `refs` = references, `bytes` = of that tier."""

    digest: str
    tier: str
    refs: int
    bytes: int
    pinned: bool


@dataclass(slots=True, eq=False)
class _Want:
    digest: str
    tenant: TenantContext
    asked: int
    load: Future[Packed] | None = None
    kept: bool = False  # also while no request waits for it

    @property
    def loaded(self) -> bool:
        return self.load is not None and self.load.done()

    @property
    def packed(self) -> Packed | None:
        if self.load is None or not self.load.done() or self.load.exception() is not None:
            return None
        return self.load.result()


class Residency:
    """Brings wanted versions to the device in bounded slices, each tenant's in the order of asking.

    The scheduler calls `ensure` in each step for each version that a request waits for, and
    `pump` is called once before each step.
    """

    def __init__(
        self,
        pool: Pool,
        arena: Arena,
        loader: Loader,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._pool = pool
        self._arena = arena
        self._loader = loader
        self._step = 0
        self._wanted: dict[str, _Want] = {}
        self._places: Places[_Want] = Places(PLACES)
        self._given_up: list[_Want] = []  # their loads have not ended yet
        self._installing: tuple[str, Installation] | None = None
        self._began = 0.0  # with what is being installed
        self._copy_seconds = math.inf  # what lately installed ones took, on average
        self._failures: dict[str, Exception] = {}
        self._leaving: set[str] = set()
        self._awaited: set[str] = set()
        self._claim: str | None = None

    # ---- what the scheduler asks

    def ensure(self, digest: str, tenant: TenantContext = NOBODY) -> Presence:
        """Says where a version is, and sees to it that it comes nearer.

        tenant: whose place its load takes, if it is wanted by nobody else before
        """
        if self._pool.ready(digest):
            self._awaited.add(digest)
            return Presence.DEVICE
        if digest in self._failures:
            return Presence.FAILED
        if self._installing is not None and self._installing[0] == digest:
            return Presence.LOADING
        want = self._wanted.get(digest)
        if want is None:
            want = self._wanted[digest] = _Want(digest, tenant, self._step)
            self._places.wait(want, tenant)
        want.asked = self._step
        return Presence.LOADING if want.packed is None else Presence.WAITING

    def give_up(self, digest: str) -> None:
        """No request waits for a version any more: it is not loaded, unless it was prefetched."""
        want = self._wanted.get(digest)
        if want is not None and not want.kept:
            self._loader.give_up(digest)
            self._unwant(digest)

    def error(self, digest: str) -> Exception:
        """Why a version FAILED."""
        return self._failures[digest]

    def acquire(self, digest: str) -> SlotRef:
        """A reference to a version on the DEVICE, which keeps it there."""
        return self._pool.acquire(digest)

    def release(self, ref: SlotRef) -> None:
        """Gives a reference back. RuntimeError for one that is not held."""
        digest = self._pool.release(ref)
        if digest in self._leaving and not self._pool.refs(digest):
            self._drop(digest)

    def valid(self, ref: SlotRef) -> bool:
        """Whether the slot still holds what the reference was taken on."""
        return self._pool.valid(ref)

    def traits(self, ref: SlotRef) -> Traits:
        """What the version in a valid reference's slot asks of its sequences."""
        return self._arena.traits(ref.slot)

    def victims_for(self, digest: str, last: Collection[str] = ()) -> tuple[str, ...]:
        """The versions to drain so that a WAITING one fits, the least recently used first.

        last: those to drain only where all others are not enough
        The room that they leave is kept for `digest` until the next pump has given it to it.
        Empty where draining would not help now: it is not loaded, it fits already, or room is
        being made for another one.
        """
        want = self._wanted.get(digest)
        if want is None or want.packed is None or self._claim not in (None, digest):
            return ()
        try:
            victims = self._pool.victims_for(want.packed.sizes, last)
        except AdapterInvalid as error:
            self._fail(digest, error)
            return ()
        self._claim = digest
        return victims

    def return_seconds(self, digests: Iterable[str]) -> float:
        """About how long bringing these back, if they had left, would take all together."""
        held = self._loader.sizes()
        reading = self._loader.load_seconds / max(self._loader.loads, 1)
        return sum(self._copy_seconds + (0.0 if d in held else reading) for d in digests)

    # ---- what an operator asks

    def retry(self, digest: str) -> None:
        """Lets a version be wanted again that failed or was forgotten before."""
        self._failures.pop(digest, None)
        self._leaving.discard(digest)

    def prefetch(self, digest: str, tenant: TenantContext = NOBODY) -> None:
        """Wants a version ahead of use; `retry` is part of it."""
        self.retry(digest)
        self.ensure(digest, tenant)
        if want := self._wanted.get(digest):
            want.kept = True

    def pin(self, digest: str) -> None:
        """Brings a version and never evicts it."""
        self._pool.pin(digest)
        self.prefetch(digest)

    def unpin(self, digest: str) -> None:
        """Lets a version be evicted again, and those come that had no room beside it."""
        self._pool.unpin(digest)
        for other, error in list(self._failures.items()):
            if isinstance(error, AdapterTooLarge):
                del self._failures[other]

    def forget(self, digest: str) -> None:
        """Takes a version off host and device, there when its last reference is given back."""
        self._unwant(digest)
        self._failures.pop(digest, None)
        self._loader.forget(digest)
        self._pool.unpin(digest)
        if self._pool.refs(digest):
            self._leaving.add(digest)
        elif digest in self._pool.digests:
            self._drop(digest)

    # ---- what the engine does between steps

    def pump(self, budget: int) -> None:
        """Moves the wanted versions on; copies about `budget` bytes to the device at most."""
        self._step += 1
        self._settle()
        while budget > 0 and (self._installing is not None or self._begin()):
            budget -= self._advance(budget)
        self._claim = None
        self._awaited.clear()

    def begin_again(self) -> None:
        """After an exception anywhere in here: versions on the device stay, referenced by nobody.

        Loads under way go on for whoever asks again, and for what was prefetched.
        """
        kept = [want.digest for want in self._wanted.values() if want.kept]
        leaving, self._leaving = self._leaving, set()
        self._wanted.clear()
        self._given_up.clear()
        self._awaited.clear()
        self._places = Places(PLACES)
        self._installing = self._claim = None
        for slot in self._pool.begin_again():
            self._clear(slot)
        for digest in leaving.intersection(self._pool.digests):
            self._drop(digest)
        for digest in kept:
            self.prefetch(digest)

    @property
    def expecting(self) -> bool:
        """Whether versions are wanted or on their way, so that `pump` should go on being called."""
        return self._installing is not None or bool(self._wanted)

    # ---- what others may know

    @property
    def evictions(self) -> int:
        """Versions that had to leave the device for others."""
        return self._pool.evictions

    def take_evicted(self) -> tuple[str, ...]:
        """Those of them that left since the last call, each as often as it did."""
        return self._pool.take_evicted()

    @property
    def loads(self) -> int:
        """Versions read from disk, failed ones included."""
        return self._loader.loads

    @property
    def load_seconds(self) -> float:
        """Time that those loads took."""
        return self._loader.load_seconds

    def held(self, digest: str) -> bool:
        """Whether anything of a version is in memory or on its way there."""
        resident = digest in self._pool.digests or digest in self._wanted
        return resident or digest in self._loader.sizes()

    def states(self) -> tuple[ResidentState, ...]:
        """The versions in memory, each once, at the tier nearest to the device."""
        pool = self._pool
        states = [
            ResidentState(d, "device", pool.refs(d), pool.size(d), pool.pinned(d))
            for d in pool.digests
            if pool.ready(d)
        ]
        states += [
            ResidentState(d, "host", 0, size, pool.pinned(d))
            for d, size in self._loader.sizes().items()
            if not pool.ready(d)
        ]
        return tuple(states)

    def check(self) -> tuple[str, ...]:
        """The invariants that do not hold; empty is healthy."""
        leaving_in_use = all(self._pool.refs(digest) for digest in self._leaving)
        return self._pool.check() + (() if leaving_in_use else ("forgotten versions are gone",))

    # ---- steps of a pump

    def _settle(self) -> None:
        """Starts loads, takes in those that ended, and lets go of what nobody asks for."""
        passing = [d for d, e in self._failures.items() if not _lasting(e)]
        for digest in passing:
            del self._failures[digest]
        for want in [want for want in self._given_up if want.loaded]:
            self._given_up.remove(want)
            self._places.leave(want)
        for want in self._places.admit():
            want.load = self._loader.request(want.digest, want.tenant)
        for want in self._in_turn():
            if want.load is None or not want.load.done():
                continue
            error = want.load.exception()
            if isinstance(error, Exception):
                self._fail(want.digest, MemoryError() if is_out_of_memory(error) else error)
            elif self._step - want.asked > _ATTENTION:
                self._unwant(want.digest)

    def _begin(self) -> bool:
        """Starts to install the first wanted version that there is room for."""
        for digest, packed in self._candidates():
            keep = () if digest == self._claim else self._awaited
            try:
                self._arena.check(packed.plan)
                placement = self._pool.reserve(digest, packed.sizes, keep)
            except AdapterInvalid as error:
                self._fail(digest, error)
                continue
            if placement is not None:
                for slot in placement.evicted:
                    self._clear(slot)
                self._unwant(digest)
                self._began = self._clock()
                self._installing = digest, self._arena.install(placement, packed)
                return True
        return False

    def _in_turn(self) -> list[_Want]:
        """Those that have a place and are still wanted."""
        return [want for want in self._places.taken if self._wanted.get(want.digest) is want]

    def _candidates(self) -> Iterator[tuple[str, Packed]]:
        for want in self._in_turn():
            if want.packed is not None and self._claim in (None, want.digest):
                yield want.digest, want.packed

    def _unwant(self, digest: str) -> None:
        """What is loaded for nobody keeps its place until that has ended."""
        want = self._wanted.pop(digest, None)
        if want is None:
            return
        if want.load is not None and not want.loaded:
            self._given_up.append(want)
        else:
            self._places.leave(want)

    def _advance(self, budget: int) -> int:
        """Copies one slice; returns its bytes, or all of `budget` where only waiting is left."""
        assert self._installing is not None
        digest, installation = self._installing
        try:
            copied = installation.advance(budget)
            arrived = installation.finish()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._drop(digest)
            self._fail(digest, MemoryError(str(error)))
            return budget
        if arrived:
            self._pool.commit(digest)
            self._learn(self._clock() - self._began)
            self._awaited.add(digest)
            self._installing = None
            self._loader.let_go(installation.leave())
        elif not copied:
            return budget
        return copied

    def _learn(self, seconds: float) -> None:
        """Takes one more installation into the average, in which the last few count."""
        known = self._copy_seconds
        self._copy_seconds = seconds if known == math.inf else known + (seconds - known) / 4

    def _fail(self, digest: str, error: Exception) -> None:
        self._unwant(digest)
        self._failures[digest] = error

    def _drop(self, digest: str) -> None:
        if self._installing is not None and self._installing[0] == digest:
            self._installing = None
        self._leaving.discard(digest)
        self._clear(self._pool.drop(digest))

    def _clear(self, slot: int) -> None:
        """Nobody refers to the slot: where memory is short, its next version can wait for this."""
        try:
            self._arena.clear(slot)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise


def _lasting(error: Exception) -> bool:
    """Whether the version is at fault, so that trying again would fail again."""
    return isinstance(error, AdapterInvalid | AdapterCorrupt)
