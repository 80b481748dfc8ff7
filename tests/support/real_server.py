"""The whole server in this process: a real engine in a thread, its API on a socket."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from weft.adapters.registry import Registry
from weft.adapters.store import Store
from weft.server.app import create_app
from weft.server.engine.client import EngineClient
from weft.server.engine.launch import launch_thread
from weft.server.engine.messages import EngineConfig
from weft.server.records import Records
from weft.server.services import Services
from weft.server.settings import Settings
from weft.server.tenants import DEFAULT_TENANT
from weft.server.text import Text

_SMALL: dict[str, Any] = {
    "dtype": "float32",
    "device": "cpu",
    "threads": 1,
    "kv_cache_memory": 8 << 20,
    "adapter_memory": 8 << 20,
}


@contextmanager
def real_server(model: Path, state: Path, adapters: Mapping[str, Path]) -> Iterator[str]:
    """Serves a base with adapters for as long as the context lasts; yields the URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop, ready = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(_serve(model, state, adapters, listener, ready, stop))
        except BaseException as failure:  # noqa: BLE001 - raised again below
            failures.append(failure)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait()
        if failures:
            raise failures[0]
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()
        listener.close()
    if failures:
        raise failures[0]


async def _serve(
    model: Path,
    state: Path,
    adapters: Mapping[str, Path],
    listener: socket.socket,
    ready: threading.Event,
    stop: threading.Event,
) -> None:
    store = Store(state / "versions")
    registry = Registry(state / "registry.sqlite", store)
    records = Records.open(state, Settings(model=str(model)))
    config = EngineConfig(model=str(model), store=str(store.root), **_SMALL)
    engine = EngineClient(config, launch=launch_thread)
    try:
        await engine.start()
        settings = Settings(model=str(model))
        text = Text.load(str(model))
        services = Services.assemble(settings, engine, registry, text, records)
        for name, folder in adapters.items():
            await services.library.install(DEFAULT_TENANT, name, folder)
        app = create_app(services)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        ready.set()
        await asyncio.to_thread(stop.wait)
        server.should_exit = True
        await serving
    finally:
        await engine.close()
        records.close()
        registry.close()
