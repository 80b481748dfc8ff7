"""Streams as server-sent events: whatever a model says, any reader gets exactly that."""

import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from api_server import BASE, MESSAGES, Api, tiny_text
from api_server import api as make_api
from examples import examples
from fake_engine import EOS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import VOCAB_SIZE

MARKS = ["\n\n", "\r", "\u2028", "data: [DONE]\n\n", "event: x", ":", "\x00", "\\", '"', "日", "🙂"]
SAID = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=30) | st.lists(
    st.sampled_from(MARKS) | st.text(max_size=6), max_size=6
).map(lambda pieces: tiny_text().encode("".join(pieces)))
LONGEST = 64
ROUTES = {"/v1/chat/completions": {"messages": MESSAGES}, "/v1/completions": {"prompt": "x"}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with make_api(tmp_path_factory.mktemp("events")) as made:
        yield made
        made.check()


def read_events(stream: bytes) -> list[str]:
    """The data of each event, read as the HTML standard says; nothing else may be in the stream."""
    *lines, rest = re.split("\r\n|\n|\r", stream.decode())
    assert rest == ""
    found, data = [], []
    for line in lines:
        if line:
            field, _, value = line.partition(":")
            assert field == "data"
            data.append(value.removeprefix(" "))
        elif data:
            found.append("\n".join(data))
            data = []
    assert not data
    return found


def said_by(choice: dict[str, Any]) -> str:
    """The text of a whole answer's choice, or what a chunk's adds to it."""
    if "text" in choice:
        return choice["text"]
    return (choice.get("message") or choice["delta"]).get("content") or ""


@settings(max_examples=examples(100), suppress_health_check=list(HealthCheck))
@given(SAID, st.sampled_from(sorted(ROUTES)), st.integers(1, 3), st.integers(1, 4), st.booleans())
async def test_a_stream_read_by_the_standard_is_the_whole_answer(
    served: Api, said: list[int], route: str, n: int, together: int, usage: bool
) -> None:
    served.engine.reply, served.engine.tokens_per_event = said, together
    served.engine.requests.clear()  # else a failure would show them all
    body = ROUTES[route] | {"model": BASE, "n": n, "max_tokens": LONGEST}
    options = {"stream": True, "stream_options": {"include_usage": usage}}
    async with served.client() as client:
        whole = (await client.post(route, json=body)).json()
        stream = (await client.post(route, json=body | options)).content
    *data, done = read_events(stream)
    assert done == "[DONE]"
    chunks = [orjson.loads(item) for item in data]
    if usage:
        assert chunks.pop()["usage"] == whole["usage"]
    text = tiny_text().decode([*said, EOS][: min([*said, EOS].index(EOS), LONGEST)])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for expected in whole["choices"]:
        mine = [choice for choice in choices if choice["index"] == expected["index"]]
        assert "".join(map(said_by, mine)) == said_by(expected) == text
        ends = [c["finish_reason"] for c in mine if c["finish_reason"] is not None]
        assert ends == [expected["finish_reason"]]
