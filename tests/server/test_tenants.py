"""Keys over HTTP: each tenant sees its own, a proxy narrows, and a changed file is taken over."""

from pathlib import Path

import pytest
from api_server import MESSAGES, Api, api
from tenants_files import key_table, tenants_file

from weft.adapters.tenancy import TenantContext
from weft.server.errors import ApiError
from weft.server.policy import Policy
from weft.server.tenants import Tenants, TenantsInvalid


@pytest.mark.parametrize("header", [None, "", "k", "Bearer", "Bearer kk", "Bearer k k", "Basic k"])
def test_only_a_bearer_key_opens(header: str | None) -> None:
    tenants = Tenants(Policy.single("k"))
    assert tenants.authenticate("bearer k").tenant.id == "default"
    with pytest.raises(ApiError, match="invalid_api_key"):
        tenants.authenticate(header)


async def test_each_tenant_sees_its_own_adapters(tmp_path: Path) -> None:
    with api(tmp_path, tenants=tenants_file(tmp_path, acme="a", bolt="b")) as made:
        acme, bolt = made.services.tenants.contexts
        await made.add("canary-acme", tenant=acme)
        await made.add("canary-bolt", tenant=bolt, seed=1)
        for key, own, foreign in (("a", "acme", "bolt"), ("b", "bolt", "acme")):
            async with made.client(authorization=f"Bearer {key}") as client:
                for route in ("/v1/models", "/v1/adapters"):
                    text = (await client.get(route)).text
                    assert f"canary-{own}" in text
                    assert f"canary-{foreign}" not in text
                for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/pin")):
                    path_ = f"/v1/adapters/canary-{foreign}{suffix}"
                    assert (await client.request(method, path_)).status_code == 404


# ---- a trusted proxy


async def test_a_trusted_proxy_names_the_tenant(tmp_path: Path) -> None:
    with api(tmp_path, api_key="k", trust_proxy_header="X-Tenant") as made:
        await made.add("acmes", tenant=TenantContext("acme"))
        async with made.client(authorization="Bearer k") as client:
            for named, seen in (("acme", 2), ("bolt", 1), (None, 1)):
                headers = {"X-Tenant": named} if named else {}
                models = (await client.get("/v1/models", headers=headers)).json()["data"]
                assert len(models) == seen
            for wrong in ("", "a/b", "x" * 65):
                answer = await client.get("/v1/models", headers={"X-Tenant": wrong})
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
            twice = [("X-Tenant", "acme"), ("x-tenant", "bolt")]
            assert (await client.get("/v1/models", headers=twice)).status_code == 400


async def test_a_proxy_cannot_widen_a_tenants_key(tmp_path: Path) -> None:
    path = tenants_file(tmp_path, acme="a", bolt="b")
    with api(tmp_path, tenants=path, trust_proxy_header="X-Tenant") as made:
        async with made.client(authorization="Bearer a") as client:
            answers = {}
            for named in ("acme", "bolt", "nobody"):
                answers[named] = await client.get("/v1/models", headers={"X-Tenant": named})
            assert [answer.status_code for answer in answers.values()] == [200, 403, 403]
            assert answers["bolt"].text == answers["nobody"].text


async def test_without_a_trusted_proxy_the_header_means_nothing(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        await made.add("acmes", tenant=TenantContext("acme"))
        async with made.client() as client:
            answer = await client.get("/v1/models", headers={"X-Tenant": "acme"})
            assert len(answer.json()["data"]) == 1


# ---- shared and default adapters

SHARING = """
[tenants.acme]
share = { legal = ["bolt"], faq = ["*"], planned = ["bolt"] }
[tenants.bolt]
default_adapter = "acme/legal"
"""


async def models(made: Api, key: str) -> list[str]:
    async with made.client(authorization=f"Bearer {key}") as client:
        listed = (await client.get("/v1/models")).json()["data"]
        for model in listed:
            assert (await client.get(f"/v1/models/{model['id']}")).json() == model
        return [model["id"] for model in listed]


async def test_a_shared_adapter_is_used_by_those_it_is_shared_with(tmp_path: Path) -> None:
    path = tenants_file(tmp_path, SHARING, acme="a", bolt="b", crow="c")
    with api(tmp_path, tenants=path) as made:
        acme = made.services.tenants.contexts[0]
        for seed, name in enumerate(("legal", "faq", "own")):
            await made.add(name, tenant=acme, seed=seed)
        assert await models(made, "a") == ["tiny", "faq", "legal", "own"]
        assert await models(made, "b") == ["tiny", "acme/faq", "acme/legal"]
        assert await models(made, "c") == ["tiny", "acme/faq"]
        async with made.client(authorization="Bearer b") as client:
            body = {"messages": MESSAGES, "model": "acme/legal@1:0.5,acme/faq:0.5"}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.headers["x-adapter-id"] == "acme/legal@1:0.5,acme/faq@1:0.5"
        assert made.engine.requests[0].tenant.id == "bolt"
        made.check()


async def test_an_adapter_not_shared_looks_like_one_that_does_not_exist(tmp_path: Path) -> None:
    path = tenants_file(tmp_path, SHARING, acme="a", bolt="b", crow="c")
    with api(tmp_path, tenants=path) as made:
        await made.add("legal", tenant=made.services.tenants.contexts[0])
        async with made.client(authorization="Bearer c") as client:
            answers = []
            for model in ("acme/legal", "acme/other", "bolt/legal", "dove/legal"):
                body = {"messages": MESSAGES, "model": model}
                answer = await client.post("/v1/chat/completions", json=body)
                same = {n: v for n, v in answer.headers.items() if n != "x-request-id"}
                same.pop("content-length")
                answers.append((answer.status_code, answer.text.replace(model, "NAME"), same))
        assert answers[0][0] == 404
        assert all(answer == answers[0] for answer in answers)


async def test_the_card_of_a_shared_adapter_is_shown_to_those_it_is_shared_with(
    tmp_path: Path,
) -> None:
    path = tenants_file(tmp_path, SHARING, acme="a", bolt="b", crow="c")
    with api(tmp_path, tenants=path) as made:
        await made.add("legal", tenant=made.services.tenants.contexts[0])
        async with made.client(authorization="Bearer a") as client:
            own = (await client.get("/v1/adapters/legal")).json()
        async with made.client(authorization="Bearer b") as client:
            for address in ("acme/legal", "acme%2Flegal"):
                shared = (await client.get(f"/v1/adapters/{address}")).json()
                assert (shared["object"], shared["name"]) == ("shared", "acme/legal")
                (end,) = shared["ends"]
                assert end["id"] == "acme/legal@1"
                assert (end["digest"], end["report"]) == (own["digest"], own["report"])
                assert "last_used" not in end
            for change in (client.put, client.delete):
                assert (await change("/v1/adapters/acme/legal")).status_code in (403, 405)
        async with made.client(authorization="Bearer c") as client:
            answers = []
            for name in ("acme/legal", "acme/other", "bolt/legal", "dove/legal"):
                answer = await client.get(f"/v1/adapters/{name}")
                answers.append((answer.status_code, answer.text.replace(name, "NAME")))
        assert answers[0][0] == 404
        assert all(answer == answers[0] for answer in answers)


async def test_a_key_alone_picks_its_model(tmp_path: Path) -> None:
    path = tenants_file(tmp_path, SHARING, acme="a", bolt="b")
    with api(tmp_path, tenants=path) as made:
        await made.add("legal", tenant=made.services.tenants.contexts[0])
        seen = {}
        for key, body in (
            ("b", {}),
            ("b", {"model": "default"}),
            ("b", {"model": "tiny"}),
            ("a", {}),
        ):
            async with made.client(authorization=f"Bearer {key}") as client:
                answer = await client.post(
                    "/v1/chat/completions", json={"messages": MESSAGES, **body}
                )
                seen[key, *body.values()] = answer.headers["x-adapter-id"]
        assert seen == {
            ("b",): "acme/legal@1",
            ("b", "default"): "acme/legal@1",
            ("b", "tiny"): "tiny",
            ("a",): "tiny",
        }


# ---- reloading


def replace(path: Path, text: str) -> None:
    """As `weft tenants` and careful editors write: whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_a_changed_file_is_taken_over(tmp_path: Path) -> None:
    path = tenants_file(tmp_path, acme="a")
    tenants = Tenants.read(path)
    assert not tenants.refresh()
    replace(path, key_table("bolt", "b"))
    assert tenants.refresh()
    assert not tenants.refresh()
    assert tenants.authenticate("Bearer b").tenant.id == "bolt"
    with pytest.raises(ApiError):
        tenants.authenticate("Bearer a")


@pytest.mark.parametrize("broken", ["[tenants.acme", "", "[tenants.acme]\nweight = 0", None])
def test_a_broken_file_changes_nothing_and_is_told(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tenants_file(tmp_path, acme="a")
    tenants = Tenants.read(path)
    replace(path, broken) if broken is not None else path.unlink()
    assert not tenants.refresh()
    assert not tenants.refresh()
    assert (tenants.valid, tenants.refusals, tenants.reloads) == (False, 1, 0)
    assert tenants.authenticate("Bearer a").tenant.id == "acme"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    replace(path, key_table("bolt", "b"))
    assert tenants.refresh()
    assert (tenants.valid, tenants.reloads) == (True, 1)


def test_what_the_server_cannot_hold_is_refused_like_a_broken_file(tmp_path: Path) -> None:
    tenants = Tenants.read(tenants_file(tmp_path, acme="a"))
    replace(tmp_path / "tenants.toml", key_table("bolt", "b"))

    def refuse(_: Policy) -> None:
        raise TenantsInvalid(["too much"])

    assert not tenants.refresh(refuse)
    assert not tenants.valid
    assert tenants.authenticate("Bearer a").tenant.id == "acme"
