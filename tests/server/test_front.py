"""Ids, framing, keys, and failures: what happens around every route."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from api_server import MESSAGES, Api, listening

from weft.adapters.errors import AdapterCorrupt, AdapterInvalid, StorageFull
from weft.server.engine.client import EngineError, EngineUnavailable
from weft.server.errors import ApiError, ErrorCode, translate
from weft.server.front import MAX_HEADER_BYTES, check_framing

CHAT = {"messages": MESSAGES}


async def test_every_answer_has_an_id_of_its_own(api: Api) -> None:
    async with api.client() as client:
        answers = [await client.get("/health"), await client.get("/nowhere")]
        answers.append(await client.post("/v1/chat/completions", json=CHAT))
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{24}", identity) for identity in ids)


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ([("content-length", "1"), ("transfer-encoding", "chunked")], "Transfer-Encoding"),
        ([("authorization", "a"), ("authorization", "a")], "Authorization"),
        ([("content-length", "1"), ("content-length", "1")], "Content-Length"),
        ([("x-adapter-id", "a"), ("x-adapter-id", "a")], "X-Adapter-ID"),
        (
            [("x-adapter-id", "a"), ("x-amzn-sagemaker-adapter-identifier", "a")],
            "X-Adapter-ID",
        ),
    ],
)
def test_ambiguous_headers_are_refused(headers: list[tuple[str, str]], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_framing([(name.encode(), value.encode()) for name, value in headers])
    assert (caught.value.error, caught.value.param) == (ErrorCode.INVALID_PARAMETER, param)


async def test_oversized_headers_are_431(api: Api) -> None:
    async with api.client(x=("y" * MAX_HEADER_BYTES)) as client:
        answer = await client.get("/health")
    assert answer.status_code == 431
    assert answer.json()["error"]["code"] == "request_header_fields_too_large"


async def test_both_framings_at_once_are_refused_on_the_wire(api: Api) -> None:
    with listening(api.app) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        status = await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert b" 400 " in status
    assert not api.engine.requests


BODIES = [
    (b"", 400, "invalid_json"),
    (b"{", 400, "invalid_json"),
    (b"[]", 400, "invalid_json"),
    (b"null", 400, "invalid_json"),
    (b'{"n": 1, "n": 2}', 400, "invalid_json"),
    (b'{"temperature": NaN}', 400, "invalid_json"),
    (b'{"temperature": 1e400}', 400, "invalid_json"),
    (b'{"seed": ' + b"1" * 5000 + b"}", 400, "invalid_json"),
    (b'{"seed": ' + b"1" * 30 + b"}", 400, "invalid_parameter"),
    (b'{"user": "\xff"}', 400, "invalid_json"),
    (b'{"user": "\\ud800"}', 400, "invalid_json"),
    (b'{"user": ' + b"[" * 100_000, 400, "invalid_json"),
    (b'{"user": ' + b"[" * 40 + b"]" * 40 + b"}", 400, "invalid_json"),
]


@pytest.mark.parametrize(("body", "status", "code"), BODIES)
async def test_bodies_that_are_no_json(api: Api, body: bytes, status: int, code: str) -> None:
    async with api.client() as client:
        answer = await client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_other_content_types_are_415(api: Api) -> None:
    async with api.client() as client:
        answer = await client.post("/v1/chat/completions", data={"a": "b"})
        assert answer.status_code == 415
        answer = await client.put("/v1/adapters/a", content=b"x")
        assert answer.status_code == 415


async def test_a_body_beyond_the_limit_is_413_and_ends_the_connection(api: Api) -> None:
    body = b'{"user": "' + b"x" * (9 << 20) + b'"}'
    async with api.client() as client:
        answer = await client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("drips", [False, True])
async def test_a_body_that_does_not_come_is_408(
    api: Api, monkeypatch: pytest.MonkeyPatch, drips: bool
) -> None:
    """Not at all any more, or so slowly that it keeps its connection for ever."""
    monkeypatch.setattr("weft.server.api.body.SILENCE_SECONDS", 0.05)

    async def silent() -> AsyncIterator[bytes]:
        while drips:
            yield b" "
            await asyncio.sleep(0.002)
        yield b"{"
        await asyncio.Event().wait()

    async with api.client() as client:
        for method, path, kind in (
            ("POST", "/v1/completions", "application/json"),
            ("PUT", "/v1/adapters/a", "multipart/form-data; boundary=x"),
        ):
            headers = {"Content-Type": kind}
            answer = await client.request(method, path, content=silent(), headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")
            assert answer.headers["connection"] == "close"


async def test_unknown_routes_and_methods(api: Api) -> None:
    async with api.client() as client:
        answer = await client.get("/v1/nothing")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        answer = await client.delete("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


SECRET = "/srv/secret/path"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineUnavailable(SECRET), 503, "engine_unavailable"),
        (EngineError("out_of_memory", SECRET), 503, "out_of_memory"),
        (EngineError("adapter_invalid", SECRET), 422, "adapter_invalid"),
        (EngineError("never heard of", SECRET), 500, "internal_error"),
        (AdapterCorrupt(SECRET), 503, "adapter_corrupt"),
        (AdapterInvalid("tensor t", "is odd"), 422, "adapter_invalid"),
        (StorageFull(28, SECRET), 507, "insufficient_storage"),
        (OSError(28, SECRET), 507, "insufficient_storage"),
        (OSError(5, SECRET), 500, "internal_error"),
        (RuntimeError(SECRET), 500, "internal_error"),
    ],
)
async def test_failures_become_answers_that_tell_no_secret(
    api: Api, error: Exception, status: int, code: str
) -> None:
    api.engine.failure = error
    async with api.client() as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert SECRET not in answer.text
    if status == 500:
        assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    if code in ("engine_unavailable", "out_of_memory"):
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_of_the_catalogue_can_be_written(code: ErrorCode) -> None:
    error = ApiError(code, param="p").body("r")["error"]
    assert error["code"] == code.code
    assert error["type"]
    assert error["message"].endswith(".")
    assert "{" not in error["message"]
    assert ErrorCode.named(code.code) is code
    assert translate(ApiError(code)).error is code
