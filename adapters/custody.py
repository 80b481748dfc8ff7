"""Which stored files are still needed: by a name, or by whoever holds them. The others go.

Knows no names' meaning and changes none.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec

from weft.adapters.catalogue import Key
from weft.adapters.errors import AdapterCorrupt
from weft.adapters.holds import Hold, Holds, Lease, Upload
from weft.adapters.ledger import Ledger
from weft.adapters.store import Staged, Store
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import Version

_log = logging.getLogger(__name__)
P = ParamSpec("P")


class Custody:
    """The holds on stored files. Thread-safe, under the ledger's lock."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._directory = ledger.directory
        self._lock = ledger.lock
        self._holds = Holds()
        self._leases: Counter[Key] = Counter()
        self._leaving: set[str] = set()
        self._left: set[str] = set()
        self._later = ThreadPoolExecutor(1, "registry")

    def close(self) -> None:
        """Finishes what was put off."""
        self._later.shutdown()

    # ---- holding

    def lease(self, ctx: TenantContext, version: Version) -> Lease:
        """Holds a named version; raises AdapterCorrupt where it failed."""
        if version.failed is not None:
            raise AdapterCorrupt(version.digest)
        lease = Lease(ctx, version, self.release)
        with self._lock:
            self._holds.add(lease)
            self._leases[ctx.id, version.name] += 1
        return lease

    def settle(self, ctx: TenantContext, staged: Staged) -> Upload:
        """Holds staged files, and stores them; raises OSError."""
        upload = Upload(ctx, staged.digest, staged.nbytes, self.release)
        with self._lock:
            self._lock.wait_for(lambda: upload.digest not in self._leaving)
            self._holds.add(upload)
        try:
            self._store.settle(staged)
        except BaseException:
            upload.release()
            raise
        return upload

    def again(self, upload: Upload) -> Upload:
        """One more hold on an upload; raises ValueError where none is left."""
        with self._lock:
            if upload.digest not in self._holds:
                raise ValueError("the upload was released")
            more = Upload(upload.ctx, upload.digest, upload.nbytes, self.release)
            self._holds.add(more)
        return more

    def release(self, hold: Hold) -> None:
        """Ends a hold. That of a lease ends where nothing may wait for a disk: files go later."""
        with self._lock:
            if not self._holds.remove(hold):
                return
            if isinstance(hold, Lease):
                key = (hold.ctx.id, hold.name)
                self._leases[key] -= 1
                if not self._leases[key]:
                    del self._leases[key]
            if self.needs(hold.digest):
                return
        if isinstance(hold, Lease):
            self.put_off(self.collect, [hold.digest])
        else:
            self.collect([hold.digest])

    def leases(self, key: Key) -> int:
        """How many leases there are of a name's versions."""
        with self._lock:
            return self._leases[key]

    def held(self, digest: str) -> bool:
        """Whether anybody holds a digest."""
        with self._lock:
            return digest in self._holds

    def needs(self, digest: str) -> bool:
        """Whether a name or a hold refers to a digest."""
        with self._lock:
            return digest in self._holds or self._directory.has(digest)

    # ---- removing

    def collect(self, digests: Iterable[str]) -> None:
        """Removes files that nothing refers to any more; where that fails, a start does it."""
        for digest in digests:
            with self._lock:
                if digest in self._leaving or self.needs(digest):
                    continue
                self._leaving.add(digest)
            failed = False
            try:
                self._store.remove(digest)
            except OSError:
                failed = True
                _log.exception("files of version %s could not be removed", digest)
            with self._lock:
                (self._left.add if failed else self._left.discard)(digest)
                self._leaving.discard(digest)
                self._lock.notify_all()

    def put_off(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Does something soon, in a thread that may wait for the disk."""
        with suppress(RuntimeError):  # closed: the next start does it
            self._later.submit(work, *args, **kwargs)

    def catch_up(self) -> None:
        """Waits for what was put off so far."""
        self._later.submit(int).result()

    def check(self) -> tuple[str, ...]:
        """The invariants that do not hold; empty is healthy. For a registry at rest."""
        self.catch_up()
        stored = self._store.digests()
        with self._lock:
            named = self._directory.digests()
            held = {hold.digest for hold in self._holds}
            leased = [(hold.ctx.id, hold.name) for hold in self._holds if isinstance(hold, Lease)]
            claims = {
                "every version has its files": named - self._directory.failures.keys() <= stored,
                "all files are of a version or a hold": stored <= named | held | self._left,
                "leases are counted by name as they are held": self._leases == Counter(leased),
            }
        return tuple(claim for claim, holds in claims.items() if not holds)
