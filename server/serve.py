"""The server put together: socket, base, state, engine, app; and the order of start and stop."""

import asyncio
import contextlib
import errno
import itertools
import logging
import signal
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import uvicorn
import uvloop
from fastapi import FastAPI

from weft.adapters.checkpoint import adapter_folder
from weft.adapters.errors import AdapterInvalid, StateInUse
from weft.adapters.identity import identify_apart
from weft.adapters.registry import Registry
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext
from weft.server import garbage
from weft.server.app import create_app
from weft.server.audit.journal import JournalInvalid
from weft.server.base_folder import BaseNotFound, default_state_dir, find_base
from weft.server.detokenizer import TokenizerUnusable
from weft.server.engine import base_digest
from weft.server.engine.client import (
    EngineClient,
    EngineError,
    EngineStartError,
    EngineUnavailable,
)
from weft.server.engine.launch import Launched
from weft.server.engine.messages import EngineInfo
from weft.server.engine_settings import engine_config
from weft.server.errors import ApiError
from weft.server.exposure import check_exposure
from weft.server.heads import LimitedHeads
from weft.server.library import Installed
from weft.server.records import Records
from weft.server.services import Services
from weft.server.settings import AdapterSource, Settings
from weft.server.tenants_file import TenantsInvalid
from weft.server.tenants_watch import check_pages, follow
from weft.server.text import Text

log = logging.getLogger("weft.tenants")
BACKLOG = 2048
GRACE_SECONDS = 10
PRUNING_SECONDS = 600
INSTALLS_AT_A_TIME = 4
T = TypeVar("T")


class StartError(Exception):
    """The server cannot start as it was told; the message names the flag at fault."""


class View(Protocol):
    """Who watches the start."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of `stage` are behind us."""

    def serving(self, model: str, info: EngineInfo, adapters: list[str], url: str) -> None:
        """Requests are answered now."""

    def stop(self) -> None:
        """No more progress is made."""

    def draining(self) -> None:
        """No request is taken any more; the last ones are being answered."""


@dataclass(frozen=True)
class _Launch:
    """All that a server is made of before its engine runs."""

    settings: Settings
    view: View
    engine: Callable[[], Launched]
    examples: Path | None
    sources: list[AdapterSource]
    sock: socket.socket
    base: Path
    store: Store
    registry: Registry
    records: Records


def serve(
    settings: Settings,
    view: View,
    engine: Callable[[], Launched],
    examples: Path | None = None,
) -> None:
    """Serves until it is interrupted; `engine` launches one, `examples` as `create_app` takes it.

    What can be told without the engine is told first: a model is loaded for minutes. Raises
    StartError and SettingsError.
    """
    check_exposure(settings)
    sources = adapter_sources(settings)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(listen(settings.host, settings.port))
        base = _named("MODEL", lambda: find_base(settings.model or ""), BaseNotFound)
        state = settings.state_dir or default_state_dir(base)
        store = Store(state / "versions", identify=identify_apart)
        registry = _open_registry(state, store)
        stack.callback(registry.close)
        records = _open_records(state, settings)
        stack.callback(records.close)
        launch = _Launch(
            settings, view, engine, examples, sources, sock, base, store, registry, records
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(launch))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that nobody else gets the port; raises StartError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind)
    except OSError as error:
        raise StartError(f"--host {host}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"--port {port} is taken by another program; choose one, or 0 for a free one"
        elif error.errno == errno.EACCES:
            reason = f"--port {port} is not for this user; choose one above 1023"
        else:
            reason = f"--host {host}: {error.strerror}"
        raise StartError(reason) from None
    return sock


def url_of(sock: socket.socket) -> str:
    """Where a person on this machine reaches a listening socket."""
    host, port = sock.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host)
    return f"http://{local or (f'[{host}]' if ':' in host else host)}:{port}"


def adapter_sources(settings: Settings) -> list[AdapterSource]:
    """The adapters to load at start, each with a folder that holds one; raises StartError."""
    sources = list(settings.adapter)
    folder = settings.adapter_dir
    if folder is not None:
        if not folder.is_dir():
            raise StartError(f"--adapter-dir {folder}: is not a folder")
        inner = sorted(path for path in folder.iterdir() if path.is_dir())
        sources += [AdapterSource(p.name, p) for p in inner if not p.name.startswith(".")]
    for source in sources:
        _named(_flag(source), partial(adapter_folder, source.path), AdapterInvalid)
    twice = [name for name, count in Counter(name for name, _ in sources).items() if count > 1]
    if twice:
        raise StartError(f"--adapter: the name {twice[0]} is given twice")
    return sources


class _Server(uvicorn.Server):
    """uvicorn, but a first signal drains and a second one stops."""

    def __init__(self, app: FastAPI, services: Services, view: View) -> None:
        config = uvicorn.Config(
            app,
            http=LimitedHeads,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self._view = view
        self._admission = services.admission
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupted)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _interrupted(self) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self._admission.drain()
        self._draining = asyncio.create_task(self._exit_when_empty())
        self._view.draining()

    async def _exit_when_empty(self) -> None:
        await self._admission.empty()
        self.should_exit = True


async def _serve(launch: _Launch) -> None:
    """Runs engine and server; tokenizer and base's digest are read while the engine starts."""
    view = launch.view
    engine = EngineClient(
        engine_config(launch.settings, launch.base, launch.store),
        launch=launch.engine,
        on_progress=lambda seen: view.progress(seen.stage, seen.done, seen.total),
        longest_silence=launch.settings.engine_timeout,
    )
    ready = asyncio.create_task(engine.start())
    try:
        text = await asyncio.to_thread(_text, launch.base)
        base_digest.begin(launch.base, launch.store.root)
        services = _services(launch, engine, text)
        services.admission.starting = True
        server = _Server(create_app(services, launch.examples), services, view)
        await _until_ended(server, launch.sock, _start(launch, services, ready))
    finally:
        view.stop()
        await engine.close()
        await asyncio.gather(ready, return_exceptions=True)


def _text(base: Path) -> Text:
    return _named("MODEL", lambda: Text.load(str(base)), TokenizerUnusable)


def _services(launch: _Launch, engine: EngineClient, text: Text) -> Services:
    def assemble() -> Services:
        return Services.assemble(launch.settings, engine, launch.registry, text, launch.records)

    return _named("--tenants", assemble, TenantsInvalid)


async def _until_ended(
    server: _Server, sock: socket.socket, start: Coroutine[Any, Any, None]
) -> None:
    """Serves from the beginning, and ends with the start if that fails."""
    serving, starting = map(asyncio.create_task, (server.serve(sockets=[sock]), start))
    try:
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        await serving
    finally:
        starting.cancel()
        server.should_exit = server.force_exit = True
        await asyncio.gather(serving, starting, return_exceptions=True)


async def _start(launch: _Launch, services: Services, ready: asyncio.Task[EngineInfo]) -> None:
    """Finishes the start, and then does from time to time what no request asks for."""
    await _finish_start(launch, services, ready)
    await asyncio.gather(
        _prune(services),
        follow(services, partial(_welcome, launch, services)),
        services.usage.follow(lambda: services.engine.stats, services.registry.names),
    )


async def _prune(services: Services) -> None:
    while True:
        await services.library.prune_all()
        await asyncio.sleep(PRUNING_SECONDS)


async def _welcome(launch: _Launch, services: Services, tenant: TenantContext) -> None:
    """Gives a new tenant what all have from the beginning."""
    for source in launch.sources:
        try:
            await _install(services, tenant, source)
        except StartError as error:
            log.error("tenant %s does not get an adapter: %s", tenant.id, error)


async def _finish_start(
    launch: _Launch, services: Services, ready: asyncio.Task[EngineInfo]
) -> None:
    """Waits for the engine and loads what is to be there from the beginning; raises StartError."""
    try:
        info = await ready
    except EngineStartError as error:
        raise StartError(str(error)) from None
    _named("--tenants", lambda: check_pages(services.tenants.policy, info.pages), TenantsInvalid)
    services.engine.reserve(services.tenants.contexts)
    await services.library.restore_pins()
    await _install_all(launch, services)
    services.admission.starting = False
    garbage.spare_what_is_there()
    names = [source.name for source in launch.sources]
    launch.view.serving(services.base_name, info, names, url_of(launch.sock))


async def _install_all(launch: _Launch, services: Services) -> None:
    """Installs the adapters of the command line, some at a time; raises StartError."""
    left, total = iter(launch.sources), len(launch.sources)
    done = itertools.count()

    async def install_some() -> None:
        for source in left:
            launch.view.progress("adapters", next(done), total)
            for tenant in services.tenants.contexts:
                await _install(services, tenant, source)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(INSTALLS_AT_A_TIME):
                group.create_task(install_some())
    except* StartError as failed:
        raise failed.exceptions[0] from None


async def _install(services: Services, tenant: TenantContext, source: AdapterSource) -> None:
    try:
        installed = await services.library.install(tenant, source.name, source.path)
    except ApiError as error:
        raise StartError(f"{_flag(source)}: {error.body('')['error']['message']}") from None
    except (AdapterInvalid, EngineError, EngineUnavailable, OSError) as error:
        raise StartError(f"{_flag(source)}: {error}") from None
    _tell_load(services, tenant, installed)


def _tell_load(services: Services, owner: TenantContext, installed: Installed) -> None:
    version, before = installed.version, installed.before
    if version is not None and (before is None or before.digest != version.digest):
        event = "adapter.replace" if before else "adapter.load"
        facts = {"name": version.name, "version": version.version, "digest": version.digest}
        services.audit.tell(event, {"tenant": owner.id, **facts})


def _flag(source: AdapterSource) -> str:
    return f"--adapter {source.name}={source.path}"


def _open_registry(state: Path, store: Store) -> Registry:
    try:
        return Registry(state / "registry.sqlite", store)
    except (StateInUse, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"--state-dir {state}: {reason}") from None


def _open_records(state: Path, settings: Settings) -> Records:
    try:
        return Records.open(state, settings)
    except JournalInvalid as error:
        path = settings.audit_log or state / "audit.jsonl"
        raise StartError(f"--audit-log {path}: {error}") from None
    except (StateInUse, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"{getattr(error, 'filename', None) or state}: {reason}") from None


def _named(flag: str, make: Callable[[], T], *expected: type[Exception]) -> T:
    """What `make` returns; its expected failures become StartErrors that name `flag`."""
    try:
        return make()
    except expected as error:
        raise StartError(f"{flag}: {error}") from None
