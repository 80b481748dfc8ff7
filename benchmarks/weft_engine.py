"""The weft side of a benchmark: a real engine process, driven through its client."""

import asyncio
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from weft.adapters.blend import alone
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext
from weft.server.engine.client import EngineClient
from weft.server.engine.messages import EngineConfig, Generate, LoadReport, Sampling

TENANT = TenantContext("benchmark")


@dataclass(frozen=True)
class Timing:
    """One request's arrival times of tokens, in seconds after the run's start."""

    arrivals: tuple[float, ...]

    @property
    def first_token(self) -> float:
        """Seconds until the first token."""
        return self.arrivals[0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals)]


@dataclass(frozen=True)
class Run:
    """All requests of one run and how long it took, in seconds."""

    seconds: float
    timings: tuple[Timing, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all requests over the whole run."""
        return sum(len(timing.arrivals) for timing in self.timings) / self.seconds


@dataclass(frozen=True)
class Request:
    """A prompt, and the index of the adapter that answers it; None for the base."""

    prompt: tuple[int, ...]
    adapter: int | None


class WeftEngine:
    """One engine with adapters stored and loaded; use as an async context."""

    def __init__(self, base: Path, adapters: list[Path], store: Path, **config: object) -> None:
        self._adapters = adapters
        self._store = Store(store)
        settings = {"model": str(base), "store": str(store), "prefix_caching": False, **config}
        self._client = EngineClient(EngineConfig(**settings))  # type: ignore[arg-type]
        self._digests: list[str] = []
        self.reports: list[LoadReport] = []
        self._names = itertools.count()

    async def __aenter__(self) -> "WeftEngine":
        await self._client.start()
        for folder in self._adapters:
            digest = self._store.put(folder)
            self.reports.append(await self._client.load(digest))
            self._digests.append(digest)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    @property
    def description(self) -> dict[str, object]:
        """Device and dtype that the engine chose."""
        return {"device": self._client.info.device, "dtype": self._client.info.dtype}

    @property
    def weight_bytes(self) -> int:
        """Of the base's weights as they are stored."""
        return self._client.info.weight_bytes

    async def answers(self, requests: list[Request], max_tokens: int) -> list[tuple[int, ...]]:
        """Sends all at once; returns the greedy tokens of each, up to the end of its answer."""
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
        return await asyncio.gather(*(self._answer(request, sampling) for request in requests))

    async def _answer(self, request: Request, sampling: Sampling) -> tuple[int, ...]:
        tokens: list[int] = []
        async for event in self._client.generate(self._generate(request, sampling)):
            tokens += event.tokens
            if event.error:
                raise RuntimeError(event.error)
        return tuple(tokens)

    def _generate(self, request: Request, sampling: Sampling) -> Generate:
        adapter = request.adapter
        return Generate(
            id=f"r{next(self._names)}",
            tenant=TENANT,
            prompt=request.prompt,
            blend=alone(None if adapter is None else self._digests[adapter]),
            sampling=sampling,
        )

    async def run(self, jobs: list[tuple[tuple[int, ...], int | None]], new_tokens: int) -> Run:
        """Sends all (prompt, adapter index) at once; each answers with `new_tokens` tokens."""
        start = time.perf_counter()
        timings = await asyncio.gather(
            *(self._one(prompt, adapter, new_tokens, start) for prompt, adapter in jobs)
        )
        return Run(time.perf_counter() - start, tuple(timings))

    async def _one(
        self, prompt: tuple[int, ...], adapter: int | None, new_tokens: int, start: float
    ) -> Timing:
        sampling = Sampling(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        request = self._generate(Request(prompt, adapter), sampling)
        arrivals: list[float] = []
        async for event in self._client.generate(request):
            arrivals += [time.perf_counter() - start] * len(event.tokens)
            if event.error:
                raise RuntimeError(event.error)
        return Timing(tuple(arrivals))
