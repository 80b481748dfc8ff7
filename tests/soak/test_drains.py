"""SIGTERM at 50 random moments: nothing new is taken, what runs is finished, the exit is 0."""

import asyncio
import os
import signal
from pathlib import Path
from random import Random
from time import monotonic

import httpx
import pytest
from soak_results import keep_part
from tiny_models import save_tiny
from weft_process import WeftProcess

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
DRAINS, SEEDS, STREAMS, TOKENS = 10, range(5), 12, 600
LATEST = 1.0
"""Seconds after the first requests, of the signal."""


async def stream(client: httpx.AsyncClient, number: int) -> str:
    """Asks for a long answer; returns its last line, or the code with which it was refused."""
    body = {
        "model": "llama",
        "prompt": f"Once upon a time, {number}",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            content = await answer.aread()
            assert answer.status_code == 503, content
            return "draining" if b'"draining"' in content else content.decode()
        return [line async for line in answer.aiter_lines() if line][-1]


@pytest.mark.parametrize("seed", SEEDS)
async def test_drains(tmp_path: Path, seed: int) -> None:
    model = save_tiny("llama", tmp_path / "llama", max_position_embeddings=1024)
    random, began = Random(seed), monotonic()
    told: list[str] = []
    for _ in range(DRAINS):
        with WeftProcess("serve", model, "--dtype", "float32", state=tmp_path) as process:
            async with httpx.AsyncClient(base_url=process.url, timeout=300) as client:
                tasks = [asyncio.create_task(stream(client, n)) for n in range(STREAMS)]
                await asyncio.sleep(random.uniform(0, LATEST))
                os.kill(process.pid, signal.SIGTERM)
                ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert (await asyncio.to_thread(process.ended))[0] == 0
        # One that had not reached the server before it listened no more was not taken.
        told += ["not taken" if isinstance(e, httpx.ConnectError) else str(e) for e in ends]
    assert set(told) <= {"data: [DONE]", "draining", "not taken"}
    assert "data: [DONE]" in told
    counts = {end: told.count(end) for end in sorted(set(told))}
    seconds = round(monotonic() - began, 1)
    found = {"drains": DRAINS, "streams": counts, "seconds": seconds}
    keep_part("drains", f"seed {seed}", found)
