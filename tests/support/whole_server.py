"""A whole server in this process: a real engine on a tiny model, and its API called in memory."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from weft.adapters.registry import Registry
from weft.adapters.store import Store
from weft.server.app import create_app
from weft.server.engine.client import EngineClient
from weft.server.engine.launch import Launched, launch_thread
from weft.server.engine.messages import EngineConfig
from weft.server.records import Records
from weft.server.services import Services
from weft.server.settings import Settings
from weft.server.text import Text


@dataclass(frozen=True)
class WholeServer:
    """An app under test, and what stands behind it."""

    app: FastAPI
    services: Services

    def client(self, **headers: str) -> httpx.AsyncClient:
        """A client without a socket."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(
            transport=transport, base_url="http://weft", headers=headers, timeout=60
        )

    def check(self) -> None:
        """Nothing is held by a request that is over."""
        services = self.services
        assert services.admission.inside == 0
        adapters = [services.registry.list(tenant) for tenant in services.tenants.contexts]
        assert all(adapter.leases == 0 for listed in adapters for adapter in listed)
        assert services.registry.check() == ()


@asynccontextmanager
async def whole_server(
    model: Path,
    state: Path,
    config: dict[str, Any],
    *,
    launch: Callable[[], Launched] = launch_thread,
    **settings: Any,
) -> AsyncIterator[WholeServer]:
    """Serves until the context ends, when nothing may be held any more.

    config, settings: fields of EngineConfig and Settings
    """
    given = Settings(model=str(model), **settings)
    store = Store(state / "versions")
    registry = Registry(state / "registry.sqlite", store)
    records = Records.open(state, given)
    small = {"dtype": "float32", "device": "cpu", "threads": 1, **config}
    engine = EngineClient(
        EngineConfig(
            model=str(model), store=str(store.root), max_num_seqs=given.max_num_seqs, **small
        ),
        launch=launch,
    )
    try:
        await engine.start()
        services = Services.assemble(given, engine, registry, Text.load(str(model)), records)
        server = WholeServer(create_app(services), services)
        yield server
        server.check()
    finally:
        await engine.close()
        records.close()
        registry.close()
