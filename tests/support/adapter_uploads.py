"""What tests of /v1/adapters send, and how they look at what came of it."""

import httpx
from api_server import Api, adapter_parts

from weft.server.arrivals import Allowance
from weft.server.tenants import DEFAULT_TENANT

PATH = "/v1/adapters/pirate"
SMALL = Allowance(100)


def parts(seed: int = 0) -> list[tuple[str, tuple[str, bytes]]]:
    config, weights = adapter_parts(seed)
    return [
        ("adapter_config.json", ("adapter_config.json", config)),
        ("adapter_model.safetensors", ("adapter_model.safetensors", weights)),
    ]


def nothing_left(api: Api) -> None:
    assert not api.registry.list(DEFAULT_TENANT)
    no_files(api)


def no_files(api: Api) -> None:
    api.registry.catch_up()
    assert not [path for path in api.registry.arrivals().rglob("*") if path.is_file()]


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]
