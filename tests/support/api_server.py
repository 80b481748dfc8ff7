"""The HTTP API over a fake engine: in memory through ASGI, or on a real socket."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from adapter_files import safetensors_bytes
from fake_engine import FakeEngine
from tiny_models import tiny_tokenizer

from weft.adapters.registry import Registry
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext
from weft.server.app import create_app
from weft.server.records import Records
from weft.server.services import Services
from weft.server.settings import Settings
from weft.server.tenants import DEFAULT_TENANT
from weft.server.text import Text

BASE = "tiny"
REPLY = "Hello, 日本 🙂 wörld!"
MESSAGES = [{"role": "user", "content": "hi there"}]


@cache
def tiny_text() -> Text:
    return Text(tiny_tokenizer())


@dataclass
class Api:
    """An app under test, and what stands behind it."""

    services: Services
    engine: FakeEngine
    registry: Registry
    root: Path

    def __post_init__(self) -> None:
        self.app = create_app(self.services)

    def client(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://weft", headers=headers)

    async def add(self, name: str, *, tenant: TenantContext = DEFAULT_TENANT, seed: int = 0) -> str:
        """Installs an adapter; returns its digest. Other seeds are other contents."""
        installed = await self.services.library.install(tenant, name, self.folder(seed))
        return installed.report.digest

    def folder(self, seed: int = 0) -> Path:
        """A folder that holds an adapter, below the one that clients may load from."""
        config, weights = adapter_parts(seed)
        folder = self.root / f"adapter-{seed}"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_bytes(config)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        return folder

    def check(self) -> None:
        """Nothing is held by a request that is over."""
        assert not self.engine.live
        assert self.services.admission.inside == 0
        assert self.registry.check() == ()
        tenants = (DEFAULT_TENANT, *self.services.tenants.contexts)
        assert not any(a.leases for tenant in tenants for a in self.registry.list(tenant))


def adapter_parts(seed: int = 0) -> tuple[bytes, bytes]:
    """The bytes of an adapter's two files."""
    config = {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], "seed": seed}
    header = {"lora_A": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return json.dumps(config).encode(), safetensors_bytes(header, bytes(4))


@contextmanager
def api(folder: Path, engine: FakeEngine | None = None, **settings: Any) -> Iterator[Api]:
    """An API whose state is below `folder`, checked at the end; settings: fields of Settings."""
    root = folder / "open"
    root.mkdir(exist_ok=True)
    registry = Registry(folder / "registry.sqlite", Store(folder / "versions"))
    engine = engine or FakeEngine(reply=tuple(tiny_text().encode(REPLY)))
    given = {"model": f"/models/{BASE}", "adapter_root": (root,), **settings}
    records = Records.open(folder, Settings(**given))
    services = Services.assemble(Settings(**given), engine, registry, tiny_text(), records)
    made = Api(services, engine, registry, root)
    try:
        yield made
        made.check()
    finally:
        records.close()
        registry.close()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The app on a socket of its own, in a thread; yields its URL."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def events(text: str) -> list[Any]:
    """The data of each server-sent event; "[DONE]" stays text."""
    lines = text.split("\n\n")
    assert lines.pop() == ""
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]
