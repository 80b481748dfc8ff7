"""An adapter is replaced once a second for a minute, at full load."""

import asyncio
from pathlib import Path
from statistics import median, quantiles
from time import monotonic

import pytest
from replacing import TOKENS, replacing
from soak_results import keep

from weft.server.engine.launch import launch_process

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
SECONDS, CLIENTS = 60, 32


async def test_a_replacement_a_second_under_full_load(tmp_path: Path) -> None:
    async with replacing(tmp_path, launch_process) as server:
        history = await server.history()
        finished = asyncio.Event()
        puts: list[float] = []

        async def replace() -> None:
            began = monotonic()
            for number in range(1, SECONDS + 1):
                await asyncio.sleep(max(0.0, began + number - monotonic()))
                before = monotonic()
                await server.replace(history, number)
                puts.append(monotonic() - before)
            finished.set()

        began = monotonic()
        await asyncio.gather(
            replace(), server.clients(history, CLIENTS, finished.is_set, lambda: None)
        )
        seconds = monotonic() - began
    assert history.failed == []
    assert history.mixed == []
    assert history.stale == []
    latencies = [asked.seconds for asked in history.asked]
    keep(
        "replacing",
        {
            "seconds": round(seconds, 1),
            "clients": CLIENTS,
            "replacements": len(puts),
            "replacement_seconds": {"median": median(puts), "worst": max(puts)},
            "requests": len(history.asked),
            "tokens_a_second": TOKENS * len(history.asked) / seconds,
            "request_seconds": {
                "median": median(latencies),
                "p99": quantiles(latencies, n=100)[-1],
            },
            "failed": 0,
            "mixed": 0,
            "stale": 0,
        },
    )
