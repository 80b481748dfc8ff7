"""Choosing the adapter: headers, `model`, versions, conflicts, and what nobody may tell apart."""

import httpx
import pytest
from api_server import BASE, MESSAGES, REPLY, Api, tiny_text
from fake_engine import BASE_DIGEST

from weft.adapters.blend import Part, digest_of
from weft.adapters.tenancy import TenantContext

OTHER = TenantContext("other")
ALIAS = "X-Amzn-SageMaker-Adapter-Identifier"


async def ask(api: Api, model: str | None = None, **headers: str) -> httpx.Response:
    body = {"messages": MESSAGES} | ({"model": model} if model else {})
    async with api.client() as client:
        return await client.post("/v1/chat/completions", json=body, headers=headers)


@pytest.mark.parametrize("model", [None, BASE, f"/models/{BASE}"])
async def test_the_base_answers_to_its_names_and_to_none(api: Api, model: str | None) -> None:
    answer = await ask(api, model)
    assert answer.headers["x-adapter-id"] == BASE
    assert answer.headers["x-adapter-digest"] == BASE_DIGEST
    assert answer.json()["model"] == BASE
    assert api.engine.requests[0].blend == ()


@pytest.mark.parametrize(
    ("model", "headers"),
    [
        ("pirate", {}),
        (None, {"X-Adapter-ID": "pirate"}),
        (None, {ALIAS: "pirate"}),
        (BASE, {"X-Adapter-ID": "pirate"}),
        ("pirate", {"X-Adapter-ID": "pirate"}),
        ("pirate@1", {}),
        (None, {"x-adapter-id": "pirate@1"}),
    ],
)
async def test_an_adapter_is_chosen_by_header_or_model(
    api: Api, model: str | None, headers: dict[str, str]
) -> None:
    digest = await api.add("pirate")
    api.engine.replies[digest] = tiny_text().encode("arr")
    answer = await ask(api, model, **headers)
    assert answer.json()["choices"][0]["message"]["content"] == "arr"
    assert answer.headers["x-adapter-id"] == "pirate@1"
    assert answer.headers["x-adapter-digest"] == digest
    assert answer.json()["system_fingerprint"] == f"fp_{BASE_DIGEST[:10]}_{digest[:10]}"
    assert api.engine.requests[0].blend == (Part(digest),)


async def test_an_older_version_can_be_named(api: Api) -> None:
    old = await api.add("pirate", seed=1)
    new = await api.add("pirate", seed=2)
    assert (await ask(api, "pirate@1")).headers["x-adapter-digest"] == old
    assert (await ask(api, "pirate")).headers["x-adapter-digest"] == new
    assert (await ask(api, "pirate@2")).headers["x-adapter-id"] == "pirate@2"


@pytest.mark.parametrize(
    ("model", "header"), [("pirate", "json"), ("pirate", BASE), ("pirate", "pirate@1")]
)
async def test_two_different_choices_are_a_conflict(api: Api, model: str, header: str) -> None:
    await api.add("pirate")
    answer = await ask(api, model, **{"X-Adapter-ID": header})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "adapter_conflict")


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "pirate@9",
        "pirate@0",
        "pirate@",
        "@1",
        "Pirate",
        " pirate",
        "a b",
        "../x",
        "x" * 999,
    ],
)
async def test_an_unknown_name_is_404_and_never_the_base(api: Api, name: str) -> None:
    await api.add("pirate")
    for answer in (
        await ask(api, name),
        await ask(api, None, **{"X-Adapter-ID": name.strip() or "-"}),
    ):
        if name.strip() == "pirate":
            continue
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert all(request.blend for request in api.engine.requests)


async def test_an_empty_header_is_not_the_base(api: Api) -> None:
    assert (await ask(api, None, **{"X-Adapter-ID": ""})).status_code == 404


async def test_a_foreign_adapter_looks_like_one_that_does_not_exist(api: Api) -> None:
    await api.add("secret", tenant=OTHER)
    foreign, missing = await ask(api, "secret"), await ask(api, "absent")
    assert foreign.status_code == missing.status_code == 404
    assert foreign.text.replace("secret", "absent") == missing.text
    same = foreign.headers.keys() - {"x-request-id"}
    assert {n: foreign.headers[n] for n in same} == {n: missing.headers[n] for n in same}


async def test_a_damaged_version_is_withdrawn_until_it_is_put_again(api: Api) -> None:
    await api.add("pirate")
    api.engine.error, api.engine.break_after = "adapter_corrupt", 0
    assert (await ask(api, "pirate")).json()["error"]["code"] == "adapter_corrupt"
    api.engine.error = api.engine.break_after = None
    assert (await ask(api, "pirate")).status_code == 503
    assert (await ask(api, BASE)).json()["choices"][0]["message"]["content"] == REPLY
    await api.add("pirate")
    assert (await ask(api, "pirate")).status_code == 200


# ---- several adapters


@pytest.mark.parametrize("by_header", [True, False])
async def test_several_adapters_with_weights(api: Api, by_header: bool) -> None:
    one, two = await api.add("pirate", seed=1), await api.add("poet", seed=2)
    words = "pirate:0.7,poet@1:0.3"
    answer = await (ask(api, **{"X-Adapter-ID": words}) if by_header else ask(api, words))
    assert answer.status_code == 200, answer.text
    blend = (Part(one, 0.7), Part(two, 0.3))
    assert api.engine.requests[0].blend == blend
    assert answer.headers["x-adapter-id"] == "pirate@1:0.7,poet@1:0.3"
    assert answer.headers["x-adapter-digest"] == digest_of(blend)
    assert answer.json()["model"] == words
    counts = {label.adapter: c.requests for label, c in api.services.metrics.adapters.items()}
    assert counts == {"pirate": 1, "poet": 1}
    api.check()


async def test_a_blend_names_what_is_unknown_or_does_not_fit_and_holds_nothing(api: Api) -> None:
    await api.add("pirate", seed=1)
    unknown = await ask(api, "pirate:0.5,nobody:0.5")
    assert unknown.json()["error"]["code"] == "model_not_found"
    api.engine.virtual_tokens = 5
    await api.add("one", seed=2)
    await api.add("two", seed=3)
    both = await ask(api, "one,two")
    assert both.status_code == 400
    assert "one@1 and two@1" in both.json()["error"]["message"]
    assert api.engine.requests == []
    api.check()


async def test_one_adapter_of_a_blend_as_it_is_answers_as_alone(api: Api) -> None:
    digest = await api.add("pirate")
    answer = await ask(api, "pirate:1")
    assert answer.headers["x-adapter-id"] == "pirate@1"
    assert answer.headers["x-adapter-digest"] == digest
