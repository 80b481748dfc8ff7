"""The engine in a process of its own: real tokens over the socket, and a kill in mid-answer."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from engines import greedy
from tiny_models import save_tiny

from weft.server.engine.client import (
    EngineClient,
    EngineStartError,
    EngineUnavailable,
)
from weft.server.engine.launch import launch_process, launch_thread
from weft.server.engine.messages import EngineConfig, Tokens
from weft.server.engine.stream import MANY_UNREAD

PROMPT = (11, 12, 13, 14, 15)


def config(folder: Path) -> EngineConfig:
    save_tiny("llama", folder / "llama", max_position_embeddings=4096)
    return EngineConfig(
        model=str(folder / "llama"),
        store=str(folder / "store"),
        device="cpu",
        dtype="float32",
        kv_cache_memory=4 << 20,
        adapter_memory=1 << 20,
        threads=1,
    )


async def collect(client: EngineClient, name: str, tokens: int) -> list[int]:
    events = [event async for event in client.generate(greedy(name, PROMPT, tokens))]
    return [token for event in events for token in event.tokens]


async def until(holds: Callable[[], object]) -> None:
    """Waits for what can only be asked for."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def test_an_answer_that_nobody_reads_gives_its_place_away_and_loses_no_token(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        client = EngineClient(config(tmp_path), launch=launch_thread)
        await client.start()
        tokens = 3 * MANY_UNREAD
        expected = await collect(client, "quick", tokens)
        stream = client.generate(greedy("slow", PROMPT, tokens))
        first = await anext(stream)
        await until(lambda: client.stats and (client.stats.running, client.stats.waiting) == (0, 1))
        assert client.stats is not None
        assert client.stats.free_pages + client.stats.cached_pages == client.stats.total_pages
        assert await collect(client, "other", 4) == expected[:4]
        rest = [token async for event in stream for token in event.tokens]
        assert [*first.tokens, *rest] == expected
        await client.close()

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_an_engine_that_hangs_is_not_ready_before_five_seconds_are_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = EngineClient(config(tmp_path))
        await client.start()
        await collect(client, "token", 1)
        assert await client.probe()
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        while await client.probe():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert time.monotonic() - stopped < 5.0
        os.kill(client.pid, signal.SIGCONT)
        await until(lambda: client.ready)
        assert await client.probe()
        await client.close()

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_an_engine_that_hangs_is_ended_and_started_again(tmp_path: Path) -> None:
    """By a clock that runs fast once the engine is stopped, and as the real one until then."""
    hours = itertools.count(0, 3600)
    stopped = False

    def clock() -> float:
        return time.monotonic() + (next(hours) if stopped else 0)

    async def scenario() -> None:
        nonlocal stopped
        client = EngineClient(config(tmp_path), clock=clock)
        await client.start()
        first_pid = client.pid
        assert first_pid is not None
        before = await collect(client, "before", 6)
        streams = [client.generate(greedy(name, PROMPT, 4000)) for name in ("cut", "also cut")]
        for stream in streams:
            assert isinstance(await anext(stream), Tokens)
        os.kill(first_pid, signal.SIGSTOP)
        stopped = True
        for stream in streams:
            with pytest.raises(EngineUnavailable):
                async for _ in stream:
                    pass
        with pytest.raises(EngineUnavailable):
            await collect(client, "too early", 1)
        stopped = False
        await until(lambda: client.ready and client.pid != first_pid)
        with pytest.raises(ProcessLookupError):
            os.kill(first_pid, 0)
        assert client.restarts == 1
        assert await collect(client, "after", 6) == before
        await client.close()

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_a_killed_engine_ends_its_calls_and_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = EngineClient(config(tmp_path))
        await client.start()
        first_pid = client.pid
        assert first_pid is not None
        before = await collect(client, "before", 6)
        stream = client.generate(greedy("cut", PROMPT, 200))
        assert isinstance(await anext(stream), Tokens)
        os.kill(first_pid, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(EngineUnavailable):
            async for _ in stream:
                pass
        assert time.monotonic() - killed < 5.0
        await until(lambda: client.ready)
        assert client.pid != first_pid
        assert await collect(client, "after", 6) == before
        await client.close()

    asyncio.run(asyncio.wait_for(scenario(), 300))


def test_a_thread_serves_the_same_wire(tmp_path: Path) -> None:
    async def scenario() -> None:
        stages: list[str] = []
        client = EngineClient(
            config(tmp_path),
            launch=launch_thread,
            on_progress=lambda progress: stages.append(progress.stage),
        )
        info = await client.start()
        assert (info.device, info.dtype) == ("cpu", "float32")
        assert {"weights", "self-test"} <= set(stages)
        assert len(await collect(client, "r", 5)) == 5
        assert await client.probe()
        await client.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(("level", "said"), [("debug", True), ("info", False)])
def test_a_log_level_reaches_the_engine(
    level: str, said: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        client = EngineClient(config(tmp_path), launch=partial(launch_process, level))
        await client.start()
        await client.close()

    asyncio.run(scenario())
    assert ("DEBUG weft.engine: ready: EngineInfo(" in capfd.readouterr().err) is said


def test_a_model_that_cannot_be_served_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        client = EngineClient(
            EngineConfig(model=str(empty), store=str(tmp_path / "store")), launch=launch_thread
        )
        with pytest.raises(EngineStartError, match=r"config\.json"):
            await client.start()

    asyncio.run(asyncio.wait_for(scenario(), 60))
