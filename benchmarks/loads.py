"""Do loads go unnoticed, and does nobody wait for ever? Ratios of one run on one machine.

    python benchmarks/loads.py

beside   p99 of warm tenants' inter-token latency while versions are loaded, to that without loads
cold     first token of a version that is on disk only, to the load's own time and steps
third    the longest wait for a third version while two hot ones fill the pool
cycle    first token where the versions in use need twice the pool, to a pool that holds them all;
random   the same where clients draw their versions instead of asking for all in one order

Writes results/loads.json, or results/loads-MODEL-DTYPE.json of another base, and prints the table.
"""

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import machine
import torch
import typer
import workload
from rich.console import Console
from rich.table import Table

from weft.adapters.blend import alone
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext
from weft.server.engine.client import EngineClient
from weft.server.engine.messages import EngineConfig, Generate, Sampling

BASES = {"embedded": workload.embedded, "half-billion": workload.qwen_half_billion}
RANK = 16
PROMPT_TOKENS = 16
THREADS = 1
WARM = 8
LOADED = 24
console = Console(width=120)


@dataclass
class Server:
    """A running engine and the versions in its store."""

    client: EngineClient
    digests: Sequence[str]
    prompts: Sequence[tuple[int, ...]]
    names: "itertools.count[int]" = field(default_factory=itertools.count)

    async def tokens(self, adapter: int | None, count: int) -> list[float]:
        """Asks for `count` tokens; returns when each came, in seconds after the question."""
        number = next(self.names)
        request = Generate(
            id=f"r{number}",
            tenant=TenantContext(f"tenant-{adapter}"),
            prompt=self.prompts[number % len(self.prompts)],
            blend=alone(None if adapter is None else self.digests[adapter]),
            sampling=Sampling(max_tokens=count, temperature=0.0, ignore_eos=True),
        )
        asked = time.perf_counter()
        arrivals: list[float] = []
        async for event in self.client.generate(request):
            arrivals += [time.perf_counter() - asked] * len(event.tokens)
            if event.error:
                raise RuntimeError(event.error)
        return arrivals

    async def load_seconds(self) -> float:
        """Of all loads so far, by the engine's next statistics."""
        before = self.client.stats
        while self.client.stats is before or self.client.stats is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return self.client.stats.load_seconds


@asynccontextmanager
async def serving(
    base: workload.Base, adapters: list[Path], pool: int, core: int | None, host: int | None = 0
) -> AsyncIterator[Server]:
    """An engine whose pool holds so many of the adapters; host: bytes of its host tier."""
    size = workload.adapter_bytes(base, RANK, bytes_each=4)  # the arena of a CPU is float32
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        digests = [store.put(adapter) for adapter in adapters]
        client = EngineClient(
            EngineConfig(
                model=str(base.folder),
                store=folder,
                prefix_caching=False,
                max_num_seqs=32,
                threads=THREADS,
                kv_cache_memory=256 << 20,
                adapter_memory=pool * size,
                adapter_host_memory=host,
            )
        )
        await client.start()
        try:
            if core is not None:
                _pin(client.pid, core)
            yield Server(client, digests, workload.prompts(base, 64, PROMPT_TOKENS))
        finally:
            await client.close()


async def beside(server: Server, loads_per_minute: int, window: float, turns: int) -> Any:
    """Windows without and with loads, in turns; all of `WARM` streams go on through them."""
    gaps: dict[bool, list[float]] = {False: [], True: []}
    busy, over = False, False

    async def stream(adapter: int) -> None:
        while not over:
            number = next(server.names)
            request = Generate(
                id=f"w{number}",
                tenant=TenantContext(f"tenant-{adapter}"),
                prompt=server.prompts[number % len(server.prompts)],
                blend=alone(server.digests[adapter % 4]),
                sampling=Sampling(max_tokens=200, temperature=0.0, ignore_eos=True),
            )
            last: float | None = None
            async for event in server.client.generate(request):
                now = time.perf_counter()
                if last is not None and event.tokens:
                    gaps[busy].append(now - last)
                last = now
                if over:
                    break

    for adapter, digest in enumerate(server.digests):
        if adapter < 4:
            await server.client.load(digest)
        else:
            await server.client.unload(digest)
    streams = [asyncio.create_task(stream(adapter)) for adapter in range(WARM)]
    await asyncio.sleep(1.0)
    gaps[False].clear()
    seconds: list[float] = []

    async def load(number: int) -> None:
        digest = server.digests[4 + number % (len(server.digests) - 4)]
        asked = time.perf_counter()
        await server.client.load(digest)
        seconds.append(time.perf_counter() - asked)
        await server.client.unload(digest)

    numbers = itertools.count()
    for turn in range(2 * turns):
        busy = turn % 2 == 1
        ends = time.perf_counter() + window
        loading: list[asyncio.Task[None]] = []
        while busy and time.perf_counter() < ends:
            loading.append(asyncio.create_task(load(next(numbers))))
            await asyncio.sleep(60 / loads_per_minute)
        await asyncio.gather(asyncio.sleep(max(0.0, ends - time.perf_counter())), *loading)
    over = True
    await asyncio.gather(*streams)
    quiet, loaded = (_figures(gaps[kind]) for kind in (False, True))
    return {
        "loads_a_minute": 60 * len(seconds) / (turns * window),
        "answer_to_a_load": _figures(seconds),
        "quiet": quiet,
        "loading": loaded,
        "ratio_p50": loaded["p50"] / quiet["p50"],
        "ratio_p99": loaded["p99"] / quiet["p99"],
    }


async def cold(server: Server, repeats: int) -> Any:
    """Versions that are on disk only, one after the other on an idle engine with room for them."""
    over: list[float] = []
    firsts: list[float] = []
    loads: list[float] = []
    steps: list[float] = []
    for number in range(repeats):
        adapter = number % len(server.digests)
        await server.client.unload(server.digests[adapter])
        before = await server.load_seconds()
        (first,) = await server.tokens(adapter, 1)
        load = await server.load_seconds() - before
        warm = await server.tokens(adapter, 16)
        step = statistics.median(b - a for a, b in itertools.pairwise(warm))
        # Its own first token takes the step of its prompt; two more are what a load may add.
        over.append((first - load - warm[0]) / step)
        firsts.append(first)
        loads.append(load)
        steps.append(step)
    return {
        "first_token_p50": statistics.median(firsts),
        "load_p50": statistics.median(loads),
        "step_p50": statistics.median(steps),
        "steps_beyond_load_p50": statistics.median(over),
        "steps_beyond_load_max": max(over),
    }


async def third(server: Server, repeats: int) -> Any:
    """Two versions fill the pool, and their clients never stop; a third one is asked for."""
    over = False

    async def client(number: int) -> None:
        while not over:  # of unlike lengths, so that a hot version is never without a request
            await server.tokens(number % 2, 40 + 11 * number)

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    await asyncio.sleep(3.0)
    waits = []
    for _ in range(repeats):
        waits.append((await server.tokens(2, 1))[0])
        await asyncio.sleep(2.0)
    over = True
    await asyncio.gather(*clients)
    return {"waits": waits, "longest": max(waits)}


async def crowd(server: Server, versions: int, seconds: float, *, drawn: bool) -> Any:
    """A closed loop of as many clients as versions, each asking for all of them in its order.

    drawn: each asks for any of them instead
    """
    firsts: list[float] = []
    gaps: list[float] = []  # the longest of each answer
    random = Random(0)
    for digest in server.digests[:versions]:
        await server.client.load(digest)
    ends = time.perf_counter() + seconds

    async def client(start: int) -> None:
        for number in itertools.count(start):
            if time.perf_counter() > ends:
                return
            adapter = random.randrange(versions) if drawn else number * 3 % versions
            arrivals = await server.tokens(adapter, 32)
            firsts.append(arrivals[0])
            gaps.append(max(b - a for a, b in itertools.pairwise(arrivals)))

    await asyncio.gather(*map(client, range(versions)))
    stats = server.client.stats
    return _figures(firsts) | {
        "longest_gap": _figures(gaps),
        "evictions": stats.evictions if stats else 0,
    }


def main(
    model: Annotated[str, typer.Option(help="embedded or half-billion")] = "embedded",
    loads: Annotated[int, typer.Option(help="loads a minute")] = 100,
    window: Annotated[float, typer.Option(help="seconds of each window")] = 15.0,
    turns: Annotated[int, typer.Option(help="windows of each kind")] = 2,
    core: Annotated[int | None, typer.Option(help="processor for the engine alone")] = None,
    swaps: Annotated[bool, typer.Option(help="ask the last two questions too")] = True,
) -> None:
    """Runs them and writes the results file."""
    torch.set_num_threads(THREADS)
    base = BASES[model]()
    adapters = workload.random_adapters(base, LOADED, RANK)
    results = asyncio.run(_loading(base, adapters, loads, window, turns, core))
    if swaps:
        results |= asyncio.run(_swapping(base, adapters, window, core))
    results = {"model": model, "rank": RANK, "loads_per_minute": loads, "core": core} | results
    name = "loads" if model == "embedded" else f"loads-{model}-{results['dtype']}"
    console.print(f"written: {machine.write_results(name, results)}")
    _print(results)


async def _loading(
    base: workload.Base,
    adapters: list[Path],
    loads: int,
    window: float,
    turns: int,
    core: int | None,
) -> dict[str, Any]:
    async with serving(base, adapters, LOADED, core) as server:
        return {
            "dtype": server.client.info.dtype,
            "cold": await cold(server, 10),
            "beside": await beside(server, loads, window, turns),
        }


async def _swapping(
    base: workload.Base, adapters: list[Path], window: float, core: int | None
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    async with serving(base, adapters, 2, core) as server:
        results["third"] = await third(server, 5)
    versions = 8
    for question, drawn in ("cycle", False), ("random", True):
        async with serving(base, adapters, versions, core, host=None) as server:
            roomy = await crowd(server, versions, window, drawn=drawn)
        async with serving(base, adapters, versions // 2, core, host=None) as server:
            tight = await crowd(server, versions, window, drawn=drawn)
        ratios = {f"ratio_{name}": tight[name] / roomy[name] for name in ("mean", "p50", "p99")}
        results[question] = {"all_fit": roomy, "half_fit": tight} | ratios
    return results


def _pin(engine: int | None, core: int) -> None:
    """Gives the thread that computes a processor of its own; all else gets the others."""
    others = set(range(os.cpu_count() or 1)) - {core}
    os.sched_setaffinity(0, others)
    for task in Path(f"/proc/{engine}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core} if task.name == str(engine) else others)
        for child in (task / "children").read_text().split():
            os.sched_setaffinity(int(child), others)


def _figures(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "mean": statistics.fmean(ordered),
        "p50": statistics.median(ordered),
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "p99": ordered[int(0.99 * (len(ordered) - 1))],
        "max": ordered[-1],
    }


def _print(results: dict[str, Any]) -> None:
    table = Table("question", "measured", "goal")
    cold = results["cold"]
    table.add_row(
        f"inter-token p99 beside {results['loads_per_minute']} loads a minute, to quiet",
        f"{results['beside']['ratio_p99']:.2f}",
        "≤ 1.10",
    )
    table.add_row(
        "steps that a cold version's first token takes beyond its load, median and most",
        f"{cold['steps_beyond_load_p50']:.1f}, {cold['steps_beyond_load_max']:.1f}",
        "≤ 2",
    )
    if "third" in results:
        longest = results["third"]["longest"]
        table.add_row(
            "longest wait for a third version beside two hot ones", f"{longest:.2f} s", "≤ 2 s"
        )
    for question in [name for name in ("cycle", "random") if name in results]:
        ratios = (results[question][f"ratio_{name}"] for name in ("mean", "p50", "p99"))
        table.add_row(
            f"first token with half the pool, to the whole ({question}): mean, p50, p99",
            ", ".join(f"{ratio:.2f}" for ratio in ratios),
            "≤ 3",
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
