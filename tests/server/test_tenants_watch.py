"""A changed tenants file reaches every part that it concerns, and no request fails by it."""

import asyncio
from pathlib import Path

import pytest
from api_server import Api, api
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families
from tenants_files import key_table, tenants_file

from weft.server.policy import Policy
from weft.server.tenants_file import TenantsInvalid, parse_tenants
from weft.server.tenants_watch import check_pages, follow, take_over

ADMIN = key_table("ops", "o", "admin")
BODY = {"model": "tiny", "prompt": [7, 7], "max_tokens": 4}


def pages(**kv_pages: int) -> str:
    return "".join(f"[tenants.{t}.quotas]\nkv_pages = {n}\n" for t, n in kv_pages.items())


def policy(**kv_pages: int) -> Policy:
    return parse_tenants((pages(**kv_pages) + ADMIN).encode(), "t")


async def status(made: Api, key: str) -> int:
    async with made.client(authorization=f"Bearer {key}") as client:
        return (await client.post("/v1/completions", json=BODY)).status_code


async def series(made: Api) -> dict[str, float]:
    """What is said about tenants, and whose adapters are spoken of."""
    async with made.client(authorization="Bearer o") as client:
        text = (await client.get("/metrics")).text
    return {
        f"{sample.name}{[*sample.labels.values()]}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "tenant" in sample.name or sample.name == "weft_adapter_requests_total"
    }


async def test_keys_pages_and_series_follow_the_file(tmp_path: Path) -> None:
    path = tenants_file(tmp_path, ADMIN + pages(acme=8), acme="a")
    with api(tmp_path, tenants=path) as made:
        acme = made.services.tenants.contexts[1]
        await made.add("canary", tenant=acme)
        assert await take_over(made.services) == ()
        path.write_text(ADMIN + pages(bolt=9) + key_table("bolt", "b"))
        (bolt,) = await take_over(made.services)
        assert (bolt.id, bolt.kv_pages) == ("bolt", 9)
        assert made.engine.reserved == made.services.tenants.contexts
        assert [await status(made, key) for key in "ab"] == [401, 200]
        assert "canary" not in str(await series(made))
        path.write_text(ADMIN + key_table("acme", "a"))
        await take_over(made.services)
        assert [await status(made, key) for key in "ab"] == [200, 401]
        assert await series(made) == {
            "weft_tenants[]": 2,
            "weft_tenants_file_valid[]": 1,
            "weft_tenants_reloads_total['applied']": 2,
            "weft_tenants_reloads_total['refused']": 0,
            "weft_adapter_requests_total['acme', 'canary']": 0,
        }


async def test_a_broken_file_shows_in_the_metrics_and_changes_nothing(tmp_path: Path) -> None:
    path = tenants_file(tmp_path, ADMIN, acme="a")
    with api(tmp_path, tenants=path) as made:
        for broken in ("[tenants.acme", ADMIN + pages(acme=10_000)):
            path.write_text(broken)
            assert await take_over(made.services) == ()
            assert await status(made, "a") == 200
        shown = await series(made)
        assert shown["weft_tenants_file_valid[]"] == 0
        assert shown["weft_tenants_reloads_total['refused']"] == 2


async def test_a_request_under_way_ends_as_it_began(tmp_path: Path) -> None:
    gate = asyncio.Event()
    path = tenants_file(tmp_path, ADMIN, acme="a")
    with api(tmp_path, FakeEngine(pace=gate.wait), tenants=path) as made:
        running = asyncio.create_task(status(made, "a"))
        await made.engine.until(lambda: bool(made.engine.live))
        path.write_text(ADMIN)
        await take_over(made.services)
        assert await status(made, "a") == 401
        gate.set()
        assert await running == 200


async def test_who_is_new_is_welcomed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.server.tenants_watch.LOOK_SECONDS", 0.001)
    path = tenants_file(tmp_path, ADMIN)
    welcomed: asyncio.Queue[str] = asyncio.Queue()
    with api(tmp_path, tenants=path) as made:
        following = asyncio.create_task(follow(made.services, lambda t: welcomed.put(t.id)))
        path.write_text(ADMIN + key_table("acme", "a"))
        assert await welcomed.get() == "acme"
        following.cancel()


def test_only_so_many_pages_can_be_promised() -> None:
    check_pages(policy(acme=50, bolt=6), 64)
    with pytest.raises(TenantsInvalid, match=r"kv_pages of acme, bolt are 57 .* 64 pages 56"):
        check_pages(policy(acme=50, bolt=7), 64)
