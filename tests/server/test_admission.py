"""Places: refused at once when full or draining, given back whatever happens."""

import asyncio
from pathlib import Path

import pytest
from api_server import BASE, MESSAGES, api
from fake_engine import FakeEngine

from weft.server.admission import Admission
from weft.server.errors import ApiError, ErrorCode


def test_places_are_given_back_after_a_failure() -> None:
    admission = Admission(2)
    with pytest.raises(ZeroDivisionError), admission.admit(2):
        assert 1 // (admission.inside - 2)
    assert admission.inside == 0


@pytest.mark.parametrize("held", [1, 2])
def test_what_would_exceed_the_places_is_refused(held: int) -> None:
    admission = Admission(2)
    with admission.admit(held):
        with pytest.raises(ApiError) as caught, admission.admit(3 - held):
            pass
        assert caught.value.error is ErrorCode.QUEUE_FULL
        assert admission.inside == held


async def test_draining_refuses_the_new_and_waits_for_the_old() -> None:
    admission = Admission(2)
    with admission.admit(1):
        admission.drain()
        waiting = asyncio.create_task(admission.empty())
        await asyncio.sleep(0)
        assert not waiting.done()
        with pytest.raises(ApiError) as caught, admission.admit(1):
            pass
        assert caught.value.error is ErrorCode.DRAINING
    await waiting


async def test_a_full_queue_is_429_with_a_whole_number_of_seconds(tmp_path: Path) -> None:
    gate = asyncio.Event()
    engine = FakeEngine(pace=gate.wait)
    with api(tmp_path, engine, max_num_seqs=1, max_queue=1) as made:
        async with made.client() as client:
            body = {"model": BASE, "messages": MESSAGES}
            first = asyncio.create_task(client.post("/v1/chat/completions", json=body | {"n": 2}))
            await engine.until(lambda: bool(engine.requests))
            refused = await client.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            gate.set()
            assert (await first).status_code == 200
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        made.check()


async def test_a_request_that_can_never_fit_is_refused(tmp_path: Path) -> None:
    with api(tmp_path, max_num_seqs=1, max_queue=0) as made:
        async with made.client() as client:
            answer = await client.post("/v1/completions", json={"prompt": ["a", "b"]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        made.check()


async def test_a_server_is_not_ready_while_its_first_adapters_load(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        made.services.admission.starting = True
        async with made.client() as client:
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200
            made.services.admission.starting = False
            assert (await client.get("/ready")).status_code == 200


async def test_a_draining_server_says_so(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        made.services.admission.drain()
        async with made.client() as client:
            answer = await client.post("/v1/completions", json={"prompt": "a"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200
