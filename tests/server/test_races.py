"""Adapters are put, removed, rolled back, aliased and asked for at once: nothing breaks."""

import asyncio
from collections import Counter
from pathlib import Path
from random import Random

import httpx
from api_server import MESSAGES, Api, adapter_parts, api

NAMES, ALIASES = "abc", "xy"
CLIENTS, REQUESTS = 8, 60
EXPECTED = {200, 400, 404, 409, 412}


class Racer:
    """One of the clients: whatever comes to its mind, as fast as it can."""

    def __init__(self, made: Api, seed: int, seen: Counter[tuple[str, int]]) -> None:
        self._made = made
        self._random = Random(seed)
        self._seen = seen

    async def run(self) -> None:
        async with self._made.client() as client:
            for _ in range(REQUESTS):
                kind = self._random.choice(["put", "put", "delete", "rollback", "alias", "ask"])
                answer = await getattr(self, f"_{kind}")(client)
                assert answer.status_code in EXPECTED, (kind, answer.text)
                self._seen[kind, answer.status_code] += 1

    async def _put(self, client: httpx.AsyncClient) -> httpx.Response:
        config, weights = adapter_parts(self._random.randrange(4))
        files = {"adapter_config.json": config, "adapter_model.safetensors": weights}
        return await client.put(f"/v1/adapters/{self._name()}", files=files)

    async def _delete(self, client: httpx.AsyncClient) -> httpx.Response:
        kind = self._random.choice(["adapters", "aliases"])
        names = NAMES if kind == "adapters" else ALIASES
        return await client.delete(f"/v1/{kind}/{self._random.choice(names)}")

    async def _rollback(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(f"/v1/adapters/{self._name()}/rollback")

    async def _alias(self, client: httpx.AsyncClient) -> httpx.Response:
        targets = {self._name(): 90, self._random.choice([*NAMES, *ALIASES]): 10}
        alias = self._random.choice(ALIASES)
        return await client.put(f"/v1/aliases/{alias}", json={"targets": targets})

    async def _ask(self, client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": self._random.choice([*NAMES, *ALIASES]), "messages": MESSAGES}
        return await client.post("/v1/chat/completions", json=body)

    def _name(self) -> str:
        return self._random.choice(NAMES)


async def test_whatever_races_ends_as_it_is_described_and_leaves_all_sound(tmp_path: Path) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    with api(tmp_path) as made:
        await asyncio.gather(*(Racer(made, seed, seen).run() for seed in range(CLIENTS)))
        made.check()
        async with made.client() as client:
            for alias in (await client.get("/v1/aliases")).json()["data"]:
                await client.delete(f"/v1/aliases/{alias['name']}")
            for name in NAMES:
                await client.delete(f"/v1/adapters/{name}")
            assert (await client.get("/v1/adapters")).json()["data"] == []
        made.registry.catch_up()
        assert made.registry.check() == ()
        assert not list((tmp_path / "versions").rglob("*.safetensors"))
    assert {kind for kind, status in seen if status == 200} == {
        "put",
        "delete",
        "rollback",
        "alias",
        "ask",
    }
