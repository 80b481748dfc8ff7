"""A real server, and what is done to it: nothing takes more with it than it must."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from adapter_files import CONFIG, WEIGHTS, write_adapter
from peft_adapters import save_lora
from processes import children, engine_of, is_busy, loader_of
from tiny_models import save_tiny
from weft_process import WeftProcess

CONTEXT = 2048
PROMPT = "Once upon a time"
BACK = 240.0
"""Seconds for an engine to start again on a machine that has other work too."""


class Files(NamedTuple):
    """A base model and adapters; `slow` is small and takes for ever to be lowered."""

    model: Path
    shop: Path
    other: Path
    slow: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("files")
    size = {"max_position_embeddings": CONTEXT}
    reflections = 4000  # each is composed with all before it
    slow = {"base_model.model.model.layers.0.self_attn.q_proj.hra_u": torch.ones(64, reflections)}
    config = {"peft_type": "HRA", "r": reflections, "target_modules": ["0.self_attn.q_proj"]}
    return Files(
        save_tiny("llama", root / "llama", **size),
        save_lora(root / "shop", "llama", model=size, r=4, target_modules=["q_proj"]),
        save_lora(root / "other", "llama", model=size, r=4, target_modules=["v_proj"]),
        write_adapter(root / "slow", config, slow),
    )


@pytest.fixture(scope="module")
def server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeftProcess]:
    flags = ["--adapter", f"shop={files.shop}", "--loader-timeout", "2", "--dtype", "float32"]
    with WeftProcess(
        "serve", files.model, *flags, state=tmp_path_factory.mktemp("state")
    ) as process:
        assert process.url
        yield process


@pytest.fixture
async def client(server: WeftProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=BACK) as client:
        yield client
        await at_rest(client)


def body(tokens: int, model: str = "shop", **more: Any) -> dict[str, Any]:
    asked = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    return asked | {"ignore_eos": True} | more


async def complete(client: httpx.AsyncClient, tokens: int, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return await client.post("/v1/completions", json=body(tokens, **more), headers=headers)


async def text(client: httpx.AsyncClient, tokens: int = 8) -> str:
    answer = await complete(client, tokens)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


async def upload(client: httpx.AsyncClient, name: str, folder: Path) -> httpx.Response:
    parts = {part: (part, (folder / part).read_bytes()) for part in (CONFIG, WEIGHTS)}
    return await client.put(f"/v1/adapters/{name}", files=parts)


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("vllm:"))
    return {name.partition("{")[0]: float(value) for name, value in pairs}


async def has_waiting(client: httpx.AsyncClient) -> bool:
    return (await gauges(client))["vllm:num_requests_waiting"] > 0


async def has_none_waiting(client: httpx.AsyncClient) -> bool:
    return not await has_waiting(client)


async def loads_nothing(loader: int) -> bool:
    return not any(map(is_busy, children(loader)))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Asks until the answer is yes."""
    async with asyncio.timeout(BACK):
        while not await holds():  # noqa: ASYNC110 - another process can only be asked
            await asyncio.sleep(0.02)


def status_is(client: httpx.AsyncClient, path: str, wanted: int) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return (await client.get(path)).status_code == wanted

    return holds


async def until_loading(client: httpx.AsyncClient, name: str) -> None:
    await until(status_is(client, f"/v1/adapters/{name}", 200))


async def until_ready(client: httpx.AsyncClient) -> None:
    await until(status_is(client, "/ready", 200))


async def at_rest(client: httpx.AsyncClient) -> None:
    """Nothing is held once all answers are over; and the server says that it is sound."""

    async def idle() -> bool:
        found = await gauges(client)
        kinds = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return not any(found[f"vllm:{kind}"] for kind in kinds)

    await until_ready(client)
    await until(idle)
    listed = (await client.get("/v1/adapters")).json()["data"]
    assert all(adapter["refs"] == 0 for adapter in listed)


class Stream:
    """A streamed answer under way: its events so far, and how it ended."""

    def __init__(self, client: httpx.AsyncClient, tokens: int, **more: Any) -> None:
        self.lines: list[str] = []
        self.begun = asyncio.Event()
        self._asked = client.stream(
            "POST", "/v1/completions", json=body(tokens, stream=True, **more)
        )
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self._asked as response:
            async for line in response.aiter_lines():
                if line:
                    self.lines.append(line)
                    self.begun.set()

    async def end(self) -> str:
        await self.task
        return self.lines[-1]


async def test_a_killed_engine_ends_all_calls_in_time_and_comes_back(
    server: WeftProcess, client: httpx.AsyncClient, files: Files
) -> None:
    """Killed while it decodes, while a prompt is computed and while a version is loaded."""
    before = await text(client)
    stream = Stream(client, CONTEXT - 200)
    await stream.begun.wait()
    long = " ".join([PROMPT] * 100)
    prefill = asyncio.create_task(complete(client, 64, prompt=[long] * 32))
    os.kill(loader_of(server.pid), signal.SIGSTOP)  # so that the load is under way for sure
    load = asyncio.create_task(upload(client, "arriving", files.slow))
    await until_loading(client, "arriving")
    await until(lambda: has_waiting(client))
    os.kill(engine_of(server.pid), signal.SIGKILL)
    killed = time.monotonic()
    answers = await asyncio.gather(prefill, load)
    last = await stream.end()
    assert time.monotonic() - killed < 5.0
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    assert '"engine_unavailable"' in last
    assert "[DONE]" not in "".join(stream.lines)

    assert (await complete(client, 1)).status_code == 503
    assert (await client.get("/ready")).status_code == 503
    assert (await client.get("/health")).status_code == 200
    await until_ready(client)
    assert await text(client) == before
    names = [adapter["name"] for adapter in (await client.get("/v1/adapters")).json()["data"]]
    assert names == ["shop"]


async def test_an_engine_that_is_killed_while_it_idles_and_while_it_starts_comes_back(
    server: WeftProcess, client: httpx.AsyncClient
) -> None:
    before = await text(client)
    first = engine_of(server.pid)
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(StopIteration):
                if (second := engine_of(server.pid)) != first:
                    break
            await asyncio.sleep(0.01)
    os.kill(second, signal.SIGKILL)
    asked = time.monotonic()
    assert (await complete(client, 1)).status_code == 503
    assert time.monotonic() - asked < 5.0
    await until_ready(client)
    assert engine_of(server.pid) not in (first, second)
    assert await text(client) == before


async def test_a_killed_loader_fails_one_load_and_nothing_else(
    server: WeftProcess, client: httpx.AsyncClient, files: Files
) -> None:
    engine, loader = engine_of(server.pid), loader_of(server.pid)
    stream = Stream(client, CONTEXT - 200)
    await stream.begun.wait()
    os.kill(loader, signal.SIGSTOP)
    load = asyncio.create_task(upload(client, "slow", files.slow))
    await until(lambda: has_waiting(client))
    assert await text(client)  # with a version that is loaded
    os.kill(loader, signal.SIGKILL)
    failed = await load
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_unavailable")
    assert (await client.get("/v1/adapters/slow")).status_code == 404

    await stream.end()
    assert stream.lines[-1] == "data: [DONE]"
    assert engine_of(server.pid) == engine
    assert (await upload(client, "other", files.other)).status_code == 200
    assert loader_of(server.pid) != loader
    assert (await client.delete("/v1/adapters/other")).status_code == 200


async def test_a_file_that_takes_for_ever_is_refused_and_holds_nobody_up(
    client: httpx.AsyncClient, files: Files
) -> None:
    stream = Stream(client, CONTEXT - 200, model="llama")
    await stream.begun.wait()
    load = asyncio.create_task(upload(client, "slow", files.slow))
    await until_loading(client, "slow")
    before = len(stream.lines)
    refused = await load
    meanwhile = len(stream.lines) - before
    assert refused.status_code == 422
    assert "--loader-timeout" in refused.json()["error"]["message"]
    assert meanwhile > 100 or stream.task.done()
    stream.task.cancel()


@pytest.mark.parametrize("asked", ["upload", "request"])
async def test_a_load_that_nobody_waits_for_ends(
    server: WeftProcess, client: httpx.AsyncClient, files: Files, asked: str
) -> None:
    """Its client left: its process computes no more, and another client's load is not lost."""
    loader = loader_of(server.pid)
    assert await loads_nothing(loader)
    work: dict[str, Callable[[], Awaitable[Any]]] = {
        "upload": lambda: upload(client, "slow", files.slow),
        "request": lambda: complete(client, 1, model="late"),
    }
    if asked == "request":
        assert (await upload(client, "late", files.other)).status_code == 200
        os.kill(engine_of(server.pid), signal.SIGKILL)  # so that it has to be loaded again
        await until(status_is(client, "/ready", 503))
        await until_ready(client)
        loader = loader_of(server.pid)
        os.kill(loader, signal.SIGSTOP)
    task = asyncio.ensure_future(work[asked]())
    await until(lambda: has_waiting(client))
    task.cancel()
    if asked == "request":
        await until(lambda: has_none_waiting(client))
        os.kill(loader, signal.SIGCONT)
    await until(lambda: loads_nothing(loader))
    if asked == "upload":
        await until(status_is(client, "/v1/adapters/slow", 404))
        assert (await upload(client, "late", files.other)).status_code == 200
    assert (await complete(client, 1, model="late")).status_code == 200
    assert (await client.delete("/v1/adapters/late")).status_code == 200


async def test_an_engine_that_hangs_is_not_ready_within_five_seconds(
    server: WeftProcess, client: httpx.AsyncClient
) -> None:
    await text(client)
    os.kill(engine_of(server.pid), signal.SIGSTOP)
    stopped = time.monotonic()
    await until(status_is(client, "/ready", 503))
    assert time.monotonic() - stopped < 5.0
    os.kill(engine_of(server.pid), signal.SIGCONT)
    await until_ready(client)


@pytest.mark.parametrize("more", [{}, {"n": 4}, {"stream": True}])
async def test_a_deadline_ends_the_answer_and_frees_what_it_held(
    client: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    began = time.monotonic()
    answer = await complete(client, 1800, headers={"X-Request-Timeout": "0.4"}, **more)
    took = time.monotonic() - began
    assert '"deadline_exceeded"' in answer.text
    assert answer.status_code == (200 if more.get("stream") else 504)
    assert 0.4 <= took < 2.0  # a step takes milliseconds; the rest is for a busy machine


async def test_clients_that_leave_at_any_time_leave_nothing_behind(
    client: httpx.AsyncClient,
) -> None:
    draw = random.Random(7)

    async def visit(number: int) -> None:
        kinds = [{}, {"n": 3}, {"stream": True}, {"stream": True, "n": 2}, {"prompt": ["a", "b"]}]
        tokens, model = draw.choice([1, 40, 400]), draw.choice(["llama", "shop"])
        asked = complete(client, tokens, model=model, **kinds[number % 5])
        task = asyncio.create_task(asked)
        await asyncio.sleep(draw.choice([0.0, 0.005, 0.02, 0.1, 0.4]))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert (await task).status_code == 200

    await asyncio.gather(*(visit(number) for number in range(60)))
    await at_rest(client)
    await text(client)


async def test_a_server_that_is_asked_to_stop_finishes_what_it_began(
    files: Files, tmp_path: Path
) -> None:
    with WeftProcess("serve", files.model, "--dtype", "float32", state=tmp_path) as process:
        async with httpx.AsyncClient(base_url=process.url, timeout=BACK) as client:
            stream = Stream(client, CONTEXT - 200, model="llama")
            await stream.begun.wait()
            os.kill(process.pid, signal.SIGTERM)
            await until(status_is(client, "/ready", 503))
            refused = await complete(client, 1, model="llama")
            assert refused.json()["error"]["code"] == "draining"
            assert await stream.end() == "data: [DONE]"
        assert (await asyncio.to_thread(process.ended))[0] == 0
