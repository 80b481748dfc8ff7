"""Which names a tenant has, which versions these had, and which of them are in use.

Owns the stored files' lifetime: a version's files are there as long as a name or a hold refers to
it. Knows no device and no model.
"""

import logging
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from weft.adapters.catalogue import Catalogue, Entry, Version
from weft.adapters.database import Database
from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, UnknownAdapter, VersionConflict
from weft.adapters.holds import Hold, Holds, Lease, Upload
from weft.adapters.store import Source, Store
from weft.adapters.tenancy import TenantContext

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adapter(Version):
    """A name, with the version that it points to.

    versions: how many the name has   leases: of any of them, now
    last_used: seconds since 1970; None if not since the server started
    """

    pinned: bool
    versions: int
    leases: int
    last_used: float | None


class Registry:
    """Tenants' names over a store of files.

    Every call is on behalf of a tenant and sees that tenant's names alone. What changes something
    raises StorageFull or another OSError where the disk fails, and has then changed nothing.
    Thread-safe; all calls but `ingest` are short.
    """

    def __init__(self, path: Path, store: Store) -> None:
        """Opens the registry's file and removes what was stored but not recorded.

        Raises StateInUse where another server has it open.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._store = store
        self._database = Database(path)
        self._lock = self._database.lock
        self._catalogue = Catalogue(self._database)
        self._holds = Holds()
        self._orphans: set[str] = set()
        self._leases: Counter[tuple[str, str]] = Counter()
        self._last_used: dict[tuple[str, str], float] = {}
        try:
            missing = store.sweep(self._recorded())
            with self._database.transaction():
                for digest in missing:
                    self._catalogue.mark(digest, "its stored files are missing")
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Closes the registry's file."""
        self._database.close()

    # ---- changing

    def ingest(self, ctx: TenantContext, source: Source) -> Upload:
        """Stores an adapter's files; they go away with the upload unless they were `put`.

        Raises AdapterInvalid where they are no adapter.
        """
        staged = self._store.stage(source)
        try:
            upload = Upload(ctx, staged.digest, staged.nbytes, self._release)
            with self._lock:
                self._holds.add(upload)
                if not self._catalogue.has(staged.digest):
                    self._orphans.add(staged.digest)
            try:
                self._store.settle(staged)
            except BaseException:
                upload.release()
                raise
        finally:
            self._store.discard(staged)
        return upload

    def put(
        self,
        ctx: TenantContext,
        name: str,
        upload: Upload,
        report: str,
        expected: str | None = None,
    ) -> Version:
        """Points a name to an upload: a new version, unless it is the current one already.

        expected: the digest that the name must point to now, else VersionConflict. Versions of the
        same digest that had failed are ready again. AdapterInvalid for what cannot be a name.
        """
        if not NAME.fullmatch(name):
            raise AdapterInvalid("name", f"{name!r} does not match {NAME.pattern}")
        with self._database.transaction():
            if upload.digest not in self._holds:
                raise ValueError("the upload was released")
            current = self._catalogue.current(ctx, name)
            _expect(name, current, expected)
            self._catalogue.mark(upload.digest, None)
            if current is None or current.digest != upload.digest:
                self._catalogue.add(ctx, name, upload.digest, upload.nbytes, report)
            version = self._current(ctx, name)
        with self._lock:
            self._orphans.discard(upload.digest)
        return version

    def rollback(
        self,
        ctx: TenantContext,
        name: str,
        version: int | None = None,
        expected: str | None = None,
    ) -> Version:
        """Points a name to the version given, or to the one before the current.

        Raises UnknownAdapter, AdapterCorrupt where that version failed, VersionConflict.
        """
        with self._database.transaction():
            current = self._current(ctx, name)
            _expect(name, current, expected)
            if version is None:
                earlier = [v.version for v in self.versions(ctx, name)]
                version = max((v for v in earlier if v < current.version), default=0)
            target = self._servable(ctx, name, version)
            self._catalogue.point(ctx, name, version)
        return target

    def remove(self, ctx: TenantContext, name: str, expected: str | None = None) -> tuple[str, ...]:
        """Removes a name with its versions; returns the digests that no name refers to any more.

        Leases go on and keep their files until they end. Should the name come again, its version
        numbers go on too. Raises UnknownAdapter, VersionConflict.
        """
        with self._lock:
            with self._database.transaction():
                _expect(name, self._current(ctx, name), expected)
                digests = {version.digest for version in self.versions(ctx, name)}
                self._catalogue.remove(ctx, name)
            self._last_used.pop((ctx.id, name), None)
            gone = tuple(sorted(d for d in digests if not self._catalogue.has(d)))
            self._orphans.update(gone)
            for digest in gone:
                self._collect(digest)
        return gone

    def pin(self, ctx: TenantContext, name: str, pinned: bool) -> Version:
        """Records whether a name is to stay on the device; returns its current version."""
        with self._database.transaction():
            version = self._current(ctx, name)
            self._catalogue.pin(ctx, name, pinned=pinned)
        return version

    def withdraw(self, hold: Hold, reason: str) -> None:
        """Marks a held version as failed under all its names, until its bytes are put again."""
        with self._database.transaction():
            self._catalogue.mark(hold.digest, reason)

    # ---- using

    def lease(self, ctx: TenantContext, name: str, version: int | None = None) -> Lease:
        """Holds a name's current version, or the one given, until it is released.

        Raises UnknownAdapter, AdapterCorrupt where the version failed.
        """
        with self._lock:
            found = self._servable(ctx, name, version)
            lease = Lease(ctx, found, self._release)
            self._holds.add(lease)
            self._leases[ctx.id, name] += 1
            self._last_used[ctx.id, name] = time.time()
        return lease

    def lookup(self, ctx: TenantContext, name: str) -> Adapter:
        """One name; raises UnknownAdapter."""
        with self._lock:
            for entry in self._catalogue.entries(ctx, name=name):
                return self._adapter(ctx, entry)
        raise UnknownAdapter(name)

    def list(self, ctx: TenantContext, after: str = "", limit: int = 1000) -> tuple[Adapter, ...]:
        """At most `limit` names in order, those that come after `after`."""
        with self._lock:
            entries = self._catalogue.entries(ctx, after, limit)
            return tuple(self._adapter(ctx, entry) for entry in entries)

    def versions(self, ctx: TenantContext, name: str) -> tuple[Version, ...]:
        """All versions of a name, the oldest first; none of an unknown name."""
        return tuple(self._catalogue.versions(ctx, name))

    def pinned(self) -> set[str]:
        """The digests that pinned names point to, for an engine that starts."""
        return self._catalogue.pinned()

    def stored(self, digest: str) -> bool:
        """Whether a name or a hold refers to the digest, so that its files are kept."""
        with self._lock:
            return digest in self._holds or self._catalogue.has(digest)

    def arrivals(self) -> Path:
        """A folder on the disk of the stored files, for what is still on its way to `ingest`."""
        self._store.root.mkdir(parents=True, exist_ok=True)
        return self._store.root

    def check(self) -> tuple[str, ...]:
        """The invariants that do not hold; empty is healthy."""
        with self._lock:
            stored = self._store.digests()
            claims = {
                "every version has its files": self._catalogue.digests(failed=False) <= stored,
                "all files are of a version or a hold": stored <= self._recorded() | self._orphans,
                "every name points to one of its versions": not self._catalogue.dangling(),
                "leases are counted by name as they are held": self._leases
                == Counter(
                    (hold.ctx.id, hold.name) for hold in self._holds if isinstance(hold, Lease)
                ),
            }
        return tuple(claim for claim, holds in claims.items() if not holds)

    # ---- steps of them

    def _current(self, ctx: TenantContext, name: str) -> Version:
        current = self._catalogue.current(ctx, name)
        if current is None:
            raise UnknownAdapter(name)
        return current

    def _servable(self, ctx: TenantContext, name: str, version: int | None) -> Version:
        found = self._catalogue.version(ctx, name, version) if version is not None else None
        if version is not None and found is None:
            raise UnknownAdapter(f"{name}@{version}")
        found = found or self._current(ctx, name)
        if found.failed is not None:
            raise AdapterCorrupt(found.digest)
        return found

    def _recorded(self) -> set[str]:
        return self._catalogue.digests(failed=False) | self._catalogue.digests(failed=True)

    def _adapter(self, ctx: TenantContext, entry: Entry) -> Adapter:
        key = (ctx.id, entry.current.name)
        return Adapter(
            **asdict(entry.current),
            pinned=entry.pinned,
            versions=entry.versions,
            leases=self._leases[key],
            last_used=self._last_used.get(key),
        )

    def _release(self, hold: Hold) -> None:
        with self._lock:
            if not self._holds.remove(hold):
                return
            if isinstance(hold, Lease):
                self._leases[hold.ctx.id, hold.name] -= 1
                if not self._leases[hold.ctx.id, hold.name]:
                    del self._leases[hold.ctx.id, hold.name]
            self._collect(hold.digest)

    def _collect(self, digest: str) -> None:
        """Removes the files of a version that nothing refers to; if that fails, a start does it."""
        if digest in self._orphans and digest not in self._holds:
            try:
                self._store.remove(digest)
                self._orphans.discard(digest)
            except OSError:
                _log.exception("files of version %s could not be removed", digest)


def _expect(name: str, current: Version | None, expected: str | None) -> None:
    found = current.digest if current else None
    if expected is not None and found != expected:
        raise VersionConflict(name, found)
