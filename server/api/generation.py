"""Runs one HTTP request's prompts on the engine and merges what comes back. Knows no formats."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from msgspec import structs

from weft.adapters.blend import Blend
from weft.adapters.tenancy import TenantContext
from weft.server.api.choice import Choice, Delta
from weft.server.engine.client import EngineClient
from weft.server.engine.messages import Generate, Sampling, TokenLogprobs, Tokens
from weft.server.errors import ApiError, ErrorCode
from weft.server.text import Text
from weft.server.usage.meter import Bill, Tab

_Events = AsyncGenerator[Tokens, None]
_Late = Callable[[int, Tokens], None]


@dataclass(frozen=True)
class Work:
    """What a request asks of the engine: `n` choices for each prompt (token ids).

    silent: the prompts are computed, and no token is answered (max_tokens of 0)
    """

    prompts: Sequence[tuple[int, ...]]
    sampling: Sampling
    n: int = 1
    stops: Sequence[str] = ()
    silent: bool = False

    @property
    def sequences(self) -> int:
        """How many choices there will be."""
        return len(self.prompts) * self.n

    @property
    def cost(self) -> int:
        """The most tokens that it may come to: each prompt once, each answer as long as it may."""
        return sum(map(len, self.prompts)) + self.sequences * self.sampling.max_tokens


@dataclass
class Usage:
    """Tokens so far. A prompt counts once, however many choices continue it."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached: dict[int, int] = field(default_factory=dict)

    @property
    def total_tokens(self) -> int:
        """Of prompts and answers."""
        return self.prompt_tokens + self.completion_tokens

    def fields(self) -> dict[str, object]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }


def answer_length(prompt: int, asked: int | None, limit: int, param: str) -> int:
    """How many tokens an answer may have: `asked`, or by default what the context leaves.

    prompt, limit: tokens of the prompt, and of the whole context
    Raises ApiError where they do not fit, naming `param` as too long.
    """
    length = limit - prompt if asked is None else asked
    if prompt + max(length, 1) > limit:
        values = {"limit": limit, "prompt": prompt, "answer": max(length, 1)}
        raise ApiError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, param=param, values=values)
    return length


class Generation:
    """The choices of one request, numbered by prompt and then by child."""

    def __init__(
        self, engine: EngineClient, text: Text, work: Work, request_id: str, tab: Tab
    ) -> None:
        self.work = work
        self.usage = Usage(sum(len(prompt) for prompt in work.prompts))
        self.queue_seconds = 0.0
        """The longest that a sequence waited in the engine until it was computed first."""
        self.prompt_logprobs: dict[int, Sequence[TokenLogprobs | None]] = {}
        self._engine = engine
        self._request_id = request_id
        self._bills = [Bill(tab, len(prompt)) for prompt in work.prompts]
        self._choices = [
            Choice(index, text.detokenizer(), work.stops, work.sampling.min_tokens)
            for index in range(work.sequences)
        ]

    async def deltas(self, tenant: TenantContext, blend: Blend) -> AsyncGenerator[Delta, None]:
        """All choices' deltas as they come; leaving early aborts what still runs.

        blend: what computes them   Raises ApiError, EngineUnavailable.
        """
        requests = [
            Generate(
                id=f"{self._request_id}-{number}",
                tenant=tenant,
                prompt=prompt,
                sampling=self.work.sampling,
                blend=blend,
                n=self.work.n,
            )
            for number, prompt in enumerate(self.work.prompts)
        ]
        streams = [
            self._engine.generate(request, partial(self._late, number))
            for number, request in enumerate(requests)
        ]
        async with aclosing(_merged(streams, self._late)) as events:
            async for number, event in events:
                delta = self._push(number, event)
                if delta is None:
                    continue
                yield delta
                if all(choice.finish for choice in self._choices):
                    return
                if delta.finish is not None and event.finish is None:
                    await self._engine.abort(event.id, event.index)

    def _push(self, number: int, event: Tokens) -> Delta | None:
        """The event's delta; None for what a choice that has ended still receives."""
        choice = self._choices[number * self.work.n + event.index]
        if choice.finish is not None:
            return None
        bill = self._bills[number]
        bill.reach(event)
        if event.finish == "error":
            raise ApiError(ErrorCode.named(event.error))
        if event.finish == "abort":
            raise ApiError(ErrorCode.ENGINE_UNAVAILABLE)
        if event.prompt_logprobs is not None:
            self.prompt_logprobs[number] = event.prompt_logprobs
        if self.work.silent:
            finish = "length" if event.finish else None
            event = structs.replace(event, tokens=(), logprobs=(), finish=finish)
        self.usage.cached[number] = max(self.usage.cached.get(number, 0), event.cached_tokens)
        self.queue_seconds = max(self.queue_seconds, event.queue_seconds or 0.0)
        before = choice.completion_tokens
        delta = choice.push(event)
        completion = choice.completion_tokens - before
        self.usage.completion_tokens += completion
        bill.complete(completion)
        return delta

    def _late(self, number: int, event: Tokens) -> None:
        """What was still computed when nobody read any more is charged, up to a choice's end."""
        choice = self._choices[number * self.work.n + event.index]
        if choice.finish is None:
            charge = self._bills[number].reach if self.work.silent else self._bills[number].add
            charge(event)


async def _merged(
    streams: Sequence[_Events], late: _Late
) -> AsyncGenerator[tuple[int, Tokens], None]:
    """The streams' events as they come, each with its stream's number; closes all streams.

    late: called with those that nobody takes any more
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Tokens | Exception | None]] = asyncio.Queue(len(streams))
    tasks = [
        asyncio.create_task(_forward(number, stream, queue, late))
        for number, stream in enumerate(streams)
    ]
    try:
        running = len(tasks)
        while running:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while not queue.empty():
            number, item = queue.get_nowait()
            if isinstance(item, Tokens):
                late(number, item)


async def _forward(
    number: int,
    stream: _Events,
    queue: "asyncio.Queue[tuple[int, Tokens | Exception | None]]",
    late: _Late,
) -> None:
    try:
        async with aclosing(stream) as events:
            async for event in events:
                try:
                    await queue.put((number, event))
                except asyncio.CancelledError:
                    late(number, event)
                    raise
    except Exception as error:  # noqa: BLE001 - raised again by the reader of the queue
        await queue.put((number, error))
    else:
        await queue.put((number, None))
