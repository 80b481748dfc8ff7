"""Every route with no key, a wrong one and each role; and that nothing unlisted can be called."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from api_server import Api, api
from tenants_files import key_table

from weft.server.access import ROUTES, refusal, route_of
from weft.server.policy import Role

KEYS = {role: f"key-{role.name.lower()}" for role in Role}
OPEN = {"/", "/examples", "/health", "/ready"}
# What the table is to say, in other words than its own.
READING = {
    "GET /v1/adapters",
    "GET /v1/adapters/{name}",
    "GET /v1/adapters/{owner}/{name}",
    "POST /v1/adapters/{name}/prefetch",
    "GET /v1/aliases",
    "GET /v1/aliases/{name}",
}


def served(routes: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method and template of every route that the app has, included routers' too."""
    for route in routes:
        if inner := getattr(route, "original_router", None):
            yield from served(inner.routes)
        else:
            # Starlette adds HEAD to the routes that it makes itself; the front answers 405.
            yield from ((m, route.path) for m in route.methods - {"HEAD"})


def filled(template: str) -> str:
    return re.sub(r"\{.*?\}", "x", template)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Api]:
    path = tmp_path / "tenants.toml"
    path.write_text("".join(key_table("acme", KEYS[role], role.name.lower()) for role in Role))
    with api(tmp_path, tenants=path) as made:
        yield made


def test_each_route_of_the_app_is_listed_and_no_other(made: Api) -> None:
    found = set(served(made.app.routes))
    assert len(found) > 20
    listed = {(route.method, route.template) for route in ROUTES}
    assert found - listed == set()
    assert listed - found == {("GET", "/examples")}  # of the demo only
    assert len(listed) == len(ROUTES)
    for method, template in found:
        route = route_of(method, filled(template))
        assert route is not None
        assert route.template == template


def test_the_table_says_what_is_promised() -> None:
    for route in ROUTES:
        words = f"{route.method} {route.template}"
        about_adapters = any(n in words for n in ("/v1/adapters", "/v1/aliases", "lora_adapter"))
        if route.template in OPEN:
            expected = None
        elif route.template == "/metrics":
            expected = Role.ADMIN
        elif about_adapters and words not in READING:
            expected = Role.MANAGE
        else:
            expected = Role.USE
        assert route.role == expected, words


async def test_every_route_with_no_key_a_wrong_one_and_each_role(made: Api) -> None:
    async with made.client() as client:
        for route in ROUTES:
            where = route.method, filled(route.template)
            unlisted = route.template == "/examples"
            for key in (None, "Bearer wrong", f"Bearer {KEYS[Role.ADMIN]}x", KEYS[Role.ADMIN]):
                answer = await client.request(*where, headers={"Authorization": key} if key else {})
                assert (answer.status_code == 401) == (route.role is not None), (where, key)
            for role, key in KEYS.items():
                bearer = {"Authorization": f"Bearer {key}"}
                answer = await client.request(*where, headers=bearer)
                allowed = route.role is None or role >= route.role
                assert (answer.status_code == 403) == (not allowed), (where, role, answer.text)
                assert answer.status_code != 401
                assert (answer.status_code == 404) <= (unlisted or "{" in route.template)


async def test_a_refusal_for_want_of_a_key_says_how_to_send_one(made: Api) -> None:
    async with made.client() as client:
        answers = [
            await client.get("/v1/models", headers=headers)
            for headers in (
                {},
                {"Authorization": "Bearer x"},
                {"Authorization": "Bearer sésame".encode()},
            )
        ]
    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.text == answers[0].text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/adapters/", 404),
        ("GET", "/v1/adapters/a/b", 404),
        ("POST", "/v1/adapters/a/%70in/x", 404),
        ("DELETE", "/v1/chat/completions", 405),
        ("HEAD", "/v1/models", 405),
        ("OPTIONS", "/metrics", 405),
        ("BREW", "/v1/models", 405),
    ],
)
async def test_what_is_not_listed_cannot_be_called(
    made: Api, method: str, path: str, status: int
) -> None:
    async with made.client() as client:
        assert (await client.request(method, path)).status_code == 401
        bearer = {"Authorization": f"Bearer {KEYS[Role.ADMIN]}"}
        assert (await client.request(method, path, headers=bearer)).status_code == status


async def test_an_admin_that_a_proxy_names_a_tenant_for_is_no_admin(tmp_path: Path) -> None:
    with api(tmp_path, api_key="k", trust_proxy_header="X-Tenant") as made:
        async with made.client(authorization="Bearer k") as client:
            assert (await client.get("/metrics")).status_code == 200
            for named in ("default", "acme"):
                answer = await client.get("/metrics", headers={"X-Tenant": named})
                assert answer.status_code == 403


def test_of_what_was_sent_a_part_is_repeated_at_most() -> None:
    method, path = "M" * 40, "/" + "p" * 300
    for error, shown in (
        (refusal(method, path), ("M" * 16, path[:128])),
        (refusal(method, "/v1/models"), ("M" * 16,)),
    ):
        message = str(error.body("r")["error"]["message"])
        assert all(part in message for part in shown)
        assert not any(part + part[-1] in message for part in shown)
