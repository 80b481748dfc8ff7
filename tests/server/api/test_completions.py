"""POST /v1/completions, in memory."""

import pytest
from api_server import BASE, REPLY, Api, events, tiny_text
from fake_engine import logprobs_of

ROUTE = "/v1/completions"


async def complete(api: Api, **fields: object) -> dict:
    async with api.client() as client:
        answer = await client.post(ROUTE, json={"model": BASE, "max_tokens": 99, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stream(api: Api, **fields: object) -> list:
    async with api.client() as client:
        body = {"model": BASE, "max_tokens": 99, "stream": True, **fields}
        answer = await client.post(ROUTE, json=body)
    assert answer.status_code == 200, answer.text
    return events(answer.text)


async def test_a_whole_answer_has_openais_fields(api: Api) -> None:
    answer = await complete(api, prompt="Say hello")
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {"index": 0, "text": REPLY, "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer["usage"]["prompt_tokens"] == len(tiny_text().encode("Say hello"))


async def test_sixteen_tokens_are_the_default(api: Api) -> None:
    await complete(api, prompt="x", max_tokens=None)
    assert api.engine.requests[0].sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([7, 8, 9], [(7, 8, 9)]),
        ([[7, 8], [9]], [(7, 8), (9,)]),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_all_four_shapes_of_prompts(
    api: Api, prompt: object, expected: list, streams: bool
) -> None:
    tokens = [tuple(tiny_text().encode(p)) if isinstance(p, str) else p for p in expected]
    if streams:
        chunks = await stream(api, prompt=prompt)
        got = dict.fromkeys(range(len(expected)), "")
        for chunk in chunks[:-1]:
            (choice,) = chunk["choices"]
            got[choice["index"]] += choice["text"]
        assert got == dict.fromkeys(range(len(expected)), REPLY)
    else:
        answer = await complete(api, prompt=prompt)
        assert [choice["text"] for choice in answer["choices"]] == [REPLY] * len(expected)
        assert answer["usage"]["prompt_tokens"] == sum(map(len, tokens))
    assert [request.prompt for request in api.engine.requests] == tokens


async def test_choices_are_numbered_by_prompt_then_by_child(api: Api) -> None:
    answer = await complete(api, prompt=["a", "b"], n=2, return_token_ids=True)
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    prompts = [tiny_text().encode(p) for p in "aabb"]
    assert [choice["prompt_token_ids"] for choice in choices] == prompts


@pytest.mark.parametrize("streams", [False, True])
async def test_echo_puts_the_prompt_first(api: Api, streams: bool) -> None:
    if streams:
        chunks = await stream(api, prompt=["ab ", "c"], echo=True)
        text = "".join(
            c["choices"][0]["text"] for c in chunks[:-1] if c["choices"][0]["index"] == 0
        )
    else:
        text = (await complete(api, prompt=["ab ", "c"], echo=True))["choices"][0]["text"]
    assert text == "ab " + REPLY


async def test_echo_of_token_ids_is_their_text(api: Api) -> None:
    answer = await complete(api, prompt=tiny_text().encode("本 x"), echo=True)
    assert answer["choices"][0]["text"] == "本 x" + REPLY


async def test_logprobs_have_offsets_into_the_text(api: Api) -> None:
    choice = (await complete(api, prompt="x", logprobs=2, max_tokens=6))["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [-0.5] * 6
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        whole = not token.startswith("bytes:")
        assert choice["text"][offset:].startswith(token if whole else "\ufffd")


@pytest.mark.parametrize("streams", [False, True])
async def test_echo_with_logprobs_scores_the_prompt(api: Api, streams: bool) -> None:
    prompt = tiny_text().encode("what then")
    fields = {"prompt": "what then", "echo": True, "logprobs": 1, "max_tokens": 2}
    if streams:
        parts = [c["choices"][0]["logprobs"] for c in (await stream(api, **fields))[:-1]]
        logprobs = {key: [x for part in parts for x in part[key]] for key in parts[0]}
    else:
        logprobs = (await complete(api, **fields))["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [None] + [-0.5] * (len(prompt) + 1)
    assert logprobs["top_logprobs"][0] is None
    assert "".join(logprobs["tokens"]) == "what then" + REPLY[:3]
    assert logprobs["text_offset"][len(prompt)] == len("what then")
    assert api.engine.requests[0].sampling.prompt_logprobs == 1


async def test_scoring_without_an_answer(api: Api) -> None:
    answer = await complete(api, prompt=[7, 8, 9], echo=True, logprobs=1, max_tokens=0)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == 3
    assert answer["usage"]["completion_tokens"] == 0
    assert logprobs_of(8, 1).logprob == choice["logprobs"]["token_logprobs"][1]


@pytest.mark.parametrize("streams", [False, True])
async def test_token_ids_on_request(api: Api, streams: bool) -> None:
    reply = [*tiny_text().encode(REPLY), 2]
    if streams:
        choices = [
            c["choices"][0] for c in (await stream(api, prompt="a", return_token_ids=True))[:-1]
        ]
        assert [t for choice in choices for t in choice["token_ids"]] == reply
        assert [c.get("prompt_token_ids") for c in choices][:2] == [tiny_text().encode("a"), None]
    else:
        choice = (await complete(api, prompt="a", return_token_ids=True))["choices"][0]
        assert choice["token_ids"] == reply


REFUSED = [
    ({}, "invalid_parameter", "prompt"),
    ({"prompt": []}, "invalid_parameter", "prompt"),
    ({"prompt": [[]]}, "invalid_parameter", "prompt"),
    ({"prompt": ["a", 1]}, "invalid_parameter", "prompt"),
    ({"prompt": [1.5]}, "invalid_parameter", "prompt"),
    ({"prompt": [True]}, "invalid_parameter", "prompt"),
    ({"prompt": {"a": 1}}, "invalid_parameter", "prompt"),
    ({"prompt": ""}, "invalid_parameter", "prompt"),
    ({"prompt": [512]}, "invalid_parameter", "prompt"),
    ({"prompt": [-1]}, "invalid_parameter", "prompt"),
    ({"prompt": "x", "suffix": "y"}, "unsupported_parameter", "suffix"),
    ({"prompt": "x", "best_of": 2}, "unsupported_parameter", "best_of"),
    ({"prompt": "x", "messages": []}, "unsupported_parameter", "messages"),
    ({"prompt": "x", "logprobs": 21}, "invalid_parameter", "logprobs"),
    ({"prompt": "x", "logprobs": True}, "invalid_parameter", "logprobs"),
    ({"prompt": [7] * 256}, "context_length_exceeded", "prompt"),
    ({"prompt": [7] * 250, "max_tokens": 7}, "context_length_exceeded", "prompt"),
    ({"prompt": [[7], [7] * 250], "max_tokens": 7}, "context_length_exceeded", "prompt"),
]


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED)
async def test_what_is_wrong_is_named(api: Api, fields: dict, code: str, param: str) -> None:
    async with api.client() as client:
        answer = await client.post(ROUTE, json=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error
    assert not api.engine.requests


async def test_an_adapters_virtual_tokens_count_against_the_context_only(api: Api) -> None:
    api.engine.virtual_tokens = 100
    await api.add("prompted")
    async with api.client() as client:
        body: dict = {"model": "prompted", "prompt": [7] * 150, "max_tokens": 6}
        fits = await client.post("/v1/completions", json=body)
        long = await client.post("/v1/completions", json=body | {"max_tokens": 7})
        base = await client.post("/v1/completions", json=body | {"model": BASE, "max_tokens": 106})
        told = await client.post("/tokenize", json={"model": "prompted", "prompt": "hi"})
    assert fits.json()["usage"]["prompt_tokens"] == 150
    assert long.json()["error"]["code"] == "context_length_exceeded"
    assert base.status_code == 200
    assert told.json()["max_model_len"] == 156


async def test_the_default_length_shrinks_to_what_the_context_leaves(api: Api) -> None:
    await complete(api, prompt=[7] * 250, max_tokens=None)
    assert api.engine.requests[0].sampling.max_tokens == 6
