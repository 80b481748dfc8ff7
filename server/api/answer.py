"""Answers a generation request, whole or as a stream of server-sent events.

Everything that a request holds is taken and given back in one coroutine here, which also ends when
the client goes away. Formats are the writers' business.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from weft.server.api.attention import while_connected
from weft.server.api.choice import Delta, WholeChoice
from weft.server.api.fields import GenerationFields
from weft.server.api.generation import Generation, Work
from weft.server.deadline import seconds_allowed, within
from weft.server.errors import translate
from weft.server.metrics import RequestTimer
from weft.server.router import Target
from weft.server.services import Services, services_of

log = logging.getLogger("weft.api")
SLOW_READER_SECONDS = 30.0
Json = dict[str, Any]


class Writer(ABC):
    """How one route family writes one answer."""

    def __init__(self, target: Target, identity: str) -> None:
        self._identity = identity
        self._created = int(time.time())
        self._target = target

    @abstractmethod
    def whole(self, choices: Sequence[WholeChoice], generation: Generation) -> Json:
        """The whole answer, without its usage."""

    @abstractmethod
    def chunks(self, delta: Delta, generation: Generation) -> Iterator[Json]:
        """The stream's chunks for a delta; none where there is nothing to say yet."""

    @abstractmethod
    def chunk(self, choices: list[Json]) -> Json:
        """A chunk of the stream with these choices."""

    def envelope(self, kind: str, choices: list[Json]) -> Json:
        """What every answer and chunk has; kind: its `object` field."""
        return {
            "id": self._identity,
            "object": kind,
            "created": self._created,
            "model": self._target.model,
            "system_fingerprint": self._target.fingerprint,
            "choices": choices,
        }


class Answer(Response, ABC):
    """The ASGI response of one generation request."""

    def __init__(self, request: Request, body: GenerationFields) -> None:
        super().__init__()
        self.services: Services = services_of(request)
        self.request_id: str = request.state.request_id
        self._request = request
        self._body = body
        self._target_headers: list[tuple[bytes, bytes]] = []
        self._started = False

    @property
    @abstractmethod
    def sequences(self) -> int:
        """How many choices the answer will have."""

    @abstractmethod
    async def prepare(self, target: Target) -> tuple[Work, Writer]:
        """Tokenises and checks what was asked; raises ApiError."""

    def room(self, target: Target) -> int:
        """How many tokens prompt and answer may have together."""
        return self.services.context(self._request.state.tenant) - target.virtual_tokens

    def afforded(self, prompt: int, length: int) -> int:
        """The longest answer, up to `length`, for which the tenant's quota of tokens could do."""
        quotas = self.services.tenants.policy.of(self._request.state.tenant).quotas
        if quotas.tokens_per_minute is None:
            return length
        return min(length, max((quotas.tokens_per_minute - prompt) // self.sequences, 1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        longest = self.services.settings.request_timeout
        try:
            async with within(seconds_allowed(self._request.headers, longest)):
                await while_connected(receive, self._answer(send))
        except ClientDisconnect:
            log.info("request %s: the client went away", self.request_id)
        except Exception as error:
            if not (self._started and self._body.stream):
                raise
            failure = translate(error)
            log.warning("request %s: the stream ends with %s", self.request_id, failure)
            last = failure.body_bytes(self.request_id)
            del failure  # whose traceback holds this frame
            await self._event(send, last, last=True)

    async def _answer(self, send: Send) -> None:
        services, request = self.services, self._request
        tenant = request.state.tenant
        with (
            services.admission.admit(tenant, self.sequences) as visit,
            services.router.target(
                tenant, request.headers, self._body.model, self._body.user or self.request_id
            ) as target,
        ):
            timer = RequestTimer(services.metrics, target.versions)
            work, writer = await self.prepare(target)
            tab = services.usage.meter.tab(tenant, target.used_by(tenant))
            generation = Generation(services.engine, services.text, work, self.request_id, tab)
            self._target_headers = [(name, value.encode()) for name, value in target.headers]
            try:
                async with (
                    visit.turn(work.cost),
                    aclosing(generation.deltas(tenant, target.blend)) as deltas,
                ):
                    timer.begin()
                    timed = _timed(deltas, timer)
                    if self._body.stream:
                        await self._send_stream(send, timed, writer, generation)
                    else:
                        await self._send_whole(send, timed, writer, generation)
            finally:
                visit.used = generation.usage.total_tokens
                usage, queued = generation.usage, generation.queue_seconds
                timer.end(usage.prompt_tokens, usage.completion_tokens, queued)

    async def _send_whole(
        self, send: Send, deltas: AsyncIterator[Delta], writer: Writer, generation: Generation
    ) -> None:
        choices = [WholeChoice(index) for index in range(generation.work.sequences)]
        async for delta in deltas:
            choices[delta.index].add(delta)
        usage = {"usage": generation.usage.fields()}
        body = orjson.dumps(writer.whole(choices, generation) | usage)
        headers = [
            *self._target_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        self._started = True
        await _send(send, {"type": "http.response.start", "status": 200, "headers": headers})
        await _send(send, {"type": "http.response.body", "body": body})

    async def _send_stream(
        self, send: Send, deltas: AsyncIterator[Delta], writer: Writer, generation: Generation
    ) -> None:
        options = self._body.stream_options
        async for delta in deltas:
            for chunk in writer.chunks(delta, generation):
                if options.continuous_usage_stats:
                    chunk["usage"] = generation.usage.fields()
                elif options.include_usage:
                    chunk["usage"] = None
                await self._event(send, orjson.dumps(chunk))
        if options.include_usage:
            chunk = writer.chunk([]) | {"usage": generation.usage.fields()}
            await self._event(send, orjson.dumps(chunk))
        await self._event(send, b"[DONE]", last=True)

    async def _event(self, send: Send, data: bytes, *, last: bool = False) -> None:
        """One server-sent event; before the first one, the headers."""
        if not self._started:
            self._started = True
            headers = [
                *self._target_headers,
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            ]
            await _send(send, {"type": "http.response.start", "status": 200, "headers": headers})
        event = b"data: " + data + b"\n\n"
        await _send(send, {"type": "http.response.body", "body": event, "more_body": not last})


async def _timed(deltas: AsyncIterator[Delta], timer: RequestTimer) -> AsyncIterator[Delta]:
    async for delta in deltas:
        if delta.tokens or delta.finish:
            timer.token(delta.index)
        yield delta


async def _send(send: Send, message: Message) -> None:
    """Sends, or gives up on a client that does not read; what is unsent stays bounded that way."""
    try:
        async with asyncio.timeout(SLOW_READER_SECONDS):
            await send(message)
    except TimeoutError:
        raise ClientDisconnect from None
