"""Thousands of requests of every kind: memory, descriptors, threads and series do not grow."""

import asyncio
import os
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from time import monotonic

import httpx
import pytest
from peft_adapters import save_lora
from processes import engine_of, resident_bytes
from raw_stream import post
from soak_results import keep
from tiny_models import save_tiny
from weft_process import WeftProcess

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
REQUESTS, WARM = int(os.environ.get("WEFT_REQUESTS", "12000")), 4000
CLIENTS, EACH_REPLACEMENT, TEXTS = 16, 100, 100
MOST_GROWN = 1 << 20
"""Bytes of either process in 10,000 requests."""


@dataclass(frozen=True)
class Footprint:
    """Of a server and its engine, at rest."""

    server_bytes: int
    engine_bytes: int
    descriptors: int
    threads: int
    series: int


def _entries(pid: int, folder: str) -> int:
    return len(list(Path(f"/proc/{pid}/{folder}").iterdir()))


class Visitors:
    """Clients that ask, ask wrongly, and leave."""

    def __init__(self, server: WeftProcess, client: httpx.AsyncClient, folders: list[Path]) -> None:
        self.kinds: Counter[str] = Counter()
        self._server = server
        self._client = client
        self._folders = folders
        self._random = Random(11)
        # More of them would fill the cache that a tokenizer keeps of 10,000 words.
        self._texts = [f"{self._random.random()}" for _ in range(TEXTS)]
        self._left = 0

    async def ask(self, count: int) -> None:
        self._left = count
        await asyncio.gather(*(self._one() for _ in range(CLIENTS)))

    async def footprint(self) -> Footprint:
        lines = (await self._client.get("/metrics")).text.splitlines()
        server, engine = self._server.pid, engine_of(self._server.pid)
        pids = (server, engine)
        return Footprint(
            resident_bytes(server),
            resident_bytes(engine),
            sum(_entries(pid, "fd") for pid in pids),
            sum(_entries(pid, "task") for pid in pids),
            sum(not line.startswith("#") for line in lines),
        )

    async def _one(self) -> None:
        while self._left > 0:
            self._left -= 1
            if self._left % EACH_REPLACEMENT == 0:
                await self._replace()
            kind = self._random.choices(
                ["answered", "streamed", "wrong", "unknown", "left"], [60, 15, 5, 10, 10]
            )[0]
            await self._visit(kind)
            self.kinds[kind] += 1

    async def _visit(self, kind: str) -> None:
        model = f"nobody-{self._random.random()}" if kind == "unknown" else "shop"
        body = {"model": model, "prompt": self._random.choice(self._texts), "max_tokens": 3}
        body |= {"stream": kind == "streamed", "ignore_eos": True}
        if kind == "wrong":
            body["max_tokens"] = "three"
        if kind == "left":
            await self._leave(body | {"max_tokens": 60})
            return
        answer = await post(self._server.url, "/v1/completions", "-", body)
        assert answer.status == {"wrong": 400, "unknown": 404}.get(kind, 200), answer.body

    async def _leave(self, body: dict[str, object]) -> None:
        asked = asyncio.create_task(post(self._server.url, "/v1/completions", "-", body))
        await asyncio.wait([asked], timeout=self._random.random() / 50)
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked

    async def _replace(self) -> None:
        folder = self._random.choice(self._folders)
        answer = await self._client.put("/v1/adapters/shop", json={"path": str(folder)})
        assert answer.status_code == 200, answer.text


async def test_nothing_grows(tmp_path: Path) -> None:
    model, began = save_tiny("llama", tmp_path / "llama"), monotonic()
    root = tmp_path / "open"
    folders = [
        save_lora(root / str(seed), "llama", seed=seed, r=4, target_modules=["q_proj"])
        for seed in range(3)
    ]
    flags = ["--dtype", "float32", "--log-level", "error", "--adapter-root", root]
    flags += [f"--adapter=shop={folders[0]}", "--kv-cache-memory", "4MiB", "--keep-versions", 2]
    with WeftProcess("serve", model, *flags, state=tmp_path) as process:
        assert process.url
        one = httpx.Limits(max_connections=1)  # idle ones would be descriptors of the server's
        async with httpx.AsyncClient(base_url=process.url, timeout=60, limits=one) as client:
            visitors = Visitors(process, client, folders)
            await visitors.footprint()  # a first look makes series about looking
            await visitors.ask(WARM)
            before = await visitors.footprint()
            await visitors.ask(REQUESTS)
            after = await visitors.footprint()
    grown = {
        name: round((getattr(after, name) - getattr(before, name)) * 10_000 / REQUESTS)
        for name in ("server_bytes", "engine_bytes")
    }
    keep(
        "memory",
        {
            "requests": REQUESTS,
            "kinds": visitors.kinds,
            "after_warming_up": asdict(before),
            "at_the_end": asdict(after),
            "grown_in_10000_requests": grown,
            "seconds": round(monotonic() - began, 1),
        },
    )
    assert (after.descriptors, after.threads, after.series) == (
        before.descriptors,
        before.threads,
        before.series,
    )
    assert max(grown.values()) <= MOST_GROWN
