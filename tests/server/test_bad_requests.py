"""Whatever a client sends: an answer of the catalogue, never a 5xx, and nothing left behind."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from api_server import Api
from api_server import api as make_api
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.server.api.chat import ChatCompletionRequest, ChatMessage
from weft.server.api.completions import CompletionRequest
from weft.server.errors import ErrorCode

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


async def answered(api: Api, route: str, body: bytes, **headers: str) -> None:
    headers = {"Content-Type": "application/json", **headers}
    async with api.client() as client:
        got = await client.post(route, content=body, headers=headers)
    assert got.status_code < 500, got.text
    if got.status_code >= 400:
        assert got.json()["error"]["code"] in CODES
    assert not api.engine.live
    assert api.services.admission.inside == 0


EXAMPLES = int(os.environ.get("WEFT_EXAMPLES", "200"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


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


HEADER = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=80)


@FUZZ
@given(HEADER)
async def test_adapter_headers(api: Api, value: str) -> None:
    body = orjson.dumps({"prompt": "x", "max_tokens": 1})
    header = value.encode("latin-1").decode("latin-1")
    await answered(api, "/v1/completions", body, **{"X-Adapter-ID": header.encode("latin-1")})


@FUZZ
@given(st.text(max_size=30))
async def test_adapter_paths(api: Api, path: str) -> None:
    body = dumps({"lora_name": "x", "lora_path": path})
    await answered(api, "/v1/load_lora_adapter", body)
