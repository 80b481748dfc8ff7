"""Quotas of adapters: by number, by bytes stored and on the device; a refusal changes nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_server import Api, adapter_parts, api
from fake_engine import FakeEngine
from tenants_files import tenants_file

from weft.adapters.registry import Adapter
from weft.server.engine.messages import LoadReport
from weft.server.errors import ApiError
from weft.server.holdings import Addition, Holdings
from weft.server.policy import Quotas

MIB = 1 << 20
CHUNK = bytes(MIB // 4)
FILE_BYTES = 4096  # of a test adapter on the device, as the fake engine says


@asynccontextmanager
async def tenant(
    folder: Path, quotas: str, engine: FakeEngine | None = None, **settings: Any
) -> AsyncIterator[Api]:
    """An API whose tenant acme, of key "a", has these quotas; bolt has none."""
    more = f"[tenants.acme]\nquotas = {{ {quotas} }}\n"
    tenants = tenants_file(folder, more, acme="a", bolt="b")
    with api(folder, engine, tenants=tenants, **settings) as made:
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


def test_who_has_more_than_a_new_quota_allows_may_send_nothing() -> None:
    holdings = Holdings((), {"one": 5, "other": 3})
    holdings.check_name(Quotas(adapter_bytes=8), "a")
    with pytest.raises(ApiError, match="quota_exceeded"):
        holdings.check_name(Quotas(adapter_bytes=7), "a")
    assert Holdings((), {}).room(0) == 0
    assert [holdings.room(limit) for limit in (7, 10, 20)] == [5, 5, 12]


REPORT = LoadReport(
    digest="c",
    method="HIRA",
    rank=0,
    tensors=1,
    modules=1,
    bytes=1,
    delta_bytes=1,
    load_seconds=0.0,
    canary_difference=1.0,
    checks=(),
)


@pytest.mark.parametrize("value", [None, '"many"', "[]", "1.5"])
def test_what_a_report_does_not_tell_as_a_number_counts_for_nothing(value: str | None) -> None:
    report = "{}" if value is None else f'{{"delta_bytes": {value}, "bytes": {value}}}'
    told = '{"delta_bytes": 7, "bytes": 7}'
    in_use = {"pinned": False, "versions": 1, "leases": 0, "last_used": None}
    reports = {"a": report, "b": told}
    has = [Adapter(name, 1, name, 5, 0.0, text, **in_use) for name, text in reports.items()]
    holdings = Holdings(has, {"a": 5, "b": 5})
    new = Addition("c", 5, REPORT)
    holdings.check_addition(Quotas(delta_bytes=8), new)
    with pytest.raises(ApiError, match="quota_exceeded"):
        holdings.check_addition(Quotas(delta_bytes=7), new)
    pinned = Holdings([replace(adapter, pinned=True) for adapter in has], {})
    pinned.check_pin(Quotas(pinned_bytes=7), "a")
    with pytest.raises(ApiError, match="quota_exceeded"):
        pinned.check_pin(Quotas(pinned_bytes=6), "a")


class Sent:
    """The body of an upload whose weights are so large, and how many bytes of it were taken."""

    def __init__(self, weights: int, framed: bool) -> None:
        config, _ = adapter_parts()
        self.bytes = 0
        parts = [("adapter_config.json", config), ("adapter_model.safetensors", b"")]
        heads = [
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + data
            for name, data in parts
        ]
        self._head, self._tail = b"\r\n".join(heads), b"\r\n--b--\r\n"
        self._weights = weights
        length = len(self._head) + weights + len(self._tail)
        self.headers = {"Content-Type": "multipart/form-data; boundary=b"}
        self.headers |= {"Content-Length": str(length)} if framed else {}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = [CHUNK] * (self._weights // len(CHUNK))
        for data in (self._head, *chunks, self._tail):
            self.bytes += len(data)
            yield data


async def send(made: Api, name: str, weights: int, framed: bool) -> tuple[httpx.Response, int]:
    sent = Sent(weights, framed)
    async with made.client(authorization="Bearer a", **sent.headers) as client:
        answer = await client.put(f"/v1/adapters/{name}", content=aiter(sent))
    return answer, sent.bytes


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize(
    ("quotas", "weights", "code"),
    [
        (f"adapter_bytes = {4 * MIB}", 64 * MIB, "quota_exceeded"),
        (f"adapter_bytes = {4 * MIB}", 7 * MIB, "quota_exceeded"),
        (f"adapter_bytes = {64 * MIB}", 64 * MIB, "request_too_large"),
        ("adapters = 1", MIB, "quota_exceeded"),
    ],
)
async def test_an_upload_is_refused_before_it_has_come(
    tmp_path: Path, quotas: str, weights: int, code: str, framed: bool
) -> None:
    async with tenant(tmp_path, quotas, max_adapter_size=32 * MIB) as made:
        assert (await put(made, "a", 1)).status_code == 200
        answer, taken = await send(made, "b", weights, framed)
        assert answer.json()["error"]["code"] == code
        assert answer.headers["connection"] == "close"
        allowed = {"quota_exceeded": 4 * MIB, "request_too_large": 32 * MIB}[code]
        assert taken <= (0 if framed or "adapters" in quotas.split() else allowed + 2 * MIB)
        assert await names(made) == ["a"]
        assert not list(made.registry.arrivals().glob(".*"))


async def test_what_is_stored_may_come_again_where_there_is_no_more_room(tmp_path: Path) -> None:
    config, weights = adapter_parts(1)
    quota = f"adapter_bytes = {len(weights)}"
    files = {"adapter_config.json": config, "adapter_model.safetensors": weights}
    async with tenant(tmp_path, quota) as made, made.client(authorization="Bearer a") as client:
        for _ in range(2):
            again = await client.put("/v1/adapters/a", files=files)
            assert (again.status_code, again.json()["version"]) == (200, 1)
        files["adapter_config.json"] = adapter_parts(2)[0]
        assert refused(await client.put("/v1/adapters/a", files=files), "bytes of adapters")
        files["adapter_model.safetensors"] = weights + bytes(1)
        assert refused(await client.put("/v1/adapters/a", files=files), "bytes of adapters")


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


class Held:
    """An upload that stops in the middle until it is told to go on, or to break off."""

    def __init__(self, made: Api, name: str, weights: int, framed: bool) -> None:
        self.sent = Sent(weights, framed)
        self.is_half_way = asyncio.Event()
        self.go_on = asyncio.Event()
        self.breaks = False
        self.task = asyncio.create_task(self._send(made, name))

    async def _send(self, made: Api, name: str) -> httpx.Response:
        headers = self.sent.headers
        async with made.client(authorization="Bearer a", **headers) as client:
            return await client.put(f"/v1/adapters/{name}", content=self._content())

    async def _content(self) -> AsyncIterator[bytes]:
        last = b""
        async for data in self.sent:
            yield last
            last = data
        self.is_half_way.set()
        await self.go_on.wait()
        if self.breaks:
            raise ConnectionError
        yield last


@pytest.mark.parametrize("framed", [True, False])
async def test_uploads_that_come_at_the_same_time_count_together(
    tmp_path: Path, framed: bool
) -> None:
    """Two of 5 MiB where 8 are allowed; the second is refused before the first has ended."""
    async with tenant(tmp_path, f"adapter_bytes = {8 * MIB}") as made:
        first = Held(made, "a", 5 * MIB, framed)
        await first.is_half_way.wait()
        answer, taken = await send(made, "b", 5 * MIB, framed)
        assert refused(answer, "bytes of adapters")
        assert taken <= (0 if framed else 5 * MIB)
        answer, _ = await send(made, "b", 2 * MIB, framed)
        assert answer.status_code == 422  # it may come, and is found to be no adapter
        first.go_on.set()
        assert (await first.task).status_code == 422
        answer, _ = await send(made, "b", 5 * MIB, framed)
        assert answer.status_code == 422


@pytest.mark.parametrize("framed", [True, False])
async def test_an_upload_whose_client_vanished_counts_no_more(tmp_path: Path, framed: bool) -> None:
    async with tenant(tmp_path, f"adapter_bytes = {8 * MIB}") as made:
        for _ in range(3):
            gone = Held(made, "a", 6 * MIB, framed)
            await gone.is_half_way.wait()
            assert refused((await send(made, "b", 6 * MIB, framed))[0], "bytes of adapters")
            gone.breaks = True
            gone.go_on.set()
            await asyncio.gather(gone.task, return_exceptions=True)
        answer, _ = await send(made, "b", 6 * MIB, framed)
        assert answer.status_code == 422
        assert not list(made.registry.arrivals().glob(".*"))


async def test_what_was_stored_meanwhile_leaves_less_room(tmp_path: Path) -> None:
    async with tenant(tmp_path, f"adapter_bytes = {4 * MIB}") as made:
        arriving = Held(made, "a", 4 * MIB, framed=False)
        await arriving.is_half_way.wait()
        assert refused(await put(made, "b", 1), "bytes of adapters")
        arriving.go_on.set()
        assert (await arriving.task).status_code == 422
        assert (await put(made, "b", 1)).status_code == 200
        library = made.services.library
        acme = next(ctx for ctx in made.services.tenants.contexts if ctx.id == "acme")
        with library.allowance(acme, "c", 64 * MIB) as allowance:
            left = allowance.bytes
            with library.allowance(acme, "d", 64 * MIB) as other:
                other.claim(MIB)
                assert allowance.bytes == left - MIB
                assert (await put(made, "d", 2)).status_code == 200
            assert allowance.bytes == left - (await put(made, "d", 2)).json()["file_bytes"]
