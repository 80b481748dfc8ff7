"""Prometheus' view: names, numbers, and that labels come from registered adapters only."""

import pytest
from api_server import BASE, MESSAGES, REPLY, Api, tiny_text
from fake_engine import stats_of
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def samples(api: Api) -> Samples:
    async with api.client() as client:
        text = (await client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def ask(api: Api, model: str = BASE, status: int = 200) -> None:
    async with api.client() as client:
        body = {"model": model, "messages": MESSAGES}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == status


async def test_requests_are_counted_under_vllms_names(api: Api) -> None:
    await ask(api)
    found = await samples(api)
    tokens = len(tiny_text().encode(REPLY)) + 1
    base = {"model_name": BASE}
    assert value(found, "vllm:generation_tokens_total", **base) == tokens
    assert value(found, "vllm:prompt_tokens_total", **base) == len(
        tiny_text().encode_chat(MESSAGES)
    )
    assert value(found, "vllm:time_to_first_token_seconds_count", **base) == 1
    assert value(found, "vllm:inter_token_latency_seconds_count", **base) == tokens - 1
    assert value(found, "vllm:e2e_request_latency_seconds_count", **base) == 1
    route = {"route": "/v1/chat/completions", "method": "POST", "status": "200"}
    assert value(found, "weft_http_answers_total", **route) == 1


async def test_the_engines_own_numbers_are_passed_on(api: Api) -> None:
    numbers = {"running": 3, "waiting": 2, "total_pages": 10, "free_pages": 4, "cached_pages": 1}
    digest = await api.add("pirate")
    api.engine.stats = stats_of({digest: "device"}, **numbers, evictions=5, drafted=40, accepted=30)
    found = await samples(api)
    base = {"model_name": BASE}
    assert value(found, "vllm:num_requests_running", **base) == 3
    assert value(found, "vllm:num_requests_waiting", **base) == 2
    assert value(found, "vllm:kv_cache_usage_perc", **base) == 0.5
    assert value(found, "weft_evictions_total", **base) == 5
    assert value(found, "vllm:spec_decode_num_draft_tokens_total", **base) == 40
    assert value(found, "vllm:spec_decode_num_accepted_tokens_total", **base) == 30
    info = next(labels for name, labels in found if name == "vllm:lora_requests_info")
    assert dict(info) == {
        "max_lora": "4",
        "running_lora_adapters": "pirate",
        "waiting_lora_adapters": "",
    }
    of = {"tenant": "default", "adapter": "pirate"}
    assert value(found, "weft_adapter_tier", **of, tier="device") == 1
    assert value(found, "weft_adapter_tier", **of, tier="disk") == 0
    assert value(found, "weft_adapter_bytes", **of) == 4096
    assert value(found, "weft_adapter_load_seconds", **of) == 0.25


async def test_an_adapters_requests_tokens_and_hits(api: Api) -> None:
    digest = await api.add("pirate")
    await ask(api, "pirate")
    api.engine.stats = stats_of({digest: "device"})
    api.engine.queue_seconds = 2.5
    await ask(api, "pirate")
    api.engine.evictions = {digest: 3, "0" * 64: 5}
    found = await samples(api)
    of = {"tenant": "default", "adapter": "pirate"}
    assert value(found, "weft_adapter_requests_total", **of) == 2
    assert value(found, "weft_adapter_queue_seconds_count", **of) == 2
    assert value(found, "weft_adapter_queue_seconds_sum", **of) == pytest.approx(3.0, abs=0.4)
    assert value(found, "vllm:request_queue_time_seconds_count", model_name=BASE) == 2
    assert value(found, "weft_adapter_evictions_total", **of) == 3
    assert value(found, "weft_adapter_hits_total", **of) == 1
    tokens = len(tiny_text().encode(REPLY)) + 1
    assert value(found, "weft_adapter_generation_tokens_total", **of) == 2 * tokens
    assert value(found, "weft_adapter_time_to_first_token_seconds_count", **of) == 2


async def test_an_adapters_series_go_away_with_it(api: Api) -> None:
    before = {key for key in await samples(api) if "weft_adapter_" in key[0]}
    await api.add("pirate")
    await ask(api, "pirate")
    async with api.client() as client:
        await client.delete("/v1/adapters/pirate")
    after = {key for key in await samples(api) if "weft_adapter_" in key[0]}
    assert after == before


async def test_junk_adds_no_series(api: Api) -> None:
    async def junk(count: int) -> None:
        async with api.client() as client:
            for i in range(count):
                await client.get(f"/v1/junk/{i}")
                await client.get(f"/v1/models/junk-{i}")
                await client.get(f"/v1/adapters/junk-{i}")
                await client.request(f"JUNK{i}", "/v1/models")
                await ask(api, f"junk-{i}", 404)

    await samples(api)
    await junk(1)
    first = set(await samples(api))
    await junk(50)
    assert set(await samples(api)) == first


@pytest.mark.parametrize("status", [400])
async def test_a_refused_request_counts_no_tokens(api: Api, status: int) -> None:
    async with api.client() as client:
        got = await client.post("/v1/completions", json={"prompt": ""})
    assert got.status_code == status
    found = await samples(api)
    assert value(found, "vllm:e2e_request_latency_seconds_count", model_name=BASE) == 0
