"""/v1/models, /tokenize, /detokenize and the routes that tell how the server does."""

import pytest
from api_server import BASE, MESSAGES, Api, tiny_text
from fake_engine import BASE_DIGEST, stats_of
from msgspec import structs


async def test_every_listed_id_can_be_sent_back(api: Api) -> None:
    digest = await api.add("pirate")
    async with api.client() as client:
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [m["id"] for m in listed["data"]] == [BASE, "pirate"]
        base, pirate = listed["data"]
        assert (base["root"], base["parent"]) == (BASE_DIGEST, None)
        assert (pirate["root"], pirate["parent"]) == (digest, BASE)
        for model in listed["data"]:
            assert (await client.get(f"/v1/models/{model['id']}")).json() == model
            body = {"model": model["id"], "messages": MESSAGES}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


async def test_a_clients_own_header_does_not_change_what_a_model_is(api: Api) -> None:
    await api.add("pirate")
    async with api.client(**{"X-Adapter-ID": "pirate"}) as client:
        assert (await client.get(f"/v1/models/{BASE}")).json()["id"] == BASE


async def test_a_model_by_version_and_one_that_is_not_there(api: Api) -> None:
    await api.add("pirate")
    async with api.client() as client:
        assert (await client.get("/v1/models/pirate@1")).json()["id"] == "pirate@1"
        for name in ("nobody", "a/b/c", "pirate@2"):
            answer = await client.get(f"/v1/models/{name}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_failed_adapter_is_not_offered(api: Api) -> None:
    await api.add("pirate")
    with api.registry.lease(api.services.tenants.contexts[0], "pirate") as lease:
        api.registry.withdraw(lease, "damaged")
    async with api.client() as client:
        assert len((await client.get("/v1/models")).json()["data"]) == 1
        shown = (await client.get("/v1/adapters/pirate")).json()
        assert (shown["state"], shown["reason"]) == ("failed", "damaged")


async def test_tokenize_has_vllms_shapes(api: Api) -> None:
    tokens = tiny_text().encode("hello 日")
    async with api.client() as client:
        answer = await client.post("/tokenize", json={"prompt": "hello 日"})
        assert answer.json() == {
            "count": len(tokens),
            "max_model_len": 256,
            "tokens": tokens,
            "token_strs": None,
        }
        body = {"messages": MESSAGES, "return_token_strs": True}
        chat = (await client.post("/tokenize", json=body)).json()
        assert chat["tokens"] == tiny_text().encode_chat(MESSAGES)
        assert chat["token_strs"][0] == "<|im_start|>"
        back = await client.post("/detokenize", json={"tokens": tokens})
        assert back.json() == {"prompt": "hello 日"}


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, 400),
        ("/tokenize", {"prompt": "x", "model": "nobody"}, 404),
        ("/tokenize", {"prompt": "x", "more": 1}, 400),
        ("/detokenize", {"tokens": [512]}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": "x"}, 400),
    ],
)
async def test_tokenize_refuses(api: Api, route: str, body: dict, status: int) -> None:
    async with api.client() as client:
        assert (await client.post(route, json=body)).status_code == status


async def test_ready_follows_the_engine(api: Api) -> None:
    async with api.client() as client:
        assert (await client.get("/ready")).status_code == 200
        api.engine.stats = structs.replace(stats_of({}), broken_invariants=("pages leak",))
        assert (await client.get("/ready")).status_code == 503
        api.engine.stats = None
        api.engine.ready = False
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/version")).json()["version"]
        assert (await client.get("/v1/models")).status_code == 503
        assert (await client.get("/metrics")).status_code == 200


async def test_the_page_is_served(api: Api) -> None:
    async with api.client() as client:
        answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


async def test_openapi_describes_every_body(api: Api) -> None:
    async with api.client() as client:
        document = (await client.get("/openapi.json")).json()
    bodies = [
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for path in document["paths"].values()
        for operation in path.values()
        if "requestBody" in operation
    ]
    assert len(bodies) >= 6
    for reference in bodies:
        assert reference.rpartition("/")[2] in document["components"]["schemas"]
