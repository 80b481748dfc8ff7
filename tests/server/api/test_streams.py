"""Answers under way: failures after the first byte, clients that leave or do not read."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from api_server import BASE, MESSAGES, Api, events
from starlette.types import Message

from weft.server.api import answer as answer_module

ROUTE = "/v1/chat/completions"
BODY = {"model": BASE, "messages": MESSAGES}


class Client:
    """An ASGI client that can leave, or stop reading, whenever a test says so."""

    def __init__(self, api: Api, body: bytes, path: str = ROUTE) -> None:
        self.messages: list[Message] = []
        self.changed = asyncio.Condition()
        self.left = asyncio.Event()
        self.reads: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0)
        self._sent = False
        self._body = body
        headers = [(b"content-type", b"application/json"), (b"host", b"weft")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "http_version": "1.1",
            "root_path": "",
            "server": ("weft", 80),
            "client": ("test", 1),
            "app": api.app,
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        self.task = asyncio.create_task(api.app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.reads()
        async with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    async def wait_for(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.messages) >= count)


def json_bytes(**fields: object) -> bytes:
    return orjson.dumps(BODY | fields)


@pytest.mark.parametrize("n", [1, 3])
async def test_a_failure_after_the_first_byte_is_one_event_without_done(api: Api, n: int) -> None:
    api.engine.break_after = 4
    async with api.client() as client:
        got = await client.post(ROUTE, json=BODY | {"stream": True, "n": n})
    assert got.status_code == 200
    data = events(got.text)
    assert data[-1]["error"]["code"] == "engine_unavailable"
    assert sum("error" in item for item in data) == 1


async def test_an_error_event_of_the_engine_keeps_its_code(api: Api) -> None:
    api.engine.break_after, api.engine.error = 3, "out_of_memory"
    async with api.client() as client:
        got = await client.post(ROUTE, json=BODY | {"stream": True})
    assert events(got.text)[-1]["error"]["code"] == "out_of_memory"


@pytest.mark.parametrize("prompts", ["a", ["a", "b", "c"]])
async def test_a_failure_before_the_first_byte_has_its_status(api: Api, prompts: object) -> None:
    api.engine.break_after, api.engine.error = 0, "out_of_memory"
    async with api.client() as client:
        for stream in (True, False):
            body = {"prompt": prompts, "stream": stream}
            got = await client.post("/v1/completions", json=body)
            assert (got.status_code, got.json()["error"]["code"]) == (503, "out_of_memory")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("seen", [0, 1, 2, 5])
@pytest.mark.parametrize("fields", [{}, {"n": 3}])
async def test_a_client_that_leaves_ends_its_request_in_every_state(
    api: Api, stream: bool, seen: int, fields: dict
) -> None:
    """Waiting for the first token, between tokens, and while an answer is put together."""
    await api.add("pirate")
    steps = asyncio.Semaphore(seen)
    api.engine.pace = steps.acquire
    client = Client(api, json_bytes(stream=stream, model="pirate", **fields))
    before = api.engine.paces
    await api.engine.until(lambda: api.engine.paces > before + seen)
    assert (await _leases(api)) == 1
    client.left.set()
    await client.task
    api.check()


async def test_a_client_that_leaves_one_of_many_prompts_ends_them_all(api: Api) -> None:
    steps = asyncio.Semaphore(4)
    api.engine.pace = steps.acquire
    client = Client(api, b'{"prompt": ["a", "b", "c"], "stream": true}', "/v1/completions")
    await api.engine.until(lambda: api.engine.paces > 4 and len(api.engine.live) == 3)
    client.left.set()
    await client.task
    api.check()


async def test_a_client_that_leaves_while_its_prompt_is_tokenised(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = asyncio.Event()

    async def forever(*_: object) -> None:
        started.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("weft.server.reading.asyncio.to_thread", forever)
    client = Client(api, json_bytes())
    await started.wait()
    client.left.set()
    await client.task
    assert not client.messages
    api.check()


async def test_a_client_that_does_not_read_is_given_up(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_module, "SLOW_READER_SECONDS", 0.01)
    client = Client(api, json_bytes(stream=True))
    client.reads = asyncio.Event().wait
    await client.task
    assert not client.messages
    api.check()


async def test_a_slow_reader_holds_the_engine_back(api: Api) -> None:
    """Nothing is piled up for a client: its events are taken one at a time."""
    taken = 0

    async def pace() -> None:
        nonlocal taken
        taken += 1

    api.engine.pace = pace
    reading = asyncio.Semaphore(3)
    client = Client(api, json_bytes(stream=True))
    client.reads = reading.acquire
    await client.wait_for(3)
    for _ in range(50):
        await asyncio.sleep(0)
    assert taken <= 4
    client.left.set()
    await client.task
    api.check()


async def test_cancelling_the_server_gives_everything_back(api: Api) -> None:
    api.engine.pace = asyncio.Event().wait
    client = Client(api, json_bytes(stream=True))
    await api.engine.until(lambda: bool(api.engine.live))
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    api.check()


async def test_a_stop_string_aborts_what_still_runs(api: Api) -> None:
    async with api.client() as client:
        await client.post(ROUTE, json=BODY | {"stop": "Hello"})
    assert not api.engine.live
    assert not api.engine.aborted

    async with api.client() as client:
        got = await client.post(ROUTE, json=BODY | {"stop": "Hello", "n": 2})
    assert [c["finish_reason"] for c in got.json()["choices"]] == ["stop", "stop"]
    (request,) = api.engine.requests[1:]
    assert api.engine.aborted == [(request.id, 0)]


async def _leases(api: Api) -> int:
    async with api.client() as client:
        return (await client.get("/v1/adapters/pirate")).json()["refs"]
