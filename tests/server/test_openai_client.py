"""The stock `openai` client against the API on a real socket."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from api_server import BASE, MESSAGES, REPLY, Api, listening, tiny_text
from api_server import api as make_api

from weft.server.engine.messages import Generate, Tokens

KEY = "sesame"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Api, openai.OpenAI]]:
    with (
        make_api(tmp_path, api_key=KEY) as api,
        listening(api.app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield api, client


async def test_chat(served: tuple[Api, openai.OpenAI]) -> None:
    _, client = served
    answer = client.chat.completions.create(
        model=BASE, messages=MESSAGES, logprobs=True, top_logprobs=1, user="u", seed=1
    )
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].logprob == -0.5
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_chat_stream(served: tuple[Api, openai.OpenAI]) -> None:
    _, client = served
    stream = client.chat.completions.create(
        model=BASE, messages=MESSAGES, stream=True, n=2, stream_options={"include_usage": True}
    )
    texts = {0: "", 1: ""}
    usage = None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage or usage
    assert texts == {0: REPLY, 1: REPLY}
    assert usage.completion_tokens == 2 * (len(tiny_text().encode(REPLY)) + 1)


async def test_completions(served: tuple[Api, openai.OpenAI]) -> None:
    _, client = served
    answer = client.completions.create(
        model=BASE, prompt=["a", "b"], echo=True, logprobs=2, max_tokens=50
    )
    assert [choice.text for choice in answer.choices] == ["a" + REPLY, "b" + REPLY]
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    stream = client.completions.create(model=BASE, prompt="a", max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == REPLY


async def test_adapters_by_model_and_header(served: tuple[Api, openai.OpenAI]) -> None:
    api, client = served
    digest = await api.add("pirate")
    api.engine.replies[digest] = tiny_text().encode("arr")
    assert [model.id for model in client.models.list()] == [BASE, "pirate"]
    assert client.models.retrieve("pirate").root == digest
    raw = client.chat.completions.with_raw_response.create(model="pirate", messages=MESSAGES)
    assert raw.headers["x-adapter-id"] == "pirate@1"
    assert raw.parse().choices[0].message.content == "arr"
    answer = client.chat.completions.create(
        model=BASE, messages=MESSAGES, extra_headers={"X-Adapter-ID": "pirate"}
    )
    assert answer.choices[0].message.content == "arr"


async def test_errors_are_the_clients_own_types(served: tuple[Api, openai.OpenAI]) -> None:
    api, client = served
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=BASE, messages=MESSAGES, tools=[{"type": "function"}])
    assert (bad.value.code, bad.value.param) == ("unsupported_parameter", "tools")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    api.engine.break_after = 3
    with pytest.raises(openai.APIError) as broken:
        list(client.chat.completions.create(model=BASE, messages=MESSAGES, stream=True))
    assert broken.value.code == "engine_unavailable"


async def test_many_clients_at_once(served: tuple[Api, openai.OpenAI]) -> None:
    api, client = served
    digests = [await api.add(f"a{i}", seed=i) for i in range(4)]
    for i, digest in enumerate(digests):
        api.engine.replies[digest] = tiny_text().encode(f"answer {i}")

    def ask(i: int) -> str | None:
        stream = client.chat.completions.create(model=f"a{i % 4}", messages=MESSAGES, stream=True)
        return "".join(c.choices[0].delta.content or "" for c in stream)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(32)))
    assert answers == [f"answer {i % 4}" for i in range(32)]


async def test_leaving_a_stream_ends_it_in_the_engine(served: tuple[Api, openai.OpenAI]) -> None:
    api, client = served
    ended = threading.Event()
    inner = api.engine._events

    async def endless(request: Generate) -> AsyncIterator[Tokens]:
        try:
            while True:
                async for event in inner(request):
                    if event.finish is None:
                        yield event
                        await asyncio.sleep(0.001)
        finally:
            ended.set()

    api.engine._events = endless
    stream = client.chat.completions.create(model=BASE, messages=MESSAGES, stream=True)
    next(iter(stream))
    stream.close()
    assert await asyncio.to_thread(ended.wait, 10)
