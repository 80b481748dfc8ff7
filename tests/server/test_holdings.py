"""Quotas of adapters: by number, by bytes stored and on the device; a refusal changes nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from api_server import Api, api
from fake_engine import FakeEngine
from tenants_files import tenants_file

FILE_BYTES = 4096  # of a test adapter on the device, as the fake engine says


@asynccontextmanager
async def tenant(folder: Path, quotas: str, engine: FakeEngine | None = None) -> AsyncIterator[Api]:
    """An API whose tenant acme, of key "a", has these quotas; bolt has none."""
    more = f"[tenants.acme]\nquotas = {{ {quotas} }}\n"
    with api(folder, engine, tenants=tenants_file(folder, more, acme="a", bolt="b")) as made:
        yield made
        assert made.registry.check() == ()


async def put(made: Api, name: str, seed: int, key: str = "a") -> httpx.Response:
    async with made.client(authorization=f"Bearer {key}") as client:
        return await client.put(f"/v1/adapters/{name}", json={"path": str(made.folder(seed))})


async def names(made: Api) -> list[str]:
    async with made.client(authorization="Bearer a") as client:
        return [one["name"] for one in (await client.get("/v1/adapters")).json()["data"]]


def refused(answer: httpx.Response, words: str) -> bool:
    error = answer.json()["error"]
    return (answer.status_code, error["code"]) == (403, "quota_exceeded") and words in error[
        "message"
    ]


async def test_so_many_names_and_no_more(tmp_path: Path) -> None:
    async with tenant(tmp_path, "adapters = 2") as made:
        assert [(await put(made, name, seed)).status_code for seed, name in enumerate("ab")] == [
            200
        ] * 2
        assert refused(await put(made, "c", 3), "2 adapters")
        assert (await put(made, "a", 3)).status_code == 200  # another version of a name it has
        assert (await put(made, "c", 3, key="b")).status_code == 200
        async with made.client(authorization="Bearer a") as client:
            await client.delete("/v1/adapters/b")
        assert (await put(made, "c", 3)).status_code == 200
        assert await names(made) == ["a", "c"]


async def test_stored_bytes_of_all_versions_the_same_bytes_once(tmp_path: Path) -> None:
    async with tenant(tmp_path, "adapter_bytes = 100") as made:
        size = (await put(made, "a", 0)).json()["file_bytes"]
    quota = f"adapter_bytes = {2 * size}"
    async with tenant(tmp_path, quota) as made:
        assert (await put(made, "a", 1)).status_code == 200
        assert (await put(made, "b", 1)).status_code == 200
        assert refused(await put(made, "a", 2), "bytes of adapters")
        async with made.client(authorization="Bearer a") as client:
            shown = (await client.get("/v1/adapters/a")).json()
            assert [version["version"] for version in shown["versions"]] == [1, 2]


async def test_dense_deltas_have_a_limit_of_their_own(tmp_path: Path) -> None:
    engine = FakeEngine(delta_bytes=600)
    async with tenant(tmp_path, "delta_bytes = 1000", engine) as made:
        assert (await put(made, "a", 0)).status_code == 200
        assert refused(await put(made, "b", 1), "1000 bytes of dense and sparse deltas")
        assert (await put(made, "a", 1)).status_code == 200  # in the place of the one before
        engine.delta_bytes = 0
        assert (await put(made, "b", 2)).status_code == 200


async def test_pinned_bytes(tmp_path: Path) -> None:
    async with tenant(tmp_path, f"pinned_bytes = {FILE_BYTES}") as made:
        for seed, name in enumerate("ab"):
            await put(made, name, seed)
        async with made.client(authorization="Bearer a") as client:
            assert (await client.post("/v1/adapters/a/pin")).status_code == 200
            assert (await client.post("/v1/adapters/a/pin")).status_code == 200
            assert refused(await client.post("/v1/adapters/b/pin"), "bytes of pinned adapters")
            assert (await client.post("/v1/adapters/a/unpin")).status_code == 200
            assert (await client.post("/v1/adapters/b/pin")).status_code == 200


async def test_what_comes_at_the_same_time_is_not_let_in_together(tmp_path: Path) -> None:
    async with tenant(tmp_path, "adapters = 2") as made:
        found = await asyncio.gather(*(put(made, f"n{i}", i) for i in range(6)))
        assert sorted(answer.status_code for answer in found) == [200, 200, 403, 403, 403, 403]
        assert len(await names(made)) == 2
