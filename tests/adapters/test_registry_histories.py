"""Random histories of a registry, beside dictionaries that say what it must hold."""

import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest
from histories import histories
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stored_adapters import adapter
from stored_state import MINE, THEIRS, State

from weft.adapters.errors import (
    UnknownAdapter,
)
from weft.adapters.files import Files
from weft.adapters.holds import Lease
from weft.adapters.tenancy import TenantContext


class UnsyncedFiles(Files):
    """Files of a story without power loss; a sync takes most of its time."""

    def sync(self, file: BinaryIO) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class Life(RuleBasedStateMachine):
    """The registry beside dictionaries: versions by name, files by who refers to them."""

    TENANTS = st.sampled_from([MINE, THEIRS])
    NAMES = st.sampled_from("ab")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.state = State(self.root, UnsyncedFiles())
        self.names: dict[tuple[str, str], dict[int, str]] = {}
        self.current: dict[tuple[str, str], int] = {}
        self.last: dict[tuple[str, str], int] = {}
        self.leases: list[Lease] = []

    def teardown(self) -> None:
        self.state.registry.close()
        shutil.rmtree(self.root)

    @rule(ctx=TENANTS, name=NAMES, seed=st.integers(1, 4))
    def put(self, ctx: TenantContext, name: str, seed: int) -> None:
        version = self.state.put(name, seed, ctx)
        key = (ctx.id, name)
        if key not in self.names or self.names[key][self.current[key]] != version.digest:
            self.last[key] = self.current[key] = self.last.get(key, 0) + 1
            self.names.setdefault(key, {})[self.last[key]] = version.digest
        assert version.version == self.current[key]

    @rule(seed=st.integers(1, 4))
    def give_up_an_upload(self, seed: int) -> None:
        self.state.registry.ingest(MINE, adapter(seed)).release()

    @rule(ctx=TENANTS, name=NAMES)
    def remove(self, ctx: TenantContext, name: str) -> None:
        key = (ctx.id, name)
        if key not in self.names:
            with pytest.raises(UnknownAdapter):
                self.state.registry.remove(ctx, name)
            return
        gone = set(self.names.pop(key).values()) - self.recorded()
        del self.current[key]
        assert set(self.state.registry.remove(ctx, name)) == gone

    @rule(ctx=TENANTS, name=NAMES, version=st.none() | st.integers(1, 3))
    def rollback(self, ctx: TenantContext, name: str, version: int | None) -> None:
        key = (ctx.id, name)
        known = self.names.get(key, {})
        if version is None:
            version = max((v for v in known if v < self.current[key]), default=0)
            target = None
        else:
            target = version
        if version not in known:
            with pytest.raises(UnknownAdapter):
                self.state.registry.rollback(ctx, name, target)
            return
        self.state.registry.rollback(ctx, name, target)
        self.current[key] = version

    @rule(ctx=TENANTS, name=NAMES, version=st.none() | st.integers(1, 3))
    def lease(self, ctx: TenantContext, name: str, version: int | None) -> None:
        key = (ctx.id, name)
        wanted = self.current.get(key, 0) if version is None else version
        if wanted not in self.names.get(key, {}):
            with pytest.raises(UnknownAdapter):
                self.state.registry.lease(ctx, name, version)
            return
        lease = self.state.registry.lease(ctx, name, version)
        assert lease.digest == self.names[key][wanted]
        self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        for _ in range(times):
            lease.release()

    @rule()
    def restart(self) -> None:
        self.state.restart()
        self.leases.clear()

    def recorded(self) -> set[str]:
        return {digest for versions in self.names.values() for digest in versions.values()}

    @invariant()
    def the_registry_agrees(self) -> None:
        assert self.state.registry.check() == ()
        held = {lease.digest for lease in self.leases}
        assert self.state.store.digests() == self.recorded() | held
        for ctx in (MINE, THEIRS):
            listed = {a.name: (a.version, a.digest) for a in self.state.registry.list(ctx)}
            expected = {
                name: (self.current[key], versions[self.current[key]])
                for key, versions in self.names.items()
                for tenant, name in [key]
                if tenant == ctx.id
            }
            assert listed == expected


Life.TestCase.settings = histories(30, 25)
TestLife = Life.TestCase
