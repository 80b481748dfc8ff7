"""Which names a tenant has, which versions these had, and which of them are in use.

Owns the stored files' lifetime: a version's files are there as long as a name or a hold refers to
it. Knows no device and no model.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from weft.adapters.alias import Arm
from weft.adapters.aliases import Aliases
from weft.adapters.catalogue import Key
from weft.adapters.custody import Custody
from weft.adapters.errors import (
    AdapterCorrupt,
    AdapterInUse,
    AdapterInvalid,
    UnknownAdapter,
    VersionConflict,
)
from weft.adapters.holds import Hold, Lease, Upload
from weft.adapters.ledger import Change, Ledger
from weft.adapters.retention import Retention
from weft.adapters.store import Source, Store
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import NAME, Entry, Version

DAMAGED = "its stored files are damaged"
_VERSION = tuple(field.name for field in fields(Version))


@dataclass(frozen=True, slots=True, kw_only=True)
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
    """Tenants' names over a store of files; `aliases` of these names.

    Every call is on behalf of a tenant and sees that tenant's names alone. What changes something
    waits for the disk, raises StorageFull or another OSError where that fails, and has then changed
    nothing. What only looks, `lease`, `withdraw` and the release of a lease never wait for a disk.
    Thread-safe.
    """

    def __init__(self, path: Path, store: Store) -> None:
        """Opens the registry's file and removes what was stored but not recorded.

        Raises StateInUse where another server has it open.
        """
        self._store = store
        self._ledger = Ledger(path)
        self._lock = self._ledger.lock
        self._directory = self._ledger.directory
        self.aliases = Aliases(self._ledger)
        self._custody = Custody(store, self._ledger)
        self._last_used: dict[Key, float] = {}
        self.on_withdraw: Callable[[Hold, str], None] = lambda hold, reason: None
        """Called when a held version is found to have failed, once until it is put again."""
        self.on_prune: Callable[[TenantContext, Version], None] = lambda ctx, version: None
        """Called with each old version that was removed."""
        try:
            missing = store.sweep(self._directory.digests())
            if missing:
                with self._ledger.changing(failures=missing) as change:
                    for digest in missing:
                        change.rows.fail(digest, "its stored files are missing")
        except BaseException:
            self._ledger.close()
            raise

    def close(self) -> None:
        """Finishes what was put off, and closes the registry's file."""
        self._custody.close()
        self._ledger.close()

    def catch_up(self) -> None:
        """Waits for what was put off so far: files to remove, failures to record."""
        self._custody.catch_up()

    # ---- changing

    def ingest(self, ctx: TenantContext, source: Source) -> Upload:
        """Stores an adapter's files; they go away with the upload unless they were `put`.

        Raises AdapterInvalid where they are no adapter.
        """
        staged = self._store.stage(source)
        try:
            return self._custody.settle(ctx, staged)
        finally:
            self._store.discard(staged)

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
        key, digest = (ctx.id, name), upload.digest
        if not NAME.fullmatch(name):
            raise AdapterInvalid("name", f"{name!r} does not match {NAME.pattern}")
        with (
            self._custody.again(upload),
            self._ledger.changing(names=[key], failures=[digest]) as change,
        ):
            with self._lock:
                if key in self._directory.aliases:
                    raise AdapterInvalid("name", f"{name!r} is an alias")
                current = self._directory.version(key)
            _expect(name, current, expected)
            change.rows.heal(digest)
            if current is None or current.digest != digest:
                change.rows.add(key, digest, upload.nbytes, report)
        return _pointed_to(key, change)

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
        key = (ctx.id, name)
        with self._ledger.changing(names=[key]) as change:
            current = self._version(key)
            _expect(name, current, expected)
            if version is None:
                earlier = [v.version for v in self.versions(ctx, name)]
                version = max((v for v in earlier if v < current.version), default=0)
            target = self._version(key, version)
            if target.failed is not None:
                raise AdapterCorrupt(target.digest)
            change.rows.point(key, version)
        return _pointed_to(key, change)

    def remove(self, ctx: TenantContext, name: str, expected: str | None = None) -> tuple[str, ...]:
        """Removes a name with its versions; returns the digests that no name refers to any more.

        Leases go on and keep their files until they end. Should the name come again, its version
        numbers go on too. Raises UnknownAdapter, VersionConflict, AdapterInUse where an alias leads
        to it.
        """
        key = (ctx.id, name)
        with self._ledger.changing(names=[key]) as change:
            _expect(name, self._version(key), expected)
            for alias, _ in self.aliases.pointing(ctx, name):
                raise AdapterInUse(name, alias.name)
            change.rows.remove(key)
        with self._lock:
            self._last_used.pop(key, None)
        self._custody.collect(change.unused)
        return tuple(sorted(change.unused))

    def prune(self, ctx: TenantContext, name: str, retention: Retention) -> tuple[str, ...]:
        """Removes a name's old versions; returns the digests that no name refers to any more.

        Those stay that are held, that an alias leads to or led to before its last change, and whose
        bytes a pinned name points to. Raises UnknownAdapter.
        """
        key = (ctx.id, name)
        if not self._prunable(key, retention):
            return ()
        with self._ledger.changing(names=[key]) as change:
            pruned = self._prunable(key, retention)
            for version in pruned:
                change.rows.drop(key, version.version)
        for version in pruned:
            self.on_prune(ctx, version)
        self._custody.collect(change.unused)
        return tuple(sorted(change.unused))

    def pin(
        self, ctx: TenantContext, name: str, pinned: bool, expected: str | None = None
    ) -> Version:
        """Records whether a name is to stay on the device; returns its current version."""
        key = (ctx.id, name)
        with self._ledger.changing(names=[key]) as change:
            version = self._version(key)
            _expect(name, version, expected)
            change.rows.pin(key, pinned=pinned)
        return version

    # ---- using

    def lease(
        self, ctx: TenantContext, name: str, version: int | None = None, choice: str = ""
    ) -> Lease:
        """Holds a name's current version, or the one given, until it is released.

        choice: where `name` is an alias that splits, whose way to go; see `Alias.arm`
        Raises UnknownAdapter, AdapterCorrupt where the version failed.
        """
        with self._lock:
            arm = Arm(name, version, 1.0)
            if version is None:
                arm = self._directory.follow((ctx.id, name), choice)
            key = (ctx.id, arm.name)
            lease = self._custody.lease(ctx, self._version(key, arm.version))
            self._last_used[key] = time.time()
        return lease

    def withdraw(self, hold: Hold, reason: str) -> None:
        """Marks a held version as failed under all its names, until its bytes are put again."""
        with self._lock:
            known = hold.digest in self._directory.failures
            self._directory.set_failure(hold.digest, reason)
        if not known:
            self.on_withdraw(hold, reason)
        self._custody.put_off(self._record_failure, hold.digest)

    def examine(self, hold: Hold) -> None:
        """Reads a held version's files, soon, and withdraws it where they are damaged."""
        self._custody.put_off(self._examine, hold)

    def lookup(self, ctx: TenantContext, name: str) -> Adapter:
        """One name; raises UnknownAdapter."""
        with self._lock:
            entry = self._directory.names.get((ctx.id, name))
            if entry is None:
                raise UnknownAdapter(name)
            return self._adapter((ctx.id, name), entry)

    def list(self, ctx: TenantContext, after: str = "", limit: int = 1000) -> tuple[Adapter, ...]:
        """At most `limit` names in order, those that come after `after`."""
        with self._lock:
            names = self._directory.names
            keys = [(ctx.id, name) for name in names.page(ctx, after, limit)]
            return tuple(self._adapter(key, names[key]) for key in keys)

    def current(
        self, ctx: TenantContext, after: str = "", limit: int = 1000
    ) -> tuple[Version, ...]:
        """What at most `limit` names in order point to, of those that come after `after`."""
        with self._lock:
            names, told = self._directory.names, self._directory.told
            entries = (names[ctx.id, name] for name in names.page(ctx, after, limit))
            return tuple(told(entry.versions[entry.current]) for entry in entries)

    def versions(self, ctx: TenantContext, name: str) -> tuple[Version, ...]:
        """All versions of a name, the oldest first; none of an unknown name."""
        with self._lock:
            entry = self._directory.names.get((ctx.id, name))
            return tuple(map(self._directory.told, entry.versions.values())) if entry else ()

    def ends(self, ctx: TenantContext, name: str) -> tuple[Version, ...]:
        """The versions that a name or alias can lead to now; none of an unknown one."""
        with self._lock:
            arms = self._directory.ends((ctx.id, name))
            found = (self._directory.version((ctx.id, arm.name), arm.version) for arm in arms)
            return tuple(version for version in found if version is not None)

    def pinned(self) -> set[str]:
        """The digests that pinned names point to, for an engine that starts."""
        with self._lock:
            return self._directory.pinned()

    def names(self, digest: str) -> tuple[Key, ...]:
        """Whose names have a version of this digest: tenants' ids and names, in order."""
        with self._lock:
            return self._directory.named(digest)

    def stored(self, digest: str) -> bool:
        """Whether a name or a hold refers to the digest, so that its files are kept."""
        return self._custody.needs(digest)

    def arrivals(self) -> Path:
        """A folder on the disk of the stored files, for what is still on its way to `ingest`."""
        self._store.make_root()
        return self._store.root

    def check(self) -> tuple[str, ...]:
        """The invariants that do not hold; empty is healthy."""
        return self._custody.check() + self._ledger.check()

    # ---- steps of them

    def _version(self, key: Key, version: int | None = None) -> Version:
        """A name's version, the current one by default; raises UnknownAdapter."""
        with self._lock:
            found = self._directory.version(key, version)
        if found is None:
            raise UnknownAdapter(key[1] if version is None else f"{key[1]}@{version}")
        return found

    def _prunable(self, key: Key, retention: Retention) -> tuple[Version, ...]:
        self._version(key)
        with self._lock:
            kept = self._directory.kept(key)
            return tuple(
                version
                for version in retention.surplus(self._directory.names[key], time.time())
                if version.version not in kept
                and not self._custody.held(version.digest)
                and not self._directory.is_pinned(version.digest)
            )

    def _adapter(self, key: Key, entry: Entry) -> Adapter:
        current = self._directory.told(entry.versions[entry.current])
        return Adapter(
            **{name: getattr(current, name) for name in _VERSION},
            pinned=entry.pinned,
            versions=len(entry.versions),
            leases=self._custody.leases(key),
            last_used=self._last_used.get(key),
        )

    def _examine(self, hold: Hold) -> None:
        with suppress(OSError):
            try:
                self._store.read(hold.digest)
            except AdapterCorrupt:
                self.withdraw(hold, DAMAGED)

    def _record_failure(self, digest: str) -> None:
        """Lets a failure outlive this process; until then it is found again by whoever looks."""
        with suppress(OSError), self._ledger.changing(failures=[digest]) as change:
            with self._lock:
                reason = self._directory.failures.get(digest)
            if reason is not None:
                change.rows.fail(digest, reason)


def _pointed_to(key: Key, change: Change) -> Version:
    """The version that a name points to since a change, whatever came after it."""
    entry = change.names[key]
    assert entry is not None
    return entry.versions[entry.current]


def _expect(name: str, current: Version | None, expected: str | None) -> None:
    found = current.digest if current else None
    if expected is not None and found != expected:
        raise VersionConflict(name, found)
