"""/v1/evaluations over a fake engine."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_server import BASE, Api, tiny_text
from api_server import api as make_api
from fake_engine import FakeEngine
from tenants_files import tenants_file

from weft.adapters.blend import alone
from weft.server.api import evaluations as routes
from weft.server.engine.client import EngineUnavailable
from weft.server.evaluation import evaluations, outcome
from weft.server.tenants import DEFAULT_TENANT

Json = dict[str, Any]
ROUTE = "/v1/evaluations"
EXAMPLES: list[Json] = [
    {"prompt": f"Question {i}?", "completion": " Hello!", "regex": "^H", "json": True}
    for i in range(9)
]
GENERAL = [one | {"general": True, "regex": None, "json": False} for one in EXAMPLES]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    engine = FakeEngine(reply=tuple(tiny_text().encode(" Hello!")), losses={"": 1.0})
    with make_api(tmp_path, engine, max_num_seqs=32) as made:
        yield made
        made.check()


async def post(client: httpx.AsyncClient, **body: Any) -> Json:
    answer = await client.post(ROUTE, json={"examples": EXAMPLES, **body})
    assert answer.status_code == 202, answer.text
    started: Json = answer.json()
    return started


async def ended(api: Api, client: httpx.AsyncClient, identity: str) -> Json:
    """The evaluation once its task is over."""
    task = api.services.evaluations.get(DEFAULT_TENANT, identity).task
    assert task
    await asyncio.wait([task])
    shown: Json = (await client.get(f"{ROUTE}/{identity}")).json()
    return shown


async def test_the_base_and_adapters_are_compared(api: Api) -> None:
    better = await api.add("better", seed=1)
    worse = await api.add("worse", seed=2)
    same = await api.add("same", seed=3)
    api.engine.losses |= {better: 0.5, worse: 2.0, same: 1.0}
    api.engine.replies[worse] = tuple(tiny_text().encode(' {"a": 1}'))
    async with api.client() as client:
        started = await post(client, adapters=["better", "base", "worse@1", BASE, "same"])
        assert started["status"] == "in_progress"
        assert started["progress"] == {"done": 0, "total": 36}
        shown = await ended(api, client, started["id"])
    assert (shown["status"], shown["error"]) == ("completed", None)
    assert shown["progress"] == {"done": 36, "total": 36}
    result = shown["result"]
    assert (result["base"], result["examples"]) == (BASE, {"task": 9, "general": 0})
    found = {model["model"]: model for model in result["models"]}
    verdicts = {name: model["verdict"] for name, model in found.items()}
    assert verdicts == {
        BASE: None,
        "better@1": "helps",
        "worse@1": "harms",
        "same@1": "no difference",
    }
    assert found["worse@1"]["digest"] == worse
    task = found["worse@1"]["task"]
    assert task["loss"]["value"] == pytest.approx(2.0)
    assert task["loss"]["difference"]["value"] == pytest.approx(1.0)
    assert (task["exact_match"]["value"], found[BASE]["task"]["exact_match"]["value"]) == (0, 1)
    assert (task["regex"]["value"], found[BASE]["task"]["regex"]["value"]) == (0, 0)
    assert (task["json"]["value"], found[BASE]["task"]["json"]["value"]) == (1, 0)
    assert len(found["worse@1"]["outcomes"]) == 9


async def test_a_general_set_shows_what_was_forgotten(api: Api) -> None:
    digest = await api.add("pirate")
    api.engine.losses[digest] = 3.0
    async with api.client() as client:
        started = await post(client, adapters=["pirate"], examples=GENERAL)
        shown = await ended(api, client, started["id"])
    model = shown["result"]["models"][1]
    assert (model["verdict"], model["forgets"], model["task"]) == (None, True, None)
    assert model["general"]["exact_match"] is None
    assert not any(request.sampling.max_tokens for request in api.engine.requests)


async def test_requests_are_few_mixed_and_in_the_background(api: Api) -> None:
    digest = await api.add("pirate")
    most = 0

    async def pace() -> None:
        nonlocal most
        most = max(most, len(api.engine.live))
        await asyncio.sleep(0)

    api.engine.pace = pace
    async with api.client() as client:
        started = await post(client, adapters=["pirate"])
        await ended(api, client, started["id"])
    asked = api.engine.requests
    assert most == 8  # a quarter of max_num_seqs
    assert {request.blend for request in asked[:4]} == {(), alone(digest)}
    assert {request.tenant.id for request in asked} == {"default/background"}
    assert {request.tenant.weight for request in asked} == {0.1}


async def test_chats_are_rendered_and_completions_are_scored(api: Api) -> None:
    messages = [{"role": "user", "content": "hi"}]
    example = {"messages": messages, "completion": "Yes"}
    text = tiny_text()
    prompt, completion = text.encode_chat(messages), text.encode("Yes", add_special_tokens=False)
    async with api.client() as client:
        started = await post(client, adapters=["base"], examples=[example])
        shown = await ended(api, client, started["id"])
    score, answer = api.engine.requests
    assert (list(score.prompt), list(answer.prompt)) == (prompt + completion, prompt)
    (found,) = shown["result"]["models"][0]["outcomes"]
    assert found["tokens"] == len(completion)
    assert found["loss"] == pytest.approx(len(completion) * 1.0)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"examples": []}, "examples"),
        ({"adapters": []}, "adapters"),
        ({"examples": [EXAMPLES[0], {"prompt": "a"}]}, "examples[1].completion"),
        ({"examples": [{"completion": "a"}]}, "examples[0].messages"),
        (
            {"examples": [EXAMPLES[0] | {"messages": [{"role": "user", "content": "a"}]}]},
            "examples[0].messages",
        ),
        ({"examples": [EXAMPLES[0] | {"messages": [{"role": "x", "content": "a"}]}]}, None),
        ({"examples": [EXAMPLES[0] | {"prompt": ""}]}, "examples[0].prompt"),
        ({"examples": [EXAMPLES[0] | {"regex": "("}]}, "examples[0].regex"),
        ({"examples": [EXAMPLES[0] | {"json": "yes"}]}, "examples[0].json"),
        ({"examples": [EXAMPLES[0] | {"prompt": "a" * 2000}]}, "examples[0].prompt"),
        ({"seed": -1}, "seed"),
        ({"adapters": ["pirate", "pirate@1"]}, "adapters[1]"),
    ],
)
async def test_wrong_fields_are_named(api: Api, change: Json, param: str | None) -> None:
    await api.add("pirate")
    async with api.client() as client:
        body = {"adapters": ["base"], "examples": EXAMPLES, **change}
        answer = await client.post(ROUTE, json=body)
    assert answer.status_code == 400
    if param:
        assert answer.json()["error"]["param"] == param
    assert not api.engine.requests


async def test_unknown_names(api: Api) -> None:
    async with api.client() as client:
        answer = await client.post(ROUTE, json={"adapters": ["nobody"], "examples": EXAMPLES})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        for method in ("GET", "DELETE"):
            answer = await client.request(method, f"{ROUTE}/eval-0")
            code = answer.json()["error"]["code"]
            assert (answer.status_code, code) == (404, "evaluation_not_found")


async def test_a_tenant_sees_only_its_own(tmp_path: Path) -> None:
    tenants = tenants_file(tmp_path, one="one", two="two")
    with make_api(tmp_path, FakeEngine(reply=(7,)), tenants=tenants) as api:
        async with (
            api.client(Authorization="Bearer one") as one,
            api.client(Authorization="Bearer two") as two,
        ):
            started = await post(one, adapters=["base"])
            assert (await two.get(f"{ROUTE}/{started['id']}")).status_code == 404
            assert (await two.delete(f"{ROUTE}/{started['id']}")).status_code == 404
            assert (await two.get(ROUTE)).json()["data"] == []
            assert len((await one.get(ROUTE)).json()["data"]) == 1
            assert (await one.delete(f"{ROUTE}/{started['id']}")).status_code == 200
        api.check()


async def test_deleting_cancels(api: Api) -> None:
    await api.add("pirate")
    api.engine.pace = asyncio.Event().wait
    async with api.client() as client:
        started = await post(client, adapters=["pirate"])
        await api.engine.until(lambda: bool(api.engine.live))
        deleted = await client.delete(f"{ROUTE}/{started['id']}")
        assert deleted.json() == {"id": started["id"], "object": "evaluation", "deleted": True}
        assert (await client.get(f"{ROUTE}/{started['id']}")).status_code == 404
    api.check()


async def test_few_run_and_few_are_kept(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "MAX_KEPT", 3)
    gate = asyncio.Event()
    api.engine.pace = gate.wait
    async with api.client() as client:
        first = [(await post(client, adapters=["base"]))["id"] for _ in range(2)]
        refused = await client.post(ROUTE, json={"adapters": ["base"], "examples": EXAMPLES})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        gate.set()
        for identity in first:
            await ended(api, client, identity)
        later = []
        for _ in range(2):
            later.append((await post(client, adapters=["base"]))["id"])
            await ended(api, client, later[-1])
        listed = [one["id"] for one in (await client.get(ROUTE)).json()["data"]]
        assert listed == [first[1], *later]


async def test_a_failing_engine_fails_the_evaluation(api: Api) -> None:
    await api.add("pirate")
    api.engine.failure = EngineUnavailable("gone")
    async with api.client() as client:
        started = await post(client, adapters=["pirate"])
        shown = await ended(api, client, started["id"])
    assert (shown["status"], shown["result"]) == ("failed", None)
    assert shown["error"]["code"] == "engine_unavailable"


async def test_a_sequence_that_fails_fails_the_evaluation(api: Api) -> None:
    api.engine.break_after, api.engine.error = 0, "out_of_memory"
    async with api.client() as client:
        started = await post(client, adapters=["base"])
        shown = await ended(api, client, started["id"])
    assert shown["error"]["code"] == "out_of_memory"


async def test_a_pattern_that_explodes_is_named(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "_SECONDS", 0.05)
    api.engine.reply = tuple(tiny_text().encode("a" * 16 + "b"))
    long = {"prompt": "a", "completion": "a" * 30, "regex": "^((a|a)|(a|a))*$"}
    async with api.client() as client:
        started = await post(client, adapters=["base"], examples=[EXAMPLES[0], long])
        shown = await ended(api, client, started["id"])
    assert shown["error"]["param"] == "examples[1].regex"


async def test_none_starts_while_the_server_drains(api: Api) -> None:
    api.services.admission.drain()
    async with api.client() as client:
        answer = await client.post(ROUTE, json={"adapters": ["base"], "examples": EXAMPLES})
    assert answer.json()["error"]["code"] == "draining"


def test_limits_are_bounded() -> None:
    assert routes.MAX_EXAMPLES * (routes.MAX_ADAPTERS + 1) < 50_000
