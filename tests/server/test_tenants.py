"""Keys to tenants, and the files that name them."""

from hashlib import sha256
from pathlib import Path

import pytest
from api_server import api

from weft.adapters.tenancy import TenantContext
from weft.server.errors import ApiError
from weft.server.tenants import DEFAULT_TENANT, Tenants, TenantsInvalid


def hashed(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def test_without_keys_everybody_is_the_default_tenant() -> None:
    assert Tenants.single(None).authenticate(None) == DEFAULT_TENANT
    assert Tenants.single(None).authenticate("Bearer whatever") == DEFAULT_TENANT


def test_one_key_opens_for_the_default_tenant() -> None:
    tenants = Tenants.single("k")
    assert tenants.authenticate("bearer k") == DEFAULT_TENANT
    for wrong in (None, "", "k", "Bearer", "Bearer kk", "Bearer k k"):
        with pytest.raises(ApiError):
            tenants.authenticate(wrong)


def test_a_file_gives_each_key_its_tenant(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(
        f'[acme]\nkey_sha256 = ["{hashed("a1")}", "{hashed("a2")}"]\nweight = 2.5\n'
        f'[bolt]\nkey_sha256 = ["{hashed("b")}"]\n'
    )
    tenants = Tenants.read(path)
    assert tenants.authenticate("Bearer a2").id == "acme"
    assert tenants.authenticate("Bearer a1").weight == 2.5
    assert tenants.authenticate("Bearer b").id == "bolt"
    assert {tenant.id for tenant in tenants.contexts} == {"acme", "bolt"}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("[acme", "tenants.toml"),
        ("", "no tenant"),
        ("[acme]", "acme.key_sha256"),
        ('[acme]\nkey_sha256 = ["x"]', "acme.key_sha256.0"),
        ("[acme]\nkey_sha256 = []\nkeys = 1", "acme.keys"),
        ("[acme]\nkey_sha256 = []\nweight = 0", "acme.weight"),
        ('["a/b"]\nkey_sha256 = []', "a/b"),
        (f'[a]\nkey_sha256=["{"0" * 64}"]\n[b]\nkey_sha256=["{"0" * 64}"]', "b: a key that a has"),
    ],
)
def test_a_wrong_file_is_told_by_tenant_and_field(tmp_path: Path, content: str, names: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(content)
    with pytest.raises(TenantsInvalid) as caught:
        Tenants.read(path)
    assert names in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(TenantsInvalid, match="No such file"):
        Tenants.read(tmp_path / "none.toml")


async def test_each_tenant_sees_its_own_adapters(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(
        f'[acme]\nkey_sha256 = ["{hashed("a")}"]\n[bolt]\nkey_sha256 = ["{hashed("b")}"]\n'
    )
    with api(tmp_path, tenants=path) as made:
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
    path = tmp_path / "tenants.toml"
    path.write_text(f'[acme]\nkey_sha256 = ["{hashed("a")}"]\n')
    with api(tmp_path, tenants=path, trust_proxy_header="X-Tenant") as made:
        async with made.client(authorization="Bearer a") as client:
            for named, status in (("acme", 200), ("bolt", 403), ("default", 403)):
                answer = await client.get("/v1/models", headers={"X-Tenant": named})
                assert answer.status_code == status


async def test_without_a_trusted_proxy_the_header_means_nothing(tmp_path: Path) -> None:
    with api(tmp_path) as made:
        await made.add("acmes", tenant=TenantContext("acme"))
        async with made.client() as client:
            answer = await client.get("/v1/models", headers={"X-Tenant": "acme"})
            assert len(answer.json()["data"]) == 1
