"""What one tenant could see of another: words of its own, grepped for in every output channel."""

import json
import logging
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from api_server import Api, adapter_parts, api, tiny_text
from fake_engine import FakeEngine
from starlette.datastructures import Headers
from tenants_files import key_table, tenants_file

from weft.server.access import ROUTES, Route
from weft.server.errors import ApiError
from weft.server.policy import Role

SHARED = '[tenants.acme]\nshare = { planned = ["bolt"] }\n'
EXAMPLE = {"prompt": "Question", "completion": "Answer"}


def words(tenant: str) -> dict[str, str]:
    """What only this tenant ever says."""
    kinds = ("adapter", "alias", "prompt", "user", "bad", "request")
    return {kind: f"canary-{tenant}-{kind}" for kind in kinds}


def bodies(of: dict[str, str]) -> dict[str, dict[str, Any]]:
    """A body for each route that takes one, in a tenant's words."""
    text = {"model": of["adapter"], "user": of["user"]}
    return {
        "/v1/chat/completions": {
            **text,
            "messages": [{"role": "user", "content": of["prompt"]}],
            "max_tokens": 4,
        },
        "/v1/completions": {**text, "prompt": of["prompt"], "max_tokens": 4, "echo": True},
        "/tokenize": {"model": of["adapter"], "prompt": of["prompt"], "return_token_strs": True},
        "/detokenize": {"model": of["adapter"], "tokens": tiny_text().encode(of["prompt"])},
        "/v1/evaluations": {"adapters": [of["adapter"]], "examples": [EXAMPLE] * 9},
        "/v1/load_lora_adapter": {"lora_name": of["bad"], "lora_path": "nowhere"},
        "/v1/unload_lora_adapter": {"lora_name": of["bad"]},
        "/v1/adapters/{name}": {"path": of["bad"]},
        "/v1/aliases/{name}": {"target": of["adapter"]},
    }


async def call(client: httpx.AsyncClient, route: Route, of: dict[str, str]) -> httpx.Response:
    """One route in a tenant's words; what it would remove is another name."""
    kind = "alias" if "aliases" in route.template else "adapter"
    name = of["bad"] if route.method == "DELETE" else of[kind]
    path = re.sub(r"\{.*?\}", name, route.template)
    body = bodies(of).get(route.template) if route.method in ("POST", "PUT") else None
    headers = {"X-Request-ID": of["request"]}
    return await client.request(route.method, path, json=body, headers=headers)


async def live(made: Api, tenant: str) -> AsyncIterator[httpx.Response]:
    """A tenant uses all that it may, and some that it may not; yields every answer."""
    of = words(tenant)
    context = next(t for t in made.services.tenants.contexts if t.id == tenant)
    await made.add(of["adapter"], tenant=context, seed=len(tenant))
    async with made.client(authorization=f"Bearer key-{tenant}") as client:
        for _ in range(2):  # the second time round there is more to see
            for route in ROUTES:
                yield await call(client, route, of)
        config, _ = adapter_parts()
        files = {
            "adapter_config.json": json.dumps({"peft_type": of["bad"]}).encode(),
            "adapter_model.safetensors": config,
        }
        yield await client.put(f"/v1/adapters/{of['bad']}", files=files)
        yield await client.get("/v1/models/planned")
        yield await client.get("/v1/models/acme/planned")


def told(answer: httpx.Response) -> str:
    return f"{answer.status_code} {dict(answer.headers)} {answer.text}"


async def test_no_answer_holds_a_word_of_another_tenant(tmp_path: Path) -> None:
    tenants = tenants_file(tmp_path, SHARED, acme="key-acme", bolt="key-bolt")
    with api(tmp_path, FakeEngine(reply=(7,)), tenants=tenants) as made:
        seen: dict[str, list[str]] = {"acme": [], "bolt": []}
        for tenant in ("acme", "bolt", "acme", "bolt"):
            seen[tenant] += [told(answer) async for answer in live(made, tenant)]
    for mine, theirs in (("acme", "bolt"), ("bolt", "acme")):
        everything = "\n".join(seen[mine])
        assert f"canary-{mine}-adapter" in everything
        assert f"canary-{mine}-prompt" in everything
        for word in (*words(theirs).values(), f"key-{theirs}", f'"{theirs}"'):
            assert word not in everything, word


async def test_logs_hold_no_prompt_and_no_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tenants = tenants_file(tmp_path, SHARED, acme="key-acme", bolt="key-bolt")
    with api(tmp_path, FakeEngine(reply=(7,)), tenants=tenants) as made:
        async for _ in live(made, "acme"):
            pass
        made.engine.failure = RuntimeError("the engine broke")
        async for _ in live_on(made, "acme"):
            pass
    text = "\n".join(
        f"{record.getMessage()} {record.exc_text or ''}"
        for record in caplog.records
        if record.name.startswith("weft")
    )
    assert "the engine broke" in text
    assert "canary-acme-prompt" not in text
    assert "key-acme" not in text


async def test_no_request_makes_the_server_ask_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def ask(*args: object, **_: object) -> None:
        asked.append(args)
        raise OSError("there is no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, ask)
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    tenants = tenants_file(tmp_path, SHARED, acme="key-acme", bolt="key-bolt")
    with api(tmp_path, FakeEngine(reply=(7,)), tenants=tenants) as made:
        async for _ in live(made, "acme"):
            pass
        async with made.client(authorization="Bearer key-acme") as client:
            for source in ("http://127.0.0.1:1/x", "owner/name"):
                for key in ("path", "repo"):
                    answer = await client.put("/v1/adapters/far", json={key: source})
                    assert 400 <= answer.status_code < 500
    assert asked == []
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("127.0.0.1", 1))


async def live_on(made: Api, tenant: str) -> AsyncIterator[httpx.Response]:
    """Every route once more, of whatever is there."""
    async with made.client(authorization=f"Bearer key-{tenant}") as client:
        for route in ROUTES:
            yield await call(client, route, words(tenant))


async def test_metrics_speak_of_all_tenants_and_only_to_an_admin(tmp_path: Path) -> None:
    more = key_table("ops", "key-ops", Role.ADMIN.name.lower())
    with api(tmp_path, tenants=tenants_file(tmp_path, more, acme="key-acme")) as made:
        async for answer in live(made, "acme"):
            assert "weft_adapter_requests" not in answer.text
        async with made.client(authorization="Bearer key-ops") as client:
            metrics = (await client.get("/metrics")).text
    assert "canary-acme-adapter" in metrics
    for kind in ("prompt", "user", "bad", "request"):
        assert f"canary-acme-{kind}" not in metrics
    assert "key-acme" not in metrics


# ---- a foreign adapter and a missing one


def path_of(made: Api, key: str, model: str) -> list[tuple[str, str]]:
    """Every function that is called to find out that there is no such model."""
    caller = made.services.tenants.authenticate(f"Bearer {key}")
    calls: list[tuple[str, str]] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls.append((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(watch)
    try:
        with (
            suppress(ApiError),
            made.services.router.target(caller.tenant, Headers(), model, "choice"),
        ):
            pass
    finally:
        sys.setprofile(None)
    return [call for call in calls if "/weft/" in call[0]]


async def test_a_foreign_adapter_takes_the_path_of_a_missing_one(tmp_path: Path) -> None:
    more = '[tenants.acme]\nshare = { shared = ["bolt"] }\n'
    tenants = tenants_file(tmp_path, more, acme="a", bolt="b", crow="c")
    with api(tmp_path, tenants=tenants) as made:
        acme = made.services.tenants.contexts[0]
        for name in ("secret", "shared"):
            await made.add(name, tenant=acme)
        for foreign, missing in (
            ("secret", "absent"),
            ("acme/secret", "acme/absent"),
            ("acme/secret", "dove/secret"),
            ("acme/shared", "acme/absent"),
            ("acme/secret@1", "acme/secret@9"),
            ("acme/secret:0.5,acme/shared", "acme/absent:0.5,acme/absent"),
        ):
            path = path_of(made, "c", foreign)
            assert path == path_of(made, "c", missing), foreign
            assert len(path) > 5
        assert path_of(made, "b", "acme/shared") != path_of(made, "b", "acme/absent")
