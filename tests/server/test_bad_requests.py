"""Whatever a client sends: an answer of the catalogue, never a 5xx, and nothing left behind."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from api_server import Api
from api_server import api as make_api
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.adapters.version import NAME
from weft.server.api.chat import ChatCompletionRequest, ChatMessage
from weft.server.api.completions import CompletionRequest
from weft.server.deadline import HEADER as TIMEOUT
from weft.server.errors import ErrorCode
from weft.server.router import ADAPTER_HEADERS

CODES = {code.code for code in ErrorCode}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "text", "tiny", "a@1", "auto"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
SMALL = {
    "n": st.integers(0, 3),
    "max_tokens": st.integers(-1, 5),
    "stream": st.booleans(),
    "temperature": st.floats(-1, 3),
    "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=2),
    "logit_bias": st.dictionaries(st.sampled_from(["1", "x", "999", "-1"]), st.floats(-200, 200)),
}
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=20)},
    optional=dict.fromkeys(ChatMessage.model_fields.keys() - {"role", "content"}, JSON),
)
PROMPT = (
    st.text(max_size=20)
    | st.lists(st.text(max_size=5), max_size=3)
    | st.lists(st.integers(-2, 600), max_size=5)
    | st.lists(st.lists(st.integers(0, 511), max_size=3), max_size=3)
)


def body_of(schema: Any, **required: st.SearchStrategy) -> st.SearchStrategy:
    fields = {name: SMALL.get(name, JSON) | JSON for name in schema.model_fields}
    usual = st.fixed_dictionaries(required, optional=SMALL | {"echo": st.booleans()})
    others = {name: fields[name] for name in fields.keys() - required.keys()}
    odd = st.fixed_dictionaries(required, optional=others | {"unknown": JSON})
    return usual | odd | st.dictionaries(st.sampled_from(sorted(fields)), JSON, max_size=4)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("bad-requests")
    with make_api(folder) as made:
        yield made
        made.check()


async def answered(api: Api, route: str, body: bytes, **headers: Any) -> None:
    headers = {"Content-Type": "application/json", **headers}
    async with api.client() as client:
        got = await client.post(route, content=body, headers=headers)
    assert got.status_code < 500, got.text
    if got.status_code >= 400:
        assert got.json()["error"]["code"] in CODES
    assert not api.engine.live
    assert api.services.admission.inside == 0


FUZZ = settings(max_examples=examples(200), suppress_health_check=list(HealthCheck))


def dumps(value: Any) -> bytes:
    """JSON by the lenient library, so that NaN, surrogates and huge numbers get through."""
    return json.dumps(value).encode()


@FUZZ
@given(body_of(ChatCompletionRequest, messages=st.lists(MESSAGE, max_size=3)))
async def test_chat_bodies(api: Api, body: Any) -> None:
    await answered(api, "/v1/chat/completions", dumps(body))


@FUZZ
@given(body_of(CompletionRequest, prompt=PROMPT))
async def test_completion_bodies(api: Api, body: Any) -> None:
    await answered(api, "/v1/completions", dumps(body))


@FUZZ
@given(JSON, st.sampled_from(["/tokenize", "/detokenize", "/v1/load_lora_adapter"]))
async def test_other_bodies(api: Api, body: Any, route: str) -> None:
    await answered(api, route, dumps(body))


@FUZZ
@given(st.binary(max_size=60))
async def test_bytes_that_are_no_json(api: Api, body: bytes) -> None:
    await answered(api, "/v1/completions", body)


HEADERS = st.sampled_from(
    ["Authorization", "Content-Type", "If-Match", "X-Request-ID", TIMEOUT, *ADAPTER_HEADERS]
)
VALUES = (
    st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=80)
    | st.sampled_from(["0", "1e9", "nan", '"', "application/json;", "Bearer ", "shop@1", "shop:0"])
).map(lambda text: text.encode("latin-1"))


@FUZZ
@given(st.dictionaries(HEADERS, VALUES, min_size=1, max_size=3))
async def test_headers(api: Api, headers: dict[str, Any]) -> None:
    body = orjson.dumps({"prompt": "x", "max_tokens": 1})
    await answered(api, "/v1/completions", body, **headers)
    await answered(api, "/v1/adapters/shop/rollback", b"", **headers)


@settings(FUZZ, max_examples=examples(50))
@given(st.from_regex(NAME, fullmatch=True) | st.text(min_size=1, max_size=70))
async def test_names(api: Api, name: str) -> None:
    """What can be a name is one, everywhere and letter by letter; all else is refused."""
    path = f"/v1/adapters/{quote(name, safe='')}"
    ask = {"model": name, "prompt": "x", "max_tokens": 1}
    async with api.client() as client:
        put = await client.put(path, json={"path": str(api.folder())})
        answer = await client.post("/v1/completions", json=ask)
        listed = (await client.get("/v1/adapters")).json()["data"]
        await client.delete(path)
    if NAME.fullmatch(name):
        assert [put.json()["name"], *(adapter["name"] for adapter in listed)] == [name] * 2
        assert answer.headers["x-adapter-id"] == f"{name}@{put.json()['version']}"
    else:
        assert listed == []
        for refused in (put, answer):
            assert 400 <= refused.status_code < 500
            assert refused.json()["error"]["code"] in CODES


@FUZZ
@given(st.text(max_size=30))
async def test_adapter_paths(api: Api, path: str) -> None:
    body = dumps({"lora_name": "x", "lora_path": path})
    await answered(api, "/v1/load_lora_adapter", body)
