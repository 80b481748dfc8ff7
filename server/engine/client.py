"""The API process's view of the engine: async calls, streams of tokens, and a supervisor.

Knows nothing of models, tensors or HTTP. When the engine dies, every waiting call ends with
EngineUnavailable, and a new engine is started with growing pauses.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable

import msgspec

from weft.adapters.errors import AdapterInvalid
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.server.engine.connection import HEADER, MAX_FRAME, frame
from weft.server.engine.launch import Launched, launch_process
from weft.server.engine.messages import (
    START,
    Abort,
    Command,
    Done,
    EngineConfig,
    EngineInfo,
    Event,
    Failed,
    Generate,
    Load,
    Loaded,
    LoadReport,
    Pause,
    Pin,
    Prefetch,
    Progress,
    Reserve,
    Sampling,
    Stats,
    Stop,
    Tokens,
    Unload,
    decode_events,
)
from weft.server.engine.stream import Stream

log = logging.getLogger("weft.engine")
STALE_SECONDS = 4.0
LONGEST_PAUSE = 30.0
LONGEST_SILENCE = 120.0
WATCH_SECONDS = 2.0
_PROBE_TENANT = TenantContext("_probe")


class EngineUnavailable(Exception):
    """The engine is starting, restarting or closed; the call had no effect that lasts."""


class EngineStartError(Exception):
    """The engine could not start; the message says why and what to change."""


class EngineError(Exception):
    """A command failed with `code`, one of the error catalogue's."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class EngineClient:
    """Starts, supervises and talks to one engine. Use from one asyncio loop."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        launch: Callable[[], Launched] = launch_process,
        on_progress: Callable[[Progress], None] | None = None,
        longest_silence: float = LONGEST_SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """longest_silence: seconds without a sign of life after which an engine is ended"""
        self._config = config
        self._longest_silence = longest_silence
        self._clock = clock
        self._launch = launch
        self._on_progress = on_progress
        self._writer: asyncio.StreamWriter | None = None
        self._launched: Launched | None = None
        self._streams: dict[str, Stream] = {}
        self._left: dict[str, Stream] = {}
        self._calls: dict[str, asyncio.Future[LoadReport | None]] = {}
        self._pinned: set[str] = set()
        self._reserved: tuple[TenantContext, ...] = ()
        self._ids = itertools.count()
        self._info: EngineInfo | None = None
        self._started: asyncio.Future[EngineInfo] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = False
        self._up = False
        self._last_event = 0.0
        self._last_token = 0.0
        self.stats: Stats | None = None
        self.evictions: Counter[str] = Counter()
        """How often each version had to leave the device since this client started."""
        self.restarts = 0

    # ---- life

    async def start(self) -> EngineInfo:
        """Starts the engine and waits until it serves; raises EngineStartError."""
        self._started = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise())
        return await self._started

    async def close(self) -> None:
        """Stops the engine; calls still waiting end with EngineUnavailable."""
        self._closing = True
        if self._up:
            self._send(Stop())
        if self._launched is not None:
            if not self._up:
                self._launched.terminate()
            await asyncio.to_thread(self._launched.end)
        if self._supervisor is not None:
            await self._supervisor

    @property
    def info(self) -> EngineInfo:
        """What the engine serves; raises EngineUnavailable before the first start."""
        if self._info is None:
            raise EngineUnavailable("the engine has not started yet")
        return self._info

    @property
    def ready(self) -> bool:
        """Whether the engine is up and gave a sign of life within the last seconds."""
        return self._up and self._clock() - self._last_event < STALE_SECONDS

    @property
    def pid(self) -> int | None:
        """The engine's process id; None while it runs in a thread or not at all."""
        return self._launched.pid if self._launched else None

    async def probe(self) -> bool:
        """Whether a real token was decoded within the last seconds, decoding one if need be.

        Of an engine that hangs it is known less than 5 seconds after its last sign of life.
        """
        now = self._clock()
        if not self.ready:
            return False
        if now - self._last_token < STALE_SECONDS:
            return True
        sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
        request = Generate(
            id=self._next_id("probe"), tenant=_PROBE_TENANT, prompt=(0,), sampling=sampling
        )
        try:
            async with asyncio.timeout(STALE_SECONDS - (now - self._last_event)):
                return [event.finish async for event in self.generate(request)][-1:] == ["length"]
        except (TimeoutError, EngineUnavailable):
            return False

    # ---- calls

    async def generate(
        self, request: Generate, late: Callable[[Tokens], None] = lambda _: None
    ) -> AsyncGenerator[Tokens, None]:
        """Yields the request's events; leaving the iteration early aborts the request.

        late: called with the events that come after that, to the last one of each child
        Raises EngineUnavailable where the engine is down or dies on the way.
        """
        stream = self._streams[request.id] = Stream(set(range(request.n)), late)
        try:
            self._send(request)
            while stream.open_children:
                event = await stream.get()
                if stream.paused and stream.has_caught_up and self._up:
                    stream.paused = False
                    self._send(Pause(request.id, False))
                if event is None:
                    raise EngineUnavailable("the engine stopped while it answered")
                if event.finish is not None:
                    stream.open_children.discard(event.index)
                yield event
        finally:
            del self._streams[request.id]
            for unread in stream.take_unread():
                self._hear(unread, stream)
            if stream.open_children and self._up:
                self._left[request.id] = stream
                self._send(Abort(request.id))

    async def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one child of it; its stream still gets its last event."""
        if request_id in self._streams and self._up:
            self._send(Abort(request_id, index))

    async def load(self, digest: str, tenant: TenantContext = NOBODY) -> LoadReport:
        """Makes a stored version ready; raises AdapterInvalid, EngineError, EngineUnavailable.

        tenant: whose share of the places for loads it takes
        """
        report = await self._call(Load(self._next_id("load"), digest, tenant))
        if report is None:
            raise EngineError("internal_error", "the load was answered without a report")
        return report

    async def unload(self, digest: str) -> None:
        """Forgets a version once its last running request has ended."""
        self._pinned.discard(digest)
        self.evictions.pop(digest, None)
        await self._call(Unload(self._next_id("unload"), digest))

    async def pin(self, digest: str, pinned: bool) -> None:
        """Keeps a version on the device, or lets it go; survives a restart of the engine."""
        (self._pinned.add if pinned else self._pinned.discard)(digest)
        await self._call(Pin(self._next_id("pin"), digest, pinned))

    def reserve(self, tenants: Iterable[TenantContext]) -> None:
        """Gives each of these tenants its `kv_pages` for itself, now and after a restart."""
        self._reserved = tuple(tenants)
        if self._up:
            self._send(Reserve(self._reserved))

    async def prefetch(self, digest: str, tenant: TenantContext = NOBODY) -> None:
        """Brings a stored version to the device ahead of use; `tenant` as in `load`."""
        await self._call(Prefetch(self._next_id("prefetch"), digest, tenant))

    # ---- wire

    def _next_id(self, kind: str) -> str:
        return f"{kind}-{next(self._ids)}"

    def _send(self, command: Command) -> None:
        if not self._up or self._writer is None:
            raise EngineUnavailable("the engine is not running")
        self._writer.write(frame([command]))

    async def _call(self, command: Load | Unload | Pin | Prefetch) -> LoadReport | None:
        self._send(command)
        future: asyncio.Future[LoadReport | None] = asyncio.get_running_loop().create_future()
        self._calls[command.id] = future
        try:
            return await future
        except asyncio.CancelledError:
            if isinstance(command, Load) and self._up:
                self._send(Abort(command.id))
            raise
        finally:
            self._calls.pop(command.id, None)

    async def _supervise(self) -> None:
        pause = 0.5
        while True:
            failure = await self._serve_one()
            if self._started is not None and not self._started.done():
                self._started.set_exception(EngineStartError(failure or "the engine process died"))
                return
            if self._closing:
                return
            log.error("the engine stopped (%s); starting it again", failure or "process died")
            self.restarts += 1
            pause = 0.5 if self._clock() - self._last_event > LONGEST_PAUSE else pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _serve_one(self) -> str | None:
        """Runs one engine from launch to end; returns why it could not start, if it could not."""
        self._launched = launched = await asyncio.to_thread(self._launch)
        if self._closing:  # closed meanwhile, when there was nothing to end yet
            launched.sock.close()
            launched.terminate()
            await asyncio.to_thread(launched.end)
            return None
        reader, self._writer = await asyncio.open_connection(sock=launched.sock)
        watch = asyncio.create_task(self._end_if_silent(launched, self._writer))
        failure = None
        try:
            self._writer.write(frame([self._config]))
            while True:
                (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                if size > MAX_FRAME:
                    return f"a frame of {size} bytes"
                for event in decode_events(await reader.readexactly(size)):
                    if isinstance(event, Failed) and event.id == START:
                        failure = f"{event.where}: {event.reason}"
                    self._receive(event)
        except (asyncio.IncompleteReadError, ConnectionError):
            return failure
        except msgspec.DecodeError as error:
            return f"what it said was not understood: {error}"
        finally:
            watch.cancel()
            self._up = False
            self._fail_pending()
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
            await asyncio.to_thread(launched.end)

    async def _end_if_silent(self, launched: Launched, writer: asyncio.StreamWriter) -> None:
        """Ends an engine that hangs: what comes then is what comes when one dies.

        One look alone does not tell: what it said may lie unread where this process was held up.
        """
        suspected = None
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            heard = self._last_event
            silent = self._up and self._clock() - heard > self._longest_silence
            if silent and suspected == heard:
                log.error("the engine hangs: not a word for %.0f s", self._longest_silence)
                launched.kill()
                writer.transport.abort()
                return
            suspected = heard if silent else None

    def _receive(self, event: Event) -> None:
        self._last_event = self._clock()
        match event:
            case Tokens():
                self._last_token = self._last_event
                if stream := self._streams.get(event.id):
                    self._deliver(event, stream)
                elif stream := self._left.get(event.id):
                    self._hear(event, stream)
            case Stats():
                self.stats = event
                self.evictions.update(event.evicted)
            case Loaded():
                self._settle(event.id, event.report)
            case Done():
                self._settle(event.id, None)
            case Failed():
                self._settle(event.id, _error(event))
            case EngineInfo():
                self._on_up(event)
            case Progress():
                if self._on_progress:
                    self._on_progress(event)

    def _deliver(self, event: Tokens, stream: Stream) -> None:
        stream.put(event)
        if stream.is_behind and not stream.paused:
            stream.paused = True
            self._send(Pause(event.id, True))

    def _hear(self, event: Tokens, stream: Stream) -> None:
        """Passes on what comes after a stream was left."""
        if event.finish is not None:
            stream.open_children.discard(event.index)
        if not stream.open_children:
            self._left.pop(event.id, None)
        stream.late(event)

    def _on_up(self, info: EngineInfo) -> None:
        self._info, self._up = info, True
        if self._reserved:
            self._send(Reserve(self._reserved))
        for digest in self._pinned:
            self._send(Pin(self._next_id("pin"), digest, True))
        if self._started is not None and not self._started.done():
            self._started.set_result(info)

    def _settle(self, call_id: str, outcome: LoadReport | Exception | None) -> None:
        future = self._calls.get(call_id)
        if future is None or future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _fail_pending(self) -> None:
        self.stats = None
        self._left.clear()
        for stream in self._streams.values():
            stream.put(None)
        for call_id in list(self._calls):
            self._settle(call_id, EngineUnavailable("the engine stopped"))


def _error(failed: Failed) -> Exception:
    if failed.code == "adapter_invalid":
        return AdapterInvalid(failed.where, failed.reason)
    return EngineError(failed.code, failed.reason)
