"""No answer takes longer than it may: the server's limit, and the client's header below it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import BASE, MESSAGES, Api, events
from api_server import api as make_api
from virtual_time import run_in_virtual_time

ROUTE = "/v1/chat/completions"
BODY = {"model": BASE, "messages": MESSAGES}
HEADER = "X-Request-Timeout"
SOON = 0.05


@pytest.fixture
def hurried(tmp_path: Path) -> "Iterator[Api]":
    with make_api(tmp_path, request_timeout=SOON) as made:
        yield made
        made.check()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("seen", [0, 2])
async def test_an_answer_that_takes_too_long_is_a_504(hurried: Api, seen: int, n: int) -> None:
    await hurried.add("pirate")
    hurried.engine.pace = asyncio.Semaphore(seen).acquire
    async with hurried.client() as client:
        got = await client.post(ROUTE, json=BODY | {"model": "pirate", "n": n})
    assert (got.status_code, got.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_stream_that_takes_too_long_ends_with_an_error(hurried: Api) -> None:
    hurried.engine.pace = asyncio.Semaphore(3).acquire
    async with hurried.client() as client:
        got = await client.post(ROUTE, json=BODY | {"stream": True})
    data = events(got.text)
    assert got.status_code == 200
    assert data[-1]["error"]["code"] == "deadline_exceeded"
    assert sum("error" in item for item in data) == 1
    assert "[DONE]" not in data


@pytest.mark.parametrize("stream", [False, True])
def test_it_ends_at_its_time_and_not_at_the_next_token(hurried: Api, stream: bool) -> None:
    paces = 0

    async def pace() -> None:
        nonlocal paces
        paces += 1
        await asyncio.sleep(0.4 * SOON)

    async def main() -> float:
        hurried.engine.pace = pace
        clock = asyncio.get_running_loop().time
        began = clock()
        async with hurried.client() as client:
            body = {"model": BASE, "prompt": [7] * 4, "max_tokens": 9, "stream": stream}
            got = await client.post("/v1/completions", json=body)
        assert "deadline_exceeded" in got.text
        return clock() - began

    assert run_in_virtual_time(main()) == pytest.approx(SOON)
    assert paces == 3, "two tokens came, and the third one would have come too late"


async def test_tokenising_and_waiting_for_a_place_count_too(
    hurried: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forever(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("weft.server.reading.asyncio.to_thread", forever)
    async with hurried.client() as client:
        assert (await client.post(ROUTE, json=BODY)).status_code == 504


async def test_a_client_may_ask_for_less_time(api: Api) -> None:
    api.engine.pace = asyncio.Event().wait
    async with api.client() as client:
        got = await client.post(ROUTE, json=BODY, headers={HEADER: str(SOON)})
    assert got.status_code == 504


async def test_a_client_may_not_ask_for_more_time(hurried: Api) -> None:
    hurried.engine.pace = asyncio.Event().wait
    async with hurried.client() as client:
        got = await client.post(ROUTE, json=BODY, headers={HEADER: "3600"})
    assert got.status_code == 504


async def test_an_answer_in_time_is_as_without(api: Api) -> None:
    async with api.client() as client:
        plain = await client.post(ROUTE, json=BODY)
        timed = await client.post(ROUTE, json=BODY, headers={HEADER: "60.5"})
    assert plain.status_code == timed.status_code == 200
    assert plain.json()["choices"] == timed.json()["choices"]


@pytest.mark.parametrize(
    "value", ["", "0", "0.0", "-1", "1e3", "nan", "inf", "soon", "1234567", "१"]
)
async def test_a_header_that_is_no_time_is_named(api: Api, value: str) -> None:
    async with api.client() as client:
        got = await client.post(ROUTE, json=BODY, headers=[(HEADER, value.encode())])
    assert (got.status_code, got.json()["error"]["param"]) == (400, HEADER)


async def test_a_header_given_twice_is_refused(api: Api) -> None:
    async with api.client() as client:
        got = await client.post(ROUTE, json=BODY, headers=[(HEADER, "1"), (HEADER, "2")])
    assert (got.status_code, got.json()["error"]["param"]) == (400, HEADER)
