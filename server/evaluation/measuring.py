"""Runs examples on models through the engine, as requests like any other. Knows no statistics."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import product

from weft.adapters.blend import BASE, Blend, digest_of
from weft.adapters.tenancy import TenantContext
from weft.server.engine.client import EngineClient
from weft.server.engine.messages import Generate, Sampling, Tokens
from weft.server.errors import ApiError, ErrorCode, invalid
from weft.server.evaluation.encoded import Encoded
from weft.server.evaluation.outcome import Outcome, PatternInvalid, is_json, is_same, matches
from weft.server.text import Text
from weft.server.usage.counts import Used
from weft.server.usage.meter import Bill, Meter


@dataclass(frozen=True)
class Model:
    """What is measured: its name in the API, what computes it, and what usage is booked on."""

    name: str
    used: Used
    blend: Blend = BASE

    @property
    def digest(self) -> str | None:
        """What identifies it; None for the base."""
        return digest_of(self.blend) if self.blend else None


class Measuring:
    """Every example on every model, an example's models side by side so that batches are mixed.

    tenant: on whose behalf   slots: how many requests all evaluations have in the engine at a time
    pay: awaited with the tokens of each request before it   meter: counts what each one used
    done: called after each example of each model
    """

    def __init__(
        self,
        engine: EngineClient,
        text: Text,
        tenant: TenantContext,
        slots: asyncio.Semaphore,
        *,
        pay: Callable[[int], Awaitable[None]],
        meter: Meter,
        name: str,
        done: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._text = text
        self._tenant = tenant
        self._slots = slots
        self._pay = pay
        self._meter = meter
        self._name = name
        self._done = done
        self._requests = 0

    async def run(
        self, models: Sequence[Model], examples: Sequence[Encoded], workers: int
    ) -> dict[str, list[Outcome]]:
        """The outcomes of each model, in the order of the examples.

        Raises ApiError and EngineUnavailable; then, and where it is cancelled, nothing runs on.
        """
        found: dict[tuple[int, str], Outcome] = {}
        jobs = iter(list(product(range(len(examples)), models)))

        async def work(jobs: Iterator[tuple[int, Model]]) -> None:
            for index, model in jobs:
                async with self._slots:
                    found[index, model.name] = await self._outcome(model, index, examples[index])
                self._done()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work(jobs))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        indices = range(len(examples))
        return {model.name: [found[i, model.name] for i in indices] for model in models}

    async def _outcome(self, model: Model, index: int, encoded: Encoded) -> Outcome:
        loss = await self._loss(model, encoded)
        tokens = len(encoded.whole) - encoded.start
        example = encoded.example
        if not example.asks_for_answer:
            return Outcome(loss, tokens)
        answer = await self._answer(model, encoded)
        matched = None
        if example.regex is not None:
            try:
                matched = await asyncio.to_thread(matches, example.regex, answer)
            except PatternInvalid as slow:
                raise invalid(f"examples[{index}].regex", str(slow)) from None
        return Outcome(
            loss,
            tokens,
            exact_match=None if example.general else is_same(answer, example.completion),
            regex=matched,
            json=is_json(answer) if example.as_json else None,
        )

    async def _loss(self, model: Model, encoded: Encoded) -> float:
        """Of the completion's tokens, each given the right ones before it; in nats, summed."""
        sampling = Sampling(max_tokens=0, temperature=0.0, prompt_logprobs=0)
        loss = math.nan
        async with aclosing(self._events(model, encoded.whole, sampling)) as events:
            async for event in events:
                if event.prompt_logprobs is not None:
                    scored = event.prompt_logprobs[encoded.start :]
                    loss = -sum(found.logprob for found in scored if found is not None)
        if not math.isfinite(loss):
            raise ApiError(ErrorCode.INTERNAL_ERROR)
        return loss

    async def _answer(self, model: Model, encoded: Encoded) -> str:
        sampling = Sampling(max_tokens=encoded.answer, temperature=0.0)
        tokens: list[int] = []
        async with aclosing(self._events(model, encoded.prompt, sampling)) as events:
            async for event in events:
                tokens += event.tokens
        return self._text.decode(tokens)

    async def _events(
        self, model: Model, prompt: tuple[int, ...], sampling: Sampling
    ) -> AsyncGenerator[Tokens, None]:
        await self._pay(len(prompt) + sampling.max_tokens)
        self._requests += 1
        request = Generate(
            id=f"{self._name}-{self._requests}",
            tenant=self._tenant,
            prompt=prompt,
            sampling=sampling,
            blend=model.blend,
        )
        bill = Bill(self._meter.tab(self._tenant, model.used), len(prompt))
        async with aclosing(self._engine.generate(request, bill.add)) as events:
            async for event in events:
                bill.add(event)
                if event.finish == "error":
                    raise ApiError(ErrorCode.named(event.error))
                if event.finish == "abort":
                    raise ApiError(ErrorCode.ENGINE_UNAVAILABLE)
                yield event
