"""Changes of what adapters tenants have: registry, engine and metrics kept in step.

Knows no HTTP; what a client may do is decided before.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import orjson
from msgspec import structs

from weft.adapters.errors import UnknownAdapter, VersionConflict
from weft.adapters.holds import Upload
from weft.adapters.registry import Adapter, Registry
from weft.adapters.retention import Retention
from weft.adapters.store import Source
from weft.adapters.tenancy import TenantContext
from weft.adapters.version import NAME, Version
from weft.server.adapter_series import AdapterLabel
from weft.server.arrivals import Allowance, Arrivals, arriving
from weft.server.engine.client import EngineClient, EngineUnavailable
from weft.server.engine.messages import LoadReport
from weft.server.errors import invalid
from weft.server.holdings import Addition, Holdings
from weft.server.metrics import Metrics
from weft.server.policy import NO_QUOTAS, Quotas
from weft.server.tenants import Tenants

log = logging.getLogger("weft.library")
_WORKERS = 2
_KEEP_ALL = Retention(count=2**31)
P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V", bound=Version)


async def _anyway(load: Coroutine[Any, Any, LoadReport]) -> LoadReport:
    return await load


@dataclass(frozen=True)
class Installed:
    """What an installation found; `version` is None where it was a dry run.

    before: what the name pointed to until then
    """

    report: LoadReport
    version: Version | None
    before: Version | None = None


class Library:
    """The tenants' adapters, as they are loaded, replaced, pinned and removed.

    reserved: names that no adapter may have   retention: of the versions of each name
    remark: what may surprise about a folder, beside what the engine finds in its adapter
    """

    def __init__(
        self,
        engine: EngineClient,
        registry: Registry,
        metrics: Metrics,
        tenants: Tenants,
        reserved: tuple[str, ...] = (),
        retention: Retention = _KEEP_ALL,
        remark: Callable[[Path], tuple[str, ...]] = lambda _: (),
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._metrics = metrics
        self._tenants = tenants
        self._reserved = reserved
        self._retention = retention
        self._remark = remark
        self._loading: Counter[AdapterLabel] = Counter()
        self._arrivals: dict[str, Arrivals] = {}  # of tenants that have a quota of bytes
        self._workers = ThreadPoolExecutor(_WORKERS, "library")
        self._commits = ThreadPoolExecutor(1, "commits")

    def announce(self, tenant: TenantContext) -> None:
        """Makes the series of the adapters that a tenant has already."""
        for adapter in self.current(tenant):
            self._metrics.register(AdapterLabel(tenant.id, adapter.name), adapter.digest)

    def retire(self, tenant: TenantContext) -> None:
        """The tenant is gone: there are no series of its adapters any more, which stay stored."""
        for adapter in self.current(tenant):
            self._metrics.forget(AdapterLabel(tenant.id, adapter.name))

    def current(self, tenant: TenantContext) -> Iterator[Version]:
        """The versions that a tenant's names point to, by name."""
        return _pages(partial(self._registry.current, tenant))

    def loading(self, tenant: TenantContext, name: str) -> bool:
        """Whether a new version is on its way."""
        return AdapterLabel(tenant.id, name) in self._loading

    def arriving(self, tenant: TenantContext) -> list[str]:
        """The names of all adapters that are loading, new or not."""
        return sorted(label.adapter for label in self._loading if label.tenant == tenant.id)

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs what may take minutes, in threads that no request's own short work waits for."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, partial(function, *args, **kwargs))

    async def commit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a change of the registry in the one thread that waits for its commits."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._commits, partial(function, *args, **kwargs))

    async def restore_pins(self) -> None:
        """Tells an engine that has just started which versions to keep."""
        for digest in self._registry.pinned():
            await self._engine.pin(digest, True)

    # ---- changing

    async def install(
        self,
        tenant: TenantContext,
        name: str,
        source: Source,
        *,
        expected: str | None = None,
        dry_run: bool = False,
        awaited: Callable[[Coroutine[Any, Any, LoadReport]], Awaitable[LoadReport]] = _anyway,
    ) -> Installed:
        """Stores an adapter, lets the engine prove that it can serve it, then names it.

        source: a folder, or the two open files   expected: digest that the name must have now
        awaited: waits for the load, and cancels it where nobody waits for the installation
        Raises ApiError, AdapterInvalid, VersionConflict, EngineUnavailable, EngineError or
        StorageFull, and then nothing was changed.
        """
        self.check_name(name)
        self._holdings(tenant).check_name(self._quotas(tenant), name)
        if self._registry.aliases.find(tenant, name) is not None:
            raise invalid("name", "is an alias; an adapter needs another name")
        before = self._current(tenant, name)
        if expected is not None and (before is None or before.digest != expected):
            raise VersionConflict(name, before.digest if before else None)
        with self._marked_loading(tenant, name):
            upload = await self.work(self._registry.ingest, tenant, source)
            try:
                report = await awaited(self._engine.load(upload.digest, tenant))
                if isinstance(source, Path):
                    remark = await self.work(self._remark, source)
                    report = structs.replace(report, warnings=(*report.warnings, *remark))
                if dry_run:
                    return Installed(report, None)
                version = await self.commit(self._put, tenant, name, upload, report, expected)
            finally:
                await asyncio.to_thread(upload.release)
                await self._forget_unused([upload.digest])
        label = AdapterLabel(tenant.id, name)
        self._metrics.register(label, version.digest)
        self._metrics.adapters[label].load_seconds = report.load_seconds
        await self._moved(before, version)
        await self.prune(tenant, name)
        return Installed(report, version, before)

    async def rollback(
        self,
        tenant: TenantContext,
        name: str,
        version: int | None = None,
        expected: str | None = None,
    ) -> Version:
        """Points a name to the version given, or to the one before its current one."""
        before = self._current(tenant, name)
        after = await self.commit(self._registry.rollback, tenant, name, version, expected)
        self._metrics.register(AdapterLabel(tenant.id, name), after.digest)
        await self._moved(before, after)
        return after

    async def remove(self, tenant: TenantContext, name: str, expected: str | None = None) -> None:
        """Forgets a name and its versions; requests that run with one finish."""
        digests = [version.digest for version in self._registry.versions(tenant, name)]
        await self.commit(self._registry.remove, tenant, name, expected)
        self._metrics.forget(AdapterLabel(tenant.id, name))
        await self._keep_pins(digests)
        await self._forget_unused(digests)

    async def prune(self, tenant: TenantContext, name: str) -> None:
        """Removes those old versions of a name that need not be kept and that nobody uses.

        Where the disk fails they stay until the next time.
        """
        try:
            gone = await self.commit(self._registry.prune, tenant, name, self._retention)
        except (UnknownAdapter, OSError) as error:
            log.warning("old versions were not removed: %s", error)
        else:
            await self._forget_unused(list(gone))

    async def prune_all(self) -> None:
        """Does that for all names of all tenants."""
        for tenant in self._tenants.contexts:
            for adapter in self.current(tenant):
                await self.prune(tenant, adapter.name)

    async def pin(
        self, tenant: TenantContext, name: str, pinned: bool, expected: str | None = None
    ) -> Version:
        """Keeps a name's current version on the device, or lets it go when others need room."""
        version = await self.commit(self._pin, tenant, name, pinned, expected)
        await self._keep_pins([version.digest])
        return version

    async def prefetch(self, tenant: TenantContext, name: str) -> None:
        """Brings a name's current version to the device ahead of use."""
        with self._registry.lease(tenant, name) as lease:
            await self._engine.prefetch(lease.digest, tenant)

    def check_name(self, name: str) -> None:
        """Raises ApiError for a name that no adapter may have."""
        if not NAME.fullmatch(name):
            raise invalid("name", "is 1 to 64 letters, digits, '.', '_' or '-', no sign first")
        if name in self._reserved:
            raise invalid("name", "is the base model's")

    # ---- within quotas

    @contextmanager
    def allowance(self, tenant: TenantContext, name: str, largest: int) -> Iterator[Allowance]:
        """How large a new version of `name` may be, until it is installed, beside others to come.

        largest: bytes that anybody may send   Raises ApiError where there may be none.
        """
        self.check_name(name)
        quotas = self._quotas(tenant)
        self._holdings(tenant).check_name(quotas, name)
        allowance, limit = Allowance(largest), quotas.adapter_bytes
        if limit is not None:
            arrivals = self._arrivals.setdefault(tenant.id, Arrivals())
            allowance = Allowance(
                largest, limit, lambda: self._holdings(tenant).room(limit), arrivals
            )
        with arriving(allowance):
            yield allowance

    def _put(
        self,
        tenant: TenantContext,
        name: str,
        upload: Upload,
        report: LoadReport,
        expected: str | None,
    ) -> Version:
        """In the thread of the commits, so that nothing comes between the look and the change."""
        addition = Addition(name, upload.nbytes, report)
        self._holdings(tenant).check_addition(self._quotas(tenant), addition)
        written = orjson.dumps(structs.asdict(report)).decode()
        return self._registry.put(tenant, name, upload, written, expected)

    def _pin(self, tenant: TenantContext, name: str, pinned: bool, expected: str | None) -> Version:
        if pinned:
            self._holdings(tenant).check_pin(self._quotas(tenant), name)
        return self._registry.pin(tenant, name, pinned, expected)

    def _holdings(self, tenant: TenantContext) -> Holdings:
        if self._quotas(tenant) == NO_QUOTAS:
            return Holdings((), {})
        adapters = tuple(_pages(partial(self._registry.list, tenant)))
        versions = (v for a in adapters for v in self._registry.versions(tenant, a.name))
        return Holdings(adapters, {version.digest: version.bytes for version in versions})

    def _quotas(self, tenant: TenantContext) -> Quotas:
        return self._tenants.policy.of(tenant).quotas

    # ---- keeping in step

    def _current(self, tenant: TenantContext, name: str) -> Adapter | None:
        try:
            return self._registry.lookup(tenant, name)
        except UnknownAdapter:
            return None

    @contextmanager
    def _marked_loading(self, tenant: TenantContext, name: str) -> Iterator[None]:
        label = AdapterLabel(tenant.id, name)
        self._loading[label] += 1
        try:
            yield
        finally:
            self._loading -= Counter({label: 1})

    async def _moved(self, before: Version | None, after: Version) -> None:
        if before is not None and before.digest != after.digest:
            await self._keep_pins([before.digest, after.digest])

    async def _keep_pins(self, digests: list[str]) -> None:
        """Pins on the device what some pinned name points to, and nothing else of `digests`."""
        wanted = self._registry.pinned()
        with suppress(EngineUnavailable):  # the next engine is told by the client
            for digest in digests:
                await self._engine.pin(digest, digest in wanted)

    async def _forget_unused(self, digests: list[str]) -> None:
        """Frees the engine's memory of versions whose files are gone: nobody can ask for them."""
        with suppress(EngineUnavailable):  # the next engine has none of them
            for digest in digests:
                if not self._registry.stored(digest):
                    await self._engine.unload(digest)


def _pages(page: Callable[[str], Sequence[V]]) -> Iterator[V]:
    """What all pages hold; page: of the names that come after one"""
    after = ""
    while found := page(after):
        yield from found
        after = found[-1].name
