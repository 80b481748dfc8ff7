"""Usage and the audit log as people meet them: exact sums, one line a change, nothing secret."""

import asyncio
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from api_server import BASE, MESSAGES, Api, api
from fake_engine import FakeEngine, stats_of
from tenants_files import key_table, tenants_file

from weft.server.access import ROUTES
from weft.server.audit.audit import ACTIONS
from weft.server.audit.journal import verify
from weft.server.logs import LineFormatter
from weft.server.policy import Role
from weft.server.tenants_watch import take_over

SHARED = '[tenants.acme]\nshare = { planned = ["bolt"] }\n'
NUMBERS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
Json = dict[str, Any]


async def ask(made: Api, model: str, key: str = "", route: str = "chat", **more: Any) -> Json:
    body = {"model": model, **({"messages": MESSAGES} if route == "chat" else {}), **more}
    path = "/v1/chat/completions" if route == "chat" else "/v1/completions"
    async with made.client(authorization=f"Bearer {key}") as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]


async def usage(made: Api, key: str = "", query: str = "") -> list[Json]:
    async with made.client(authorization=f"Bearer {key}") as client:
        answer = await client.get(f"/v1/usage?{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def numbers(rows: list[Json]) -> dict[tuple[str, str | None], tuple[int, ...]]:
    return {(r["tenant"], r["adapter"]): tuple(r[n] for n in NUMBERS) for r in rows}


def sums(answers: list[Json]) -> tuple[int, ...]:
    cached = sum(a["prompt_tokens_details"]["cached_tokens"] for a in answers)
    tokens = (sum(a[n] for a in answers) for n in ("prompt_tokens", "completion_tokens"))
    prompt, completion = tokens
    return len(answers), prompt, cached, completion


def events(folder: Path) -> list[Json]:
    path = folder / "audit.jsonl"
    verify(path)
    return [json.loads(line) for line in path.read_bytes().decode("ascii").splitlines()]


async def test_sums_are_those_of_the_answers(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        digest = await made.add("pirate")
        await made.add("bard", seed=1)
        base = [await ask(made, BASE), await ask(made, BASE, n=3)]
        base.append(await ask(made, BASE, route="text", prompt=["one", "three four", "five"]))
        base.append(await ask(made, BASE, route="text", prompt="silent", max_tokens=0))
        pirate = [await ask(made, "pirate"), await ask(made, "pirate:0.5", stop="wör")]
        both = [await ask(made, "pirate,bard:0.5")]
        rows = await usage(made)
    assert numbers(rows) == {
        ("default", None): sums(base),
        ("default", "pirate"): sums(pirate),
        ("default", "+"): sums(both),
    }
    assert next(row["digest"] for row in rows if row["adapter"] == "pirate") == digest


async def test_usage_survives_a_restart(tmp_path: Path) -> None:
    before = []
    for _ in range(2):
        with api(tmp_path) as made:
            before.append(await ask(made, BASE))
    with api(tmp_path) as made:
        assert numbers(await usage(made)) == {("default", None): sums(before)}


@pytest.mark.parametrize("computed", [0, 7])
async def test_a_prompt_that_was_left_is_charged_as_far_as_it_was_computed(
    tmp_path: Path, computed: int
) -> None:
    hold = asyncio.Event()
    engine = FakeEngine(reply=(7,), pace=hold.wait, computed_when_left=computed)
    with api(tmp_path, engine) as made:
        task = asyncio.create_task(ask(made, BASE, n=2))
        await engine.until(lambda: engine.paces > 0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        expected = {("default", None): (1, computed, 0, 0)} if computed else {}
        assert numbers(await usage(made)) == expected


async def test_a_tenant_sees_its_own_and_an_admin_all_or_one(tmp_path: Path) -> None:
    more = SHARED + key_table("ops", "o", Role.ADMIN.name.lower())
    with api(tmp_path, tenants=tenants_file(tmp_path, more, acme="a", bolt="b")) as made:
        acme = next(t for t in made.services.tenants.contexts if t.id == "acme")
        await made.add("planned", tenant=acme)
        mine = [await ask(made, "planned", "a")]
        theirs = [await ask(made, "acme/planned", "b"), await ask(made, "acme/planned", "b")]
        of_acme = {("acme", "planned"): sums(mine)}
        of_bolt = {("bolt", "acme/planned"): sums(theirs)}
        assert numbers(await usage(made, "a")) == of_acme
        assert numbers(await usage(made, "b")) == of_bolt
        assert numbers(await usage(made, "o")) == of_acme | of_bolt
        assert numbers(await usage(made, "o", "tenant=bolt")) == of_bolt
        assert await usage(made, "o", "tenant=nobody") == []
        async with made.client(authorization="Bearer a") as client:
            refused = [await client.get(f"/v1/usage?tenant={t}") for t in ("bolt", "nobody")]
        assert [r.status_code for r in refused] == [403, 403]
        assert refused[0].content == refused[1].content


async def test_pages_and_bad_words(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        for number in range(3):
            await made.add(f"a{number}", seed=number)
            await ask(made, f"a{number}")
        async with made.client() as client:
            seen, page = [], ""
            while page is not None:
                query = f"limit=2&bucket_width=1h{page and f'&page={page}'}"
                answer = (await client.get(f"/v1/usage?{query}")).json()
                seen += [row["adapter"] for row in answer["data"]]
                page = answer["next_page"]
            assert seen == ["a0", "a1", "a2"]
            for query, param in (
                ("start=soon", "start"),
                ("end=99999999999999", "end"),
                ("start=2026-01-02&end=2026-01-01", "start"),
                ("page=bm8=", "page"),
                ("limit=0", "limit"),
                ("bucket_width=1m", "bucket_width"),
            ):
                refused = await client.get(f"/v1/usage?{query}")
                assert refused.status_code == 400
                assert refused.json()["error"]["param"] == param
            past = await client.get("/v1/usage?start=2020-01-01&end=1600000000")
            assert past.json()["data"] == []


async def test_series_go_with_their_adapter(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        await made.add("pirate")
        await ask(made, "pirate")
        async with made.client() as client:
            series = 'weft_usage_requests_total{tenant="default",adapter="pirate"} 1\n'
            assert series in (await client.get("/metrics")).text
            assert (await client.delete("/v1/adapters/pirate")).status_code == 200
            assert "weft_usage_requests_total{" not in (await client.get("/metrics")).text
        assert [row["adapter"] for row in await usage(made)] == ["pirate"]


async def test_bytes_on_the_device_are_their_owners(tmp_path: Path) -> None:
    tenants = tenants_file(tmp_path, acme="a", bolt="b")
    with api(tmp_path, tenants=tenants) as made:
        for tenant in made.services.tenants.contexts:
            digest = await made.add("same", tenant=tenant)
        now = [0.0]
        made.services.usage.meter._monotonic = lambda: now[0]
        for seconds, stats in ((0, {digest: "device"}), (3, {digest: "device"}), (5, {})):
            now[0] = seconds
            made.services.usage.sample(stats_of(stats), made.registry.names)
        for key in ("a", "b"):
            (row,) = await usage(made, key)
            assert row["adapter_byte_seconds"] == 3 * 4096
            assert row["requests"] == 0


# ---- the audit log


def test_every_route_that_changes_something_is_written_down() -> None:
    assert set(ACTIONS) == {(r.method, r.template) for r in ROUTES if r.role is Role.MANAGE}


async def test_who_changed_what_with_which_result(tmp_path: Path) -> None:
    more = key_table("acme", "user", "use")
    with api(tmp_path, tenants=tenants_file(tmp_path, more, acme="a")) as made:
        folders = [str(made.folder(seed)) for seed in (1, 2)]
        async with made.client(authorization="Bearer a") as client:
            for folder in folders:
                await client.put("/v1/adapters/bot", json={"path": folder})
            await client.post("/v1/adapters/bot/rollback")
            await client.post("/v1/adapters/bot/pin")
            await client.put("/v1/aliases/live", json={"targets": {"bot": 1}})
            await client.delete("/v1/adapters/bot")
            last = await client.delete("/v1/adapters/other", headers={"If-Match": "no"})
        async with made.client(authorization="Bearer user") as client:
            await client.delete("/v1/adapters/bot")
        async with made.client(authorization="Bearer stranger") as client:
            await client.delete("/v1/adapters/bot")
        versions = made.registry.versions(made.services.tenants.contexts[0], "bot")
    first, *told, stop = events(tmp_path)
    assert (first["event"], stop["event"]) == ("server.start", "server.stop")
    assert [(e["event"], e["name"], e.get("version"), e["result"]) for e in told] == [
        ("adapter.load", "bot", 1, "ok"),
        ("adapter.replace", "bot", 2, "ok"),
        ("adapter.rollback", "bot", 1, "ok"),
        ("adapter.pin", "bot", 1, "ok"),
        ("alias.set", "live", None, "ok"),
        ("adapter.remove", "bot", 1, "adapter_in_use"),
        ("adapter.remove", "other", None, "model_not_found"),
        ("adapter.remove", "bot", None, "forbidden"),
    ]
    assert [e["digest"] for e in told[:2]] == [v.digest for v in versions]
    assert told[6]["request"] == last.headers["x-request-id"]
    assert {(e["tenant"], e["role"]) for e in told} == {("acme", "manage"), ("acme", "use")}


async def test_a_change_is_written_down_before_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    with api(tmp_path) as made, monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda file: go_on.wait(30))
        async with made.client() as client:
            change = asyncio.create_task(client.delete("/v1/adapters/nobody"))
            await asyncio.wait([change], timeout=0.2)  # as long as it gets to do it wrong
            assert not change.done()
            go_on.set()
            assert (await change).status_code == 404


async def test_reloads_and_withdrawn_adapters_are_written_down(tmp_path: Path) -> None:
    with api(tmp_path, tenants=tenants_file(tmp_path, acme="a")) as made:
        acme = made.services.tenants.contexts[0]
        digest = await made.add("bot", tenant=acme)
        made.services.tenants._path.write_text("nonsense = key-in-clear")
        await take_over(made.services)
        tenants_file(tmp_path, acme="a", bolt="b")
        await take_over(made.services)
        with made.registry.lease(acme, "bot") as lease:
            for _ in range(2):
                made.registry.withdraw(lease, "its stored files are damaged")
    told = [(e["event"], e["tenant"], e["result"]) for e in events(tmp_path)[1:-1]]
    assert told == [
        ("tenants.reload", None, "refused"),
        ("tenants.reload", None, "ok"),
        ("adapter.withdraw", "acme", "ok"),
    ]
    assert events(tmp_path)[3]["digest"] == digest


async def test_versions_that_retention_removed_are_written_down(tmp_path: Path) -> None:
    tenants = tenants_file(tmp_path, acme="a", bolt="b")
    with api(tmp_path, tenants=tenants, keep_versions=2) as made:
        acme, bolt = made.services.tenants.contexts
        digests = [await made.add("bot", tenant=acme, seed=seed) for seed in range(4)]
        await made.add("bot", tenant=bolt)
        await made.services.library.prune_all()
    told = [e for e in events(tmp_path) if e["event"] == "adapter.prune"]
    assert [(e["tenant"], e["name"], e["version"], e["digest"], e["role"]) for e in told] == [
        ("acme", "bot", number, digests[number - 1], "server") for number in (1, 2)
    ]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NASTY = "a\r\nb\x1b[31m\x7f\u2028{}\u2029\x85"


async def test_one_line_an_event_whatever_the_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with api(tmp_path) as made:
        async with made.client() as client:
            await client.post("/v1/unload_lora_adapter", json={"lora_name": NASTY})
            await client.put(f"/v1/adapters/{NASTY.encode().hex('%')}", json={})
    content = (tmp_path / "audit.jsonl").read_bytes()
    assert len(content.splitlines()) == verify(tmp_path / "audit.jsonl") == 4
    assert all(0x20 <= byte < 0x7F for byte in content.replace(b"\n", b""))
    assert events(tmp_path)[1]["name"] == NASTY


def test_a_log_line_is_one_line() -> None:
    try:
        raise ValueError(NASTY)
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("weft", logging.ERROR, "", 0, "%s", (NASTY,), info)
    first, *rest = LineFormatter("%(message)s").format(record).split("\n")
    assert first == "a\\x0d\\x0ab\\x1b[31m\\x7f\\u2028{}\\u2029\\x85"
    assert rest
    assert all(line.startswith("  ") and line.isprintable() for line in rest)


async def test_no_file_holds_a_prompt_or_a_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with api(tmp_path, tenants=tenants_file(tmp_path, acme="canary-key")) as made:
        made.folder(1)
        messages = [{"role": "user", "content": "canary-prompt"}]
        await ask(made, BASE, "canary-key", messages=messages)
        made.engine.failure = RuntimeError("broken")
        async with made.client(authorization="Bearer canary-key") as client:
            body = {"model": BASE, "messages": messages}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 500
            await client.put("/v1/adapters/bot", json={"path": str(made.folder(1))})
            await client.put("/v1/adapters/bot", content=b"canary-prompt")
        async with made.client(authorization="Bearer canary-key-wrong") as client:
            await client.delete("/v1/adapters/bot")
    told = [record for record in caplog.records if record.name.startswith("weft")]
    logged = "\n".join(LineFormatter("%(message)s").format(record) for record in told)
    written = files(tmp_path)
    assert {"audit.jsonl", "usage.sqlite"} <= {path.name for path in written}
    assert b"adapter.load" in written[tmp_path / "audit.jsonl"]
    assert "broken" in logged
    for content in (logged.encode(), *written.values()):
        assert b"canary" not in content
