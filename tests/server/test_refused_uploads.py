"""Damaged adapters through the whole server with its engine: a 422 that names what is wrong."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import httpx
import pytest
from damage import EDITS, Folder
from peft_adapters import save_lora
from peft_prompts import save_prompt
from real_server import real_server
from tiny_models import save_tiny

PARTS = ("adapter_config.json", "adapter_model.safetensors")
PATH = "/v1/adapters/pirate"
DAMAGES = (
    "an unknown field",
    "another shape",
    "a tensor too many",
    "a tensor missing",
    "one value not finite",
    "a truncated file",
    "half a configuration",
    "trained with corda",
)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def client(state: Path) -> Iterator[httpx.Client]:
    model = save_tiny("llama", state / "llama")
    with real_server(model, state / "state", {}) as url, httpx.Client(base_url=url) as client:
        yield client


def put(client: httpx.Client, folder: Path) -> httpx.Response:
    files = [(part, (part, (folder / part).read_bytes())) for part in PARTS]
    return client.put(PATH, files=files, timeout=60)


def stored(state: Path) -> list[Path]:
    versions = state / "state" / "versions"
    return [path for part in PARTS for path in versions.rglob(part)]


@pytest.mark.parametrize("method", ["LORA", "PREFIX_TUNING"])
def test_each_is_refused_by_name_and_leaves_nothing(
    method: str, client: httpx.Client, state: Path, tmp_path: Path
) -> None:
    for seed, damage in enumerate(DAMAGES):
        path = tmp_path / damage
        if method == "LORA":
            folder = Folder.read(save_lora(path, "llama", target_modules=["q_proj"]))
        else:
            folder = Folder.read(save_prompt(path, "llama", method, 5))
        done = EDITS[damage](folder, Random(seed))
        answer = put(client, path)
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert error["code"] == "adapter_invalid"
        assert error["param"] == (done.where or PARTS[1])
        assert error["param"] in error["message"]
        assert client.get("/v1/adapters").json()["data"] == []
        assert client.get(PATH).status_code == 404
        assert stored(state) == []


def test_a_good_one_is_the_first_version(client: httpx.Client, state: Path, tmp_path: Path) -> None:
    good = save_lora(tmp_path / "good", "llama", target_modules=["q_proj"])
    answer = put(client, good)
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == "pirate@1"
    assert len(stored(state)) == 2
    assert client.delete(PATH).is_success
