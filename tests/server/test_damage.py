"""A stored file is damaged: that adapter is withdrawn before it is used, and no other one."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from replacing import PROMPTS, Replacing, replacing

from weft.server.tenants import DEFAULT_TENANT

NAMES = ("one", "two", "three")
FILES = ("adapter_config.json", "adapter_model.safetensors")
Served = tuple[asyncio.Runner, Replacing, dict[str, str]]


async def ask(client: httpx.AsyncClient, name: str) -> httpx.Response:
    body = {"model": name, "prompt": PROMPTS[0], "max_tokens": 4, "temperature": 0}
    return await client.post("/v1/completions", json=body)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with three adapters, and what each one answers."""
    with asyncio.Runner() as runner:
        context = replacing(tmp_path_factory.mktemp("damage"))
        server = runner.run(context.__aenter__())
        texts = {}
        for name, folder in zip(NAMES, server.folders, strict=False):
            runner.run(put(server, name, folder))
            texts[name] = text_of(runner.run(ask(server.client, name)))
        yield runner, server, texts
        runner.run(context.__aexit__(None, None, None))


async def put(server: Replacing, name: str, folder: Path) -> None:
    answer = await server.client.put(f"/v1/adapters/{name}", json={"path": str(folder)})
    assert answer.status_code == 200, answer.text


@given(
    which=st.integers(0, 2), file=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True)
)
@settings(max_examples=20)
def test_a_flipped_bit_withdraws_that_adapter_only(
    served: Served, which: int, file: str, where: float
) -> None:
    runner, server, texts = served
    name, folder = NAMES[which], server.folders[which]
    digest = server.services.registry.lookup(DEFAULT_TENANT, name).digest
    path = server.services.registry.arrivals() / digest[:2] / digest / file
    whole = path.read_bytes()
    damaged, bit = bytearray(whole), int(where * 8 * len(whole))
    damaged[bit // 8] ^= 1 << bit % 8
    assume(file != FILES[0] or not says_the_same(bytes(damaged), whole))

    async def live() -> None:
        client = server.client
        path.write_bytes(damaged)
        await server.services.engine.unload(digest)
        for _ in range(2):
            refused = await ask(client, name)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "adapter_corrupt"
        for other in set(NAMES) - {name}:
            assert text_of(await ask(client, other)) == texts[other]
        listed = {model["id"] for model in (await client.get("/v1/models")).json()["data"]}
        assert listed.isdisjoint({name})
        assert listed > set(NAMES) - {name}
        shown = (await client.get(f"/v1/adapters/{name}")).json()
        assert (shown["state"], shown["reason"]) == ("failed", "its stored files are damaged")
        await put(server, name, folder)
        assert text_of(await ask(client, name)) == texts[name]
        assert path.read_bytes() == whole

    runner.run(live())


def says_the_same(damaged: bytes, whole: bytes) -> bool:
    """Whether a configuration still says what it said, as with `1e5` and `1E5`."""
    try:
        return bool(json.loads(damaged) == json.loads(whole))
    except ValueError:
        return False


def test_a_blend_with_a_damaged_part_withdraws_that_part(served: Served) -> None:
    runner, server, texts = served
    registry = server.services.registry
    digest = registry.lookup(DEFAULT_TENANT, "two").digest
    path = registry.arrivals() / digest[:2] / digest / FILES[1]

    async def live() -> None:
        path.write_bytes(b"damaged")
        await server.services.engine.unload(digest)
        assert (await ask(server.client, "one:0.5,two:0.5")).status_code == 503
        await asyncio.to_thread(registry.catch_up)
        assert (await ask(server.client, "two")).status_code == 503
        assert text_of(await ask(server.client, "one")) == texts["one"]
        await put(server, "two", server.folders[1])
        assert (await ask(server.client, "one:0.5,two:0.5")).status_code == 200

    runner.run(live())
