"""Clients that do not read large answers, beside some that do: counted in bytes and in steps."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from processes import resident_bytes
from starlette.types import Message
from tiny_models import save_tiny
from whole_server import WholeServer, whole_server

from weft.server.api import answer
from weft.server.engine.stream import MANY_BYTES

SLOW, NORMAL, EACH = 20, 4, 5
CONTEXT = 2048
TOKENS = 12
ROOM = 32 << 20
ROUTE = "/v1/completions"
CONFIG = {"kv_cache_memory": 16 << 20, "adapter_memory": 1 << 20, "max_num_batched_tokens": 64}


def body(tokens: int, *, stream: bool) -> dict[str, object]:
    asked = {"model": "llama", "prompt": "Once", "max_tokens": tokens, "ignore_eos": True}
    return asked | {"stream": stream, "logprobs": 5, "temperature": 0, "n": 1}


class NeverReads:
    """A client that asks for a long answer and takes nothing of it."""

    def __init__(self, server: WholeServer) -> None:
        self.left = asyncio.Event()
        self.began = asyncio.Event()
        self._body = json.dumps(body(CONTEXT - 100, stream=True)).encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": ROUTE,
            "raw_path": ROUTE.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"weft")],
            "scheme": "http",
            "http_version": "1.1",
            "root_path": "",
            "server": ("weft", 80),
            "client": ("test", 1),
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        self.task = asyncio.create_task(server.app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body:
            content, self._body = self._body, b""
            return {"type": "http.request", "body": content, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.began.set()
        await asyncio.Event().wait()


async def until(holds: Callable[[], bool]) -> None:
    """Waits for what the engine's thread says of itself."""
    async with asyncio.timeout(200):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_who_does_not_read_takes_neither_memory_nor_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "SLOW_READER_SECONDS", 1e6)
    model = save_tiny("llama", tmp_path / "llama", max_position_embeddings=CONTEXT)
    async with whole_server(model, tmp_path / "state", CONFIG) as server, server.client() as client:
        engine = server.services.engine

        def has(running: int, waiting: int) -> bool:
            stats = engine.stats
            return stats is not None and (stats.running, stats.waiting) == (running, waiting)

        def steps() -> int:
            assert engine.stats is not None
            return engine.stats.steps

        async def ask() -> str:
            got: httpx.Response = await client.post(ROUTE, json=body(TOKENS, stream=False))
            assert got.status_code == 200
            return str(got.json()["choices"][0]["text"])

        async def ask_some() -> list[str]:
            return [await ask() for _ in range(EACH)]

        quiet = await ask()
        before = resident_bytes(os.getpid())
        slow = [NeverReads(server) for _ in range(SLOW)]
        await until(lambda: has(0, SLOW))
        unread = [stream.unread_bytes for stream in engine._streams.values()]
        assert len(unread) == SLOW
        # What was computed before the engine heard that it should wait comes on top.
        assert max(unread) < 2 * MANY_BYTES
        begun = steps()
        told = await asyncio.gather(*(ask_some() for _ in range(NORMAL)))
        assert {text for texts in told for text in texts} == {quiet}
        await until(lambda: has(0, SLOW))
        # Those that wait take no step: each answer needs one for its prompt's and each next token.
        assert steps() - begun <= NORMAL * EACH * (TOKENS + 1)
        assert resident_bytes(os.getpid()) - before <= ROOM
        for one in slow:
            one.left.set()
        await asyncio.gather(*(one.task for one in slow))
        await until(lambda: has(0, 0))
        assert engine.stats is not None
        assert engine.stats.free_pages + engine.stats.cached_pages == engine.stats.total_pages
        assert await ask() == quiet
