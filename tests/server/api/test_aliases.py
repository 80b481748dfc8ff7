"""/v1/aliases, and what an alias does to requests: splits, promotion, rollback, guards."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest
from api_server import BASE, MESSAGES, Api
from api_server import api as make_api

from weft.server.tenants import DEFAULT_TENANT

LIVE = "/v1/aliases/live"


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def ask(client: httpx.AsyncClient, model: str, **body: object) -> httpx.Response:
    answer = await client.post(
        "/v1/chat/completions", json={"model": model, "messages": MESSAGES, **body}
    )
    assert answer.status_code == 200, answer.text
    return answer


@pytest.fixture
async def digests(api: Api) -> list[str]:
    """Of pirate@1 and pirate@2."""
    return [await api.add("pirate", seed=seed) for seed in (1, 2)]


async def test_an_alias_answers_with_what_it_leads_to(api: Api, digests: list[str]) -> None:
    async with api.client() as client:
        made = await client.put(LIVE, json={"targets": {"pirate@1": 100}})
        assert made.status_code == 200, made.text
        answer = await ask(client, "live")
        shown = (await client.get(LIVE)).json()
    assert answer.headers["x-adapter-id"] == "pirate@1"
    assert answer.headers["x-adapter-digest"] == digests[0]
    assert digests[0][:10] in answer.json()["system_fingerprint"]
    assert answer.json()["model"] == "live"
    assert shown == made.json()
    assert (shown["targets"], shown["previous"]) == ({"pirate@1": 100}, None)
    assert made.headers["etag"] == f'"{shown["digest"]}"'


async def test_the_card_of_an_alias_is_that_of_each_version_it_can_lead_to(
    api: Api, digests: list[str]
) -> None:
    async with api.client() as client:
        await client.put("/v1/aliases/canary", json={"targets": {"pirate": 1}})
        await client.put(LIVE, json={"targets": {"pirate@1": 60, "canary": 40}})
        alias = (await client.get("/v1/adapters/live")).json()
        card = (await client.get("/v1/adapters/pirate")).json()
    assert (alias["object"], alias["name"]) == ("alias", "live")
    assert [(end["id"], end["digest"]) for end in alias["ends"]] == [
        ("pirate@1", digests[0]),
        ("pirate@2", digests[1]),
    ]
    assert alias["ends"][1].items() <= card.items()
    assert alias["ends"][1]["report"]["method"] == card["method"]


async def test_a_split_sticks_to_the_user_and_is_free_without(api: Api, digests: list[str]) -> None:
    async with api.client() as client:
        await client.put(LIVE, json={"targets": {"pirate@1": 60, "pirate@2": 40}})
        seen: dict[str, set[str]] = {}
        for user in map(str, range(12)):
            for _ in range(2):
                answer = await ask(client, "live", user=user)
                seen.setdefault(user, set()).add(answer.headers["x-adapter-digest"])
        assert all(len(found) == 1 for found in seen.values())
        assert {next(iter(found)) for found in seen.values()} == set(digests)
        free = Counter([(await ask(client, "live")).headers["x-adapter-id"] for _ in range(40)])
    assert free.keys() == {"pirate@1", "pirate@2"}


async def test_children_and_prompts_of_a_request_go_one_way(api: Api, digests: list[str]) -> None:
    async with api.client() as client:
        await client.put(LIVE, json={"targets": {"pirate@1": 50, "pirate@2": 50}})
        for _ in range(8):
            body = {"model": "live", "prompt": ["a", "b"], "n": 2}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
            one, other = api.engine.requests[-2:]
            assert one.blend == other.blend


async def test_promotion_and_rollback_are_one_call(api: Api, digests: list[str]) -> None:
    async with api.client() as client:
        await client.put("/v1/aliases/stable", json={"targets": {"pirate@1": 1}})
        await client.put("/v1/aliases/canary", json={"targets": {"pirate@2": 1}})
        await client.put(LIVE, json={"targets": {"stable": 95, "canary": 5}})
        promoted = await client.post(LIVE + "/promote", json={"target": "canary"})
        assert promoted.json()["targets"] == {"canary": 100}
        found = {(await ask(client, "live")).headers["x-adapter-id"] for _ in range(10)}
        assert found == {"pirate@2"}
        back = await client.post(LIVE + "/rollback")
        assert back.json()["targets"] == {"stable": 95, "canary": 5}
        assert back.json()["previous"] == {"canary": 100}


async def test_aliases_are_listed_where_adapters_and_models_are(
    api: Api, digests: list[str]
) -> None:
    async with api.client() as client:
        await client.put(LIVE, json={"targets": {"pirate@1": 95, "pirate@2": 5}})
        await client.put("/v1/aliases/fixed", json={"targets": {"pirate@1": 1}})
        listed = (await client.get("/v1/aliases")).json()["data"]
        assert [alias["name"] for alias in listed] == ["fixed", "live"]
        shown = (await client.get("/v1/adapters/pirate")).json()
        assert shown["aliases"] == [
            {"alias": "live", "target": "pirate@1", "weight": 95},
            {"alias": "live", "target": "pirate@2", "weight": 5},
            {"alias": "fixed", "target": "pirate@1", "weight": 1},
        ]
        assert [v["current"] for v in shown["versions"]] == [False, True]
        models = (await client.get("/v1/models")).json()["data"]
        assert {m["id"]: m["root"] for m in models[1:]} == {
            "pirate": digests[1],
            "fixed": digests[0],
            "live": None,
        }
        for model in models:
            assert (await client.get(f"/v1/models/{model['id']}")).json() == model
            await ask(client, model["id"])


async def test_a_blend_may_name_aliases(api: Api, digests: list[str]) -> None:
    other = await api.add("poet", seed=3)
    async with api.client() as client:
        await client.put(LIVE, json={"targets": {"pirate@1": 1}})
        answer = await ask(client, "live:0.7,poet:0.3")
    assert answer.headers["x-adapter-id"] == "pirate@1:0.7,poet@1:0.3"
    assert [part.digest for part in api.engine.requests[-1].blend] == [digests[0], other]


async def test_if_match_guards_every_change(api: Api, digests: list[str]) -> None:
    stale = {"If-Match": '"' + "0" * 64 + '"'}
    async with api.client() as client:
        made = await client.put(LIVE, json={"targets": {"pirate": 1}})
        pirate = "/v1/adapters/pirate"
        calls = [
            ("PUT", LIVE, {"targets": {"pirate@1": 1}}),
            ("POST", LIVE + "/promote", {"target": "pirate"}),
            ("POST", LIVE + "/rollback", None),
            ("DELETE", LIVE, None),
            ("POST", pirate + "/rollback", None),
            ("POST", pirate + "/pin", None),
            ("POST", pirate + "/unpin", None),
            ("DELETE", pirate, None),
            ("PUT", pirate, {"path": str(api.folder(9))}),
            (
                "POST",
                "/v1/load_lora_adapter",
                {"lora_name": "pirate", "lora_path": str(api.folder(9)), "load_inplace": True},
            ),
            ("POST", "/v1/unload_lora_adapter", {"lora_name": "pirate"}),
        ]
        before = (await client.get(pirate)).json(), (await client.get(LIVE)).json()
        for method, path, body in calls:
            answer = await client.request(method, path, json=body, headers=stale)
            assert code_of(answer) == (409, "version_conflict"), (method, path)
        assert before == ((await client.get(pirate)).json(), (await client.get(LIVE)).json())
        guard = {"If-Match": made.headers["etag"]}
        assert (await client.delete(LIVE, headers=guard)).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "targets"),
        ({"targets": {}}, "targets"),
        ({"targets": {"nobody": 1}}, "targets"),
        ({"targets": {"pirate@9": 1}}, "targets"),
        ({"targets": {"pirate": 0}}, "targets.pirate"),
        ({"targets": {"pirate": "all"}}, "targets.pirate"),
        ({"targets": {"../x": 1}}, "targets"),
        ({"targets": {"pirate": 1}, "sticky": True}, "sticky"),
    ],
)
async def test_a_bad_alias_is_a_400_that_names_the_field(
    api: Api, digests: list[str], body: dict, param: str
) -> None:
    async with api.client() as client:
        answer = await client.put(LIVE, json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert (await client.get(LIVE)).status_code == 404


async def test_names_are_one_space(api: Api, digests: list[str]) -> None:
    async with api.client() as client:
        await client.put(LIVE, json={"targets": {"pirate": 1}})
        taken = await client.put("/v1/adapters/live", json={"path": str(api.folder(5))})
        assert code_of(taken) == (400, "invalid_parameter")
        for name in (BASE, "pirate", "a b"):
            answer = await client.put(f"/v1/aliases/{name}", json={"targets": {"pirate": 1}})
            assert code_of(answer) == (400, "invalid_parameter"), name
        used = await client.delete("/v1/adapters/pirate")
        assert code_of(used) == (409, "adapter_in_use")
        assert "'live'" in used.json()["error"]["message"]
        await client.delete(LIVE)
        assert (await client.delete("/v1/adapters/pirate")).status_code == 200


async def test_runtime_changes_that_are_off_are_off_for_aliases(tmp_path: Path) -> None:
    with make_api(tmp_path, allow_runtime_adapters=False) as api:
        await api.add("pirate")
        async with api.client() as client:
            answer = await client.put(LIVE, json={"targets": {"pirate": 1}})
            assert code_of(answer) == (403, "adapter_loading_disabled")
            assert (await client.get("/v1/aliases")).json()["data"] == []


async def test_running_requests_keep_what_they_began_with(api: Api, digests: list[str]) -> None:
    gate = asyncio.Event()
    async with api.client() as client:
        await client.put(LIVE, json={"targets": {"pirate@1": 1}})
        api.engine.pace = gate.wait
        running = asyncio.create_task(ask(client, "live"))
        await api.engine.until(lambda: bool(api.engine.requests))
        await client.put(LIVE, json={"targets": {"pirate@2": 1}})
        gate.set()
        assert (await running).headers["x-adapter-digest"] == digests[0]
        assert (await ask(client, "live")).headers["x-adapter-digest"] == digests[1]


async def test_a_version_can_be_rolled_back_to(api: Api) -> None:
    first, *_ = [await api.add("pirate", seed=seed) for seed in (1, 2, 3)]
    async with api.client() as client:
        back = await client.post("/v1/adapters/pirate/rollback?version=1")
        assert back.json()["digest"] == first
        answer = await client.post("/v1/adapters/pirate/rollback?version=9")
        assert code_of(answer) == (404, "model_not_found")


async def test_old_versions_leave_by_the_rule(tmp_path: Path) -> None:
    with make_api(tmp_path, keep_versions=2) as api:
        digests = [await api.add("pirate", seed=seed) for seed in (1, 2)]
        async with api.client() as client:
            await client.put(LIVE, json={"targets": {"pirate@1": 1}})
            digests += [await api.add("pirate", seed=seed) for seed in (3, 4, 5)]
            shown = (await client.get("/v1/adapters/pirate")).json()["versions"]
            assert [version["version"] for version in shown] == [1, 4, 5]
            assert (await ask(client, "live")).headers["x-adapter-id"] == "pirate@1"
        assert api.engine.loaded == {digests[0], digests[3], digests[4]}
        assert [v.version for v in api.registry.versions(DEFAULT_TENANT, "pirate")] == [1, 4, 5]
        api.check()


async def test_a_rule_that_was_tightened_is_applied_to_all_names(tmp_path: Path) -> None:
    with make_api(tmp_path) as api:
        for name in ("pirate", "poet"):
            for seed in (1, 2, 3):
                await api.add(name, seed=seed)
    with make_api(tmp_path, keep_versions=1) as api:
        await api.services.library.prune_all()
        for name in ("pirate", "poet"):
            assert [v.version for v in api.registry.versions(DEFAULT_TENANT, name)] == [3]
        assert len(list(api.registry.arrivals().glob("??/*"))) == 1
        api.check()


async def test_an_upload_succeeds_though_old_versions_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_api(tmp_path, keep_versions=1) as api:
        await api.add("pirate", seed=1)

        def broken(*_: object) -> None:
            raise OSError(5, "broken")

        monkeypatch.setattr(api.registry, "prune", broken)
        async with api.client() as client:
            body = {"path": str(api.folder(2))}
            assert (await client.put("/v1/adapters/pirate", json=body)).status_code == 200
            assert (await client.get("/v1/adapters/pirate")).json()["version"] == 2
