"""A residency without tensors: real bookkeeping of slots and bytes, loads that take some steps."""

import math
from collections.abc import Collection, Iterable, Mapping

from weft.adapters.errors import AdapterInvalid
from weft.adapters.pool import Pool, SlotRef
from weft.adapters.presence import Presence
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.adapters.traits import PLAIN, Traits


class FakeResidency:
    """Keeps `weft.server.engine.residency.Residency`'s promises.

    sizes: bytes of each version that exists   load_steps: steps until one is in host memory
    install_steps: steps of its copy to the device, with 0 it is there after the same pump
    swap_seconds: what bringing one back is said to take   broken: versions whose load fails
    traits: of the versions that have any
    """

    def __init__(
        self,
        capacity: int,
        slots: int,
        sizes: Mapping[str, int],
        *,
        load_steps: int = 1,
        install_steps: int = 1,
        swap_seconds: float = math.inf,
        broken: Collection[str] = (),
        traits: Mapping[str, Traits] | None = None,
    ) -> None:
        self.pool = Pool(capacity, slots, align=1)
        self.loads = 0
        self._sizes = sizes
        self._load_steps = load_steps
        self._install_steps = install_steps
        self._swap_seconds = swap_seconds
        self._broken = frozenset(broken)
        self._traits = traits or {}
        self._wanted: dict[str, int] = {}  # version → steps until it is in host memory
        self._installing: dict[str, int] = {}
        self._failures: dict[str, Exception] = {}
        self._claim: str | None = None
        self._digests: dict[SlotRef, str] = {}

    @property
    def wanted(self) -> set[str]:
        """The versions that are to be loaded."""
        return set(self._wanted)

    def computes(self, ref: SlotRef) -> str | None:
        """The version that a row with this reference is computed with; None if it is stale."""
        return self._digests[ref] if self.pool.valid(ref) else None

    def ensure(self, digest: str, tenant: TenantContext = NOBODY) -> Presence:
        if self.pool.ready(digest):
            return Presence.DEVICE
        if digest in self._failures:
            return Presence.FAILED
        if digest in self._installing or self._wanted.setdefault(digest, self._load_steps) > 0:
            return Presence.LOADING
        return Presence.WAITING

    def give_up(self, digest: str) -> None:
        self._wanted.pop(digest, None)

    def error(self, digest: str) -> Exception:
        return self._failures[digest]

    def acquire(self, digest: str) -> SlotRef:
        ref = self.pool.acquire(digest)
        self._digests[ref] = digest
        return ref

    def release(self, ref: SlotRef) -> None:
        self.pool.release(ref)

    def traits(self, ref: SlotRef) -> Traits:
        return self._traits.get(self._digests[ref], PLAIN)

    def victims_for(self, digest: str, last: Collection[str] = ()) -> tuple[str, ...]:
        if self._claim not in (None, digest):
            return ()
        try:
            victims = self.pool.victims_for([self._sizes[digest]], last)
        except AdapterInvalid as error:
            self._fail(digest, error)
            return ()
        self._claim = digest
        return victims

    def return_seconds(self, digests: Iterable[str]) -> float:
        return sum(self._swap_seconds for _ in digests)

    def pump(self) -> None:
        """What happens between two steps."""
        arrived = [digest for digest, steps in self._installing.items() if steps <= 1]
        self._installing = {d: s - 1 for d, s in self._installing.items() if s > 1}
        for digest in arrived:
            self.pool.commit(digest)
        for digest, steps in list(self._wanted.items()):
            self._wanted[digest] = steps - 1
            if steps <= 1 and digest in self._broken:
                self._fail(digest, AdapterInvalid("adapter_model.safetensors", "not finite"))
        for digest in [d for d, steps in self._wanted.items() if steps <= 0]:
            if self._claim in (None, digest) and not self._installing:
                self._install(digest, keep=arrived)
        self._claim = None

    def _install(self, digest: str, keep: Collection[str]) -> None:
        """Reserves room, but not that of versions which nobody had a chance to reference yet."""
        try:
            placement = self.pool.reserve(digest, [self._sizes[digest]], keep)
        except AdapterInvalid as error:
            self._fail(digest, error)
            return
        if placement is not None:
            del self._wanted[digest]
            self.loads += 1
            if self._install_steps:
                self._installing[digest] = self._install_steps
            else:
                self.pool.commit(digest)

    def _fail(self, digest: str, error: Exception) -> None:
        self._failures[digest] = error
        del self._wanted[digest]
