"""A look-alike of EngineClient that answers from a script, in the API's own process."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from weft.adapters.blend import text_of
from weft.adapters.tenancy import NOBODY, TenantContext
from weft.server.engine.client import EngineUnavailable
from weft.server.engine.messages import (
    AdapterState,
    EngineInfo,
    Generate,
    LoadReport,
    Stats,
    TokenLogprobs,
    Tokens,
)

EOS = 2
BASE_DIGEST = "ba5e" * 16


async def at_once() -> None:
    """A pace that lets others run, and nothing more."""
    await asyncio.sleep(0)


@dataclass
class FakeEngine:
    """Answers every prompt with `reply`, or with what `replies` says for its adapter, then EOS.

    losses: of each prompt token, by adapter, "" being the base   pace: awaited before each event
    failure: raised by every call   computed_when_left: prompt tokens that a child which was left
    says were computed   break_after: events of a request after which `EngineUnavailable` is
    raised, or an event with the code `error` comes
    virtual_tokens, delta_bytes: of each adapter that is loaded
    """

    reply: Sequence[int] = ()
    replies: dict[str, Sequence[int]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    pace: Callable[[], Awaitable[None]] = at_once
    failure: Exception | None = None
    load_failures: dict[str, Exception] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    break_after: int | None = None
    error: str | None = None
    tokens_per_event: int = 1
    max_model_len: int = 256
    virtual_tokens: int = 0
    delta_bytes: int = 0
    ready: bool = True
    stats: Stats | None = None
    evictions: dict[str, int] = field(default_factory=dict)
    queue_seconds: float | None = 0.5
    computed_when_left: int = 0
    requests: list[Generate] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    aborted: list[tuple[str, int | None]] = field(default_factory=list)
    paces: int = 0
    loaded: set[str] = field(default_factory=set)
    pins: dict[str, bool] = field(default_factory=dict)
    prefetched: list[str] = field(default_factory=list)
    reserved: tuple[TenantContext, ...] = ()
    _watching: list[tuple[Callable[[], bool], asyncio.Future[None]]] = field(default_factory=list)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something true of this engine's fields holds."""
        if not holds():
            future = asyncio.get_running_loop().create_future()
            self._watching.append((holds, future))
            await future

    @property
    def info(self) -> EngineInfo:
        if not self.ready:
            raise EngineUnavailable("the engine has not started yet")
        return EngineInfo(
            model_digest=BASE_DIGEST,
            device="cpu",
            dtype="float32",
            quantization="none",
            parameters=1,
            weight_bytes=4_000_000,
            vocab_size=512,
            eos_token_ids=(EOS,),
            max_model_len=self.max_model_len,
            page_size=16,
            pages=64,
            adapter_bytes=1 << 20,
            slots=4,
        )

    async def probe(self) -> bool:
        return self.ready

    async def generate(
        self, request: Generate, late: Callable[[Tokens], None] = lambda _: None
    ) -> AsyncGenerator[Tokens, None]:
        self._check()
        self.requests.append(request)
        self.live.add(request.id)
        open_children = set(range(request.n))
        try:
            async for event in self._events(request):
                if event.finish is not None:
                    open_children.discard(event.index)
                yield event
        finally:
            self.live.discard(request.id)
            for index in open_children:
                late(
                    Tokens(
                        id=request.id,
                        index=index,
                        finish="abort",
                        computed_tokens=self.computed_when_left,
                    )
                )

    async def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborted.append((request_id, index))

    async def load(self, digest: str, tenant: TenantContext = NOBODY) -> LoadReport:
        self._check()
        await self._wait_turn()
        if digest in self.load_failures:
            raise self.load_failures[digest]
        self.loaded.add(digest)
        report = LoadReport(
            digest=digest,
            method="LORA",
            rank=4,
            tensors=2,
            modules=1,
            bytes=4096,
            load_seconds=0.25,
            canary_difference=0.5,
            checks=("files",),
            virtual_tokens=self.virtual_tokens,
            delta_bytes=self.delta_bytes,
        )
        return structs.replace(report, **self.report)

    async def unload(self, digest: str) -> None:
        self._check()
        self.loaded.discard(digest)

    async def pin(self, digest: str, pinned: bool) -> None:
        self.pins[digest] = pinned
        self._check()

    def reserve(self, tenants: Iterable[TenantContext]) -> None:
        self.reserved = tuple(tenants)

    async def prefetch(self, digest: str, tenant: TenantContext = NOBODY) -> None:
        self._check()
        self.prefetched.append(digest)

    async def _wait_turn(self) -> None:
        self.paces += 1
        for holds, future in self._watching:
            if not future.done() and holds():
                future.set_result(None)
        await self.pace()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
        if not self.ready:
            raise EngineUnavailable("the engine is not running")

    async def _events(self, request: Generate) -> AsyncGenerator[Tokens, None]:
        lines = {index: self._line(request) for index in range(request.n)}
        sent = 0
        while lines:
            for index in list(lines):
                await self._wait_turn()
                if self.break_after is not None and sent >= self.break_after:
                    if self.error is None:
                        raise EngineUnavailable("the engine stopped while it answered")
                    yield Tokens(id=request.id, index=index, finish="error", error=self.error)
                    return
                if (request.id, index) in self.aborted:
                    del lines[index]
                    yield Tokens(id=request.id, index=index, finish="abort")
                    continue
                event = self._event(request, index, lines[index])
                sent += 1
                yield event
                if event.finish is not None:
                    del lines[index]

    def _line(self, request: Generate) -> list[int]:
        """All tokens that a child will get."""
        sampling = request.sampling
        line = [*self.replies.get(text_of(request.blend), self.reply), EOS]
        if sampling.ignore_eos:
            line += [EOS] * sampling.max_tokens
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (EOS,))}
        stop = next((i + 1 for i, token in enumerate(line) if token in ends), len(line))
        return line[: min(stop, sampling.max_tokens)]

    def _event(self, request: Generate, index: int, line: list[int]) -> Tokens:
        first = len(line) == len(self._line(request))
        tokens = tuple(line[: self.tokens_per_event])
        del line[: self.tokens_per_event]
        sampling = request.sampling
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (EOS,))}
        stopped = bool(tokens) and not line and tokens[-1] in ends
        prompt = None
        if first and (top := sampling.prompt_logprobs) is not None:
            loss = self.losses.get(text_of(request.blend), 0.5)
            prompt = (None, *(logprobs_of(token, top, loss) for token in request.prompt[1:]))
        top = sampling.logprobs
        return Tokens(
            id=request.id,
            index=index,
            tokens=tokens,
            logprobs=() if top is None else tuple(logprobs_of(token, top) for token in tokens),
            prompt_logprobs=prompt,
            queue_seconds=self.queue_seconds,
            cached_tokens=3 if len(request.prompt) > 3 else 0,
            finish=None if line else "stop" if stopped else "length",
            stop_token=tokens[-1] if stopped else None,
        )


def logprobs_of(token: int, top: int, loss: float = 0.5) -> TokenLogprobs:
    """What the fake engine says of a token's probability."""
    return TokenLogprobs(token, -loss, tuple((token + i, -loss - i) for i in range(top)))


def stats_of(tiers: Mapping[str, str], **changes: Any) -> Stats:
    """Statistics of an engine whose adapters, by digest, are in these tiers."""
    numbers = {field.name: 0 for field in structs.fields(Stats) if field.type is int}
    return Stats(
        **numbers | changes,
        load_seconds=0.0,
        broken_invariants=(),
        adapters=tuple(
            AdapterState(digest, tier, refs=1, bytes=4096, pinned=False)
            for digest, tier in tiers.items()
        ),
    )
