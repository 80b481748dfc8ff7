"""Adapters loaded from the hub: off unless switched on, within limits, only the files it needs."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapter_uploads import PATH, SMALL, code_of
from api_server import Api
from api_server import api as make_api

from weft.adapters.errors import AdapterInvalid
from weft.server.api.hub import fetched_folder


async def test_the_hub_is_off_unless_it_is_switched_on(api: Api) -> None:
    async with api.client() as client:
        answer = await client.put(PATH, json={"repo": "owner/name"})
    assert code_of(answer) == (403, "adapter_loading_disabled")
    assert "--allow-hub-adapters" in answer.json()["error"]["message"]


async def test_a_repository_is_fetched_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_api(tmp_path, allow_hub_adapters=True, adapter_root=()) as api:
        source = api.folder()

        def fetched(repo: str, revision: str | None, limit: int) -> Path:
            assert (repo, revision) == ("owner/name", "v1")
            return source

        monkeypatch.setattr("weft.server.api.adapters.fetched_folder", fetched)
        async with api.client() as client:
            answer = await client.put(PATH, json={"repo": "owner/name", "revision": "v1"})
        assert answer.status_code == 200


ADAPTERHUB_FILES = ("adapter_config.json", "adapter.safetensors")
HEAD = "model_head.safetensors"


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (("adapter_config.json", "adapter_model.safetensors", "README.md"), (0, 1)),
        (("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"), (0, 1, 2)),
        ((*ADAPTERHUB_FILES, "head_config.json"), (0, 1)),
        ((*ADAPTERHUB_FILES, "head_config.json", HEAD), (0, 1, 3)),
        (("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"), (0, 1)),
    ],
    ids=["peft", "peft, tokenizer", "adapterhub", "adapterhub, head", "peft, pickle beside"],
)
def test_what_is_fetched_from_the_hub(
    files: tuple[str, ...], fetched: tuple[int, ...], hub: "Hub"
) -> None:
    hub.files = dict.fromkeys(files, 10)
    folder = fetched_folder("owner/name", "v1", SMALL)
    assert folder == hub.folder
    assert hub.asked == ("owner/name", "v1")
    assert hub.fetched == [("owner/name", files[index], "c0ffee") for index in fetched]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "repository: lacks adapter_config.json"),
        (("adapter_config.json",), "repository: lacks adapter_model.safetensors, or AdapterHub's"),
        (("adapter_config.json", "adapter_model.bin"), "adapter_model.bin: pickle files are not"),
        (("adapter_config.json", "pytorch_adapter.bin"), "pytorch_adapter.bin: pickle files are"),
        ((*ADAPTERHUB_FILES, "pytorch_model_head.bin"), "pytorch_model_head.bin: pickle files are"),
    ],
)
def test_repositories_that_hold_no_adapter(files: tuple[str, ...], said: str, hub: "Hub") -> None:
    hub.files = dict.fromkeys(files, 10)
    with pytest.raises(AdapterInvalid, match=re.escape(said)):
        fetched_folder("owner/name", None, SMALL)
    assert not hub.fetched


@pytest.mark.parametrize("large", [*ADAPTERHUB_FILES, HEAD])
async def test_a_repository_that_is_too_large_is_not_fetched(
    large: str, hub: "Hub", tmp_path: Path
) -> None:
    hub.files = dict.fromkeys((*ADAPTERHUB_FILES, HEAD), 10) | {large: 1 << 50}
    with make_api(tmp_path, allow_hub_adapters=True) as api:
        async with api.client() as client:
            answer = await client.put(PATH, json={"repo": "owner/name"})
    assert code_of(answer) == (413, "request_too_large")
    assert not hub.fetched


async def test_a_hub_that_cannot_be_reached(hub: "Hub", tmp_path: Path) -> None:
    hub.failure = OSError("secret.example unreachable")
    with make_api(tmp_path, allow_hub_adapters=True) as api:
        async with api.client() as client:
            answer = await client.put(PATH, json={"repo": "owner/name"})
            assert code_of(answer) == (400, "invalid_parameter")
            assert "secret" not in answer.text
            answer = await client.put(PATH, json={"repo": "../name"})
            assert code_of(answer) == (400, "invalid_parameter")


async def test_an_adapter_of_the_hub_is_served(hub: "Hub", tmp_path: Path) -> None:
    with make_api(tmp_path, allow_hub_adapters=True) as api:
        hub.folder = api.folder()
        hub.files = dict.fromkeys(("adapter_config.json", "adapter_model.safetensors"), 10)
        async with api.client() as client:
            answer = await client.put(PATH, json={"repo": "owner/name"})
    assert answer.status_code == 200, answer.text


@dataclass
class Hub:
    """A hub with one repository, its files by size; those that were fetched lie in `folder`."""

    folder: Path
    files: dict[str, int] = field(default_factory=dict)
    failure: Exception | None = None
    asked: tuple[str, str | None] | None = None
    fetched: list[tuple[str, str, str]] = field(default_factory=list)

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        self.asked = repo, revision
        if self.failure is not None:
            raise self.failure
        found = [SimpleNamespace(rfilename=name, size=size) for name, size in self.files.items()]
        return SimpleNamespace(siblings=found, sha="c0ffee")

    def download(self, repo: str, name: str, revision: str) -> str:
        self.fetched.append((repo, name, revision))
        return str(self.folder / name)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    made = Hub(tmp_path / "snapshot")
    monkeypatch.setattr(
        "huggingface_hub.HfApi", lambda: SimpleNamespace(model_info=made.model_info)
    )
    monkeypatch.setattr("huggingface_hub.hf_hub_download", made.download)
    return made
