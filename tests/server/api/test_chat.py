"""POST /v1/chat/completions, in memory."""

import pytest
from api_server import BASE, MESSAGES, REPLY, Api, events, tiny_text
from fake_engine import BASE_DIGEST

ROUTE = "/v1/chat/completions"


async def chat(api: Api, **fields: object) -> dict:
    async with api.client() as client:
        answer = await client.post(ROUTE, json={"model": BASE, "messages": MESSAGES, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stream(api: Api, **fields: object) -> list:
    body = {"model": BASE, "messages": MESSAGES, "stream": True, **fields}
    async with api.client() as client:
        answer = await client.post(ROUTE, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events(answer.text)


def texts(chunks: list, index: int = 0) -> str:
    deltas = [c["choices"][0] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join(d["delta"].get("content", "") for d in deltas if d["index"] == index)


async def test_a_whole_answer_has_openais_fields(api: Api) -> None:
    answer = await chat(api)
    prompt = tiny_text().encode_chat(MESSAGES)
    reply = tiny_text().encode(REPLY)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == BASE
    assert answer["system_fingerprint"] == "fp_" + BASE_DIGEST[:10]
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": REPLY, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(reply) + 1,
        "total_tokens": len(prompt) + len(reply) + 1,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


async def test_the_engine_gets_the_rendered_prompt_and_openais_defaults(api: Api) -> None:
    await chat(api)
    (request,) = api.engine.requests
    assert list(request.prompt) == tiny_text().encode_chat(MESSAGES)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert sampling.max_tokens == api.engine.max_model_len - len(request.prompt)
    assert request.blend == ()


async def test_every_sampling_field_reaches_the_engine(api: Api) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.2,
        "repetition_penalty": 1.2,
        "seed": 11,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [9, 8],
    }
    await chat(api, **fields, max_completion_tokens=5, logit_bias={"3": -100, "4": 1.5})
    sampling = api.engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == fields | {"stop_token_ids": (9, 8)}
    assert sampling.max_tokens == 5
    assert sampling.logit_bias == {3: -100.0, 4: 1.5}


async def test_a_stream_opens_with_the_role_and_ends_with_done(api: Api) -> None:
    chunks = await stream(api)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert texts(chunks) == REPLY
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1] == "[DONE]"
    assert {c["object"] for c in chunks[:-1]} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks[:-1]}) == 1
    assert all("usage" not in c for c in chunks[:-1])
    assert "\ufffd" not in texts(chunks)


async def test_include_usage_adds_one_last_chunk(api: Api) -> None:
    whole = await chat(api)
    chunks = await stream(api, stream_options={"include_usage": True})
    assert all(c["usage"] is None for c in chunks[:-2])
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"] == whole["usage"]


async def test_continuous_usage_grows_chunk_by_chunk(api: Api) -> None:
    chunks = await stream(api, stream_options={"continuous_usage_stats": True})
    counts = [c["usage"]["completion_tokens"] for c in chunks[:-1]]
    assert counts == sorted(counts)
    assert counts[-1] == len(tiny_text().encode(REPLY)) + 1


@pytest.mark.parametrize("streams", [False, True])
async def test_n_choices_share_one_prompt(api: Api, streams: bool) -> None:
    if streams:
        chunks = await stream(api, n=3, stream_options={"include_usage": True})
        assert [texts(chunks, index) for index in range(3)] == [REPLY] * 3
        usage = chunks[-2]["usage"]
    else:
        answer = await chat(api, n=3)
        assert [c["message"]["content"] for c in answer["choices"]] == [REPLY] * 3
        usage = answer["usage"]
    assert usage["completion_tokens"] == 3 * (len(tiny_text().encode(REPLY)) + 1)
    assert usage["prompt_tokens"] == len(tiny_text().encode_chat(MESSAGES))
    assert api.engine.requests[0].n == 3


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("stop", ["本 🙂", ["zzz", "本 🙂"], ["本 🙂 w", "本 🙂"]])
async def test_a_stop_string_ends_the_answer_before_it(
    api: Api, streams: bool, stop: str | list[str]
) -> None:
    if streams:
        chunks = await stream(api, stop=stop, stream_options={"include_usage": True})
        text, usage = texts(chunks), chunks[-2]["usage"]
        assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
    else:
        answer = await chat(api, stop=stop)
        text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
        assert answer["choices"][0]["finish_reason"] == "stop"
    assert text == "Hello, 日"
    needed = len(tiny_text().encode("Hello, 日本 🙂"))
    assert usage["completion_tokens"] == needed


async def test_a_stop_string_in_one_choice_leaves_the_others_running(api: Api) -> None:
    answer = await chat(api, n=2, stop="wörld", max_tokens=200)
    assert [c["message"]["content"] for c in answer["choices"]] == ["Hello, 日本 🙂 "] * 2


async def test_text_held_back_for_a_stop_string_comes_out_at_the_end(api: Api) -> None:
    chunks = await stream(api, stop="!?")
    assert texts(chunks) == REPLY


async def test_min_tokens_come_before_any_stop_string(api: Api) -> None:
    count = len(tiny_text().encode("Hello, 日"))
    answer = await chat(api, stop="H", min_tokens=count)
    assert answer["choices"][0]["message"]["content"] == REPLY


async def test_a_stop_token_is_counted_but_not_shown(api: Api) -> None:
    reply = tiny_text().encode(REPLY)
    answer = await chat(api, stop_token_ids=[reply[3]])
    choice = answer["choices"][0]
    assert choice["message"]["content"] == tiny_text().decode(reply[:3])
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 4


async def test_max_tokens_end_with_length_and_half_a_character_as_replacement(api: Api) -> None:
    reply = tiny_text().encode(REPLY)
    cut = len(tiny_text().encode("Hello, ")) + 1
    answer = await chat(api, max_tokens=cut)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"] == tiny_text().decode(reply[:cut])
    assert texts(await stream(api, max_tokens=cut)) == tiny_text().decode(reply[:cut])


async def test_logprobs_have_bytes_and_alternatives(api: Api) -> None:
    answer = await chat(api, logprobs=True, top_logprobs=2, max_tokens=9)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 9
    assert (
        bytes(b for entry in content for b in entry["bytes"]).decode(errors="ignore")
        == REPLY[: len(bytes(b for e in content for b in e["bytes"]).decode(errors="ignore"))]
    )
    assert content[0]["logprob"] == -0.5
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * 9
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]


async def test_logprobs_of_a_stream_cover_every_token(api: Api) -> None:
    chunks = await stream(api, logprobs=True)
    found = [c["choices"][0]["logprobs"] for c in chunks[:-1]]
    entries = [entry for logprobs in found if logprobs for entry in logprobs["content"]]
    assert len(entries) == len(tiny_text().encode(REPLY)) + 1
    assert entries[-1]["token"] == "<eos>"


@pytest.mark.parametrize("streams", [False, True])
async def test_token_ids_on_request(api: Api, streams: bool) -> None:
    reply = [*tiny_text().encode(REPLY), 2]
    prompt = tiny_text().encode_chat(MESSAGES)
    if streams:
        chunks = await stream(api, return_token_ids=True)
        ids = [c["choices"][0].get("token_ids", []) for c in chunks[:-1]]
        assert [token for part in ids for token in part] == reply
        assert chunks[0]["prompt_token_ids"] == prompt
    else:
        answer = await chat(api, return_token_ids=True)
        assert answer["choices"][0]["token_ids"] == reply
        assert answer["prompt_token_ids"] == prompt


async def test_text_parts_and_a_developer_message_are_rendered(api: Api) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "sam"},
    ]
    await chat(api, messages=messages)
    prompt = tiny_text().decode(api.engine.requests[0].prompt, skip_special_tokens=False)
    assert "<|im_start|>system\nbe brief<|im_end|>" in prompt
    assert "<|im_start|>user\none\ntwo<|im_end|>" in prompt


async def test_an_answers_own_message_can_be_sent_back(api: Api) -> None:
    message = (await chat(api))["choices"][0]["message"]
    message |= {"annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    await chat(api, messages=[*MESSAGES, message, *MESSAGES])


HARMLESS = {
    "user": "u-1",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "audio": None,
    "temperature": None,
    "max_tokens": None,
    "stop": None,
    "stream_options": None,
}


async def test_fields_that_ask_for_nothing_are_ignored(api: Api) -> None:
    answer = await chat(api, **HARMLESS)
    assert answer["choices"][0]["message"]["content"] == REPLY


REFUSED = [
    ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
    ({"store": True}, "unsupported_parameter", "store"),
    ({"nonsense": 1}, "unsupported_parameter", "nonsense"),
    ({"nonsense": None}, "unsupported_parameter", "nonsense"),
    ({"chat_template": "{{ 1 }}"}, "unsupported_parameter", "chat_template"),
    ({"chat_template_kwargs": {}}, "unsupported_parameter", "chat_template_kwargs"),
    ({"temperature": "1"}, "invalid_parameter", "temperature"),
    ({"temperature": 2.5}, "invalid_parameter", "temperature"),
    ({"temperature": True}, "invalid_parameter", "temperature"),
    ({"top_p": -0.1}, "invalid_parameter", "top_p"),
    ({"n": 9}, "invalid_parameter", "n"),
    ({"n": 0}, "invalid_parameter", "n"),
    ({"n": 1.5}, "invalid_parameter", "n"),
    ({"max_tokens": 0}, "invalid_parameter", "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "invalid_parameter", "max_tokens"),
    ({"max_tokens": 5, "min_tokens": 6}, "invalid_parameter", "min_tokens"),
    ({"max_tokens": 10**9}, "context_length_exceeded", "messages"),
    ({"logit_bias": {"x": 1}}, "invalid_parameter", "logit_bias"),
    ({"logit_bias": {"512": 1}}, "invalid_parameter", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "invalid_parameter", "logit_bias.1"),
    ({"stop_token_ids": [512]}, "invalid_parameter", "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "invalid_parameter", "stop_token_ids[0]"),
    ({"stop": [""]}, "invalid_parameter", "stop[0]"),
    ({"stop": ["x"] * 17}, "invalid_parameter", "stop"),
    ({"stop": 5}, "invalid_parameter", "stop"),
    ({"top_logprobs": 3}, "invalid_parameter", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_parameter", "top_logprobs"),
    ({"stream_options": {"x": 1}}, "unsupported_parameter", "stream_options.x"),
    ({"stream_options": {}}, "invalid_parameter", "stream_options"),
    ({"messages": []}, "invalid_parameter", "messages"),
    ({"messages": "hi"}, "invalid_parameter", "messages"),
    ({"messages": [{"role": "user"}]}, "invalid_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_parameter", "messages[0].content"),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "unsupported_parameter",
        "messages[0].role",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "unsupported_parameter",
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "invalid_parameter",
        "messages[0].content[0].text",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        "unsupported_parameter",
        "messages[0].tool_calls",
    ),
]


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED)
async def test_what_is_wrong_is_named(api: Api, fields: dict, code: str, param: str) -> None:
    async with api.client() as client:
        answer = await client.post(ROUTE, json={"messages": MESSAGES, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error
    assert error["type"] == "invalid_request_error"
    assert not api.engine.requests
