"""/v1/adapters and vLLM's two routes: loading in all three ways, replacing, removing, refusing."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from api_server import BASE, MESSAGES, Api, adapter_parts
from api_server import api as make_api
from fake_engine import stats_of

from weft.adapters.errors import AdapterInvalid, StorageFull
from weft.server.api.hub import fetched_folder
from weft.server.holdings import Holdings
from weft.server.policy import NO_QUOTAS
from weft.server.tenants import DEFAULT_TENANT

PATH = "/v1/adapters/pirate"
SMALL = Holdings((), {}).allowance(NO_QUOTAS, 100)


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


async def test_a_path_below_an_open_folder_is_loaded(api: Api) -> None:
    async with api.client() as client:
        answer = await client.put(PATH, json={"path": str(api.folder())})
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert shown["id"] == "pirate@1"
    assert shown["state"] == "ready"
    assert (shown["method"], shown["rank"], shown["tier"]) == ("LORA", 4, "disk")
    assert shown["report"]["tensors"] == 2
    assert answer.headers["etag"] == f'"{shown["digest"]}"'
    assert [version["version"] for version in shown["versions"]] == [1]
    assert api.engine.loaded == {shown["digest"]}
    assert str(api.root) not in answer.text


async def test_a_path_may_be_relative_to_the_open_folder(api: Api) -> None:
    name = api.folder().name
    async with api.client() as client:
        assert (await client.put(PATH, json={"path": name})).status_code == 200


@pytest.mark.parametrize("order", [1, -1])
async def test_an_upload_is_loaded_whatever_the_order_of_its_parts(api: Api, order: int) -> None:
    async with api.client() as client:
        by_upload = await client.put(PATH, files=parts()[::order])
        by_path = await client.put("/v1/adapters/other", json={"path": str(api.folder())})
    assert by_upload.status_code == 200, by_upload.text
    assert by_upload.json()["digest"] == by_path.json()["digest"]


async def test_an_upload_in_small_pieces_is_the_same(api: Api) -> None:
    request = httpx.Request("PUT", "http://weft" + PATH, files=parts())
    body = request.read()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 7):
            yield body[at : at + 7]

    headers = {"Content-Type": request.headers["content-type"]}
    async with api.client() as client:
        answer = await client.put(PATH, content=pieces(), headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("files", "param"),
    [
        (parts()[:1], "adapter_model.safetensors"),
        (parts()[1:], "adapter_config.json"),
        ([*parts(), ("extra", ("x", b"x"))], "body"),
        ([*parts(), parts()[0]], "adapter_config.json"),
    ],
)
async def test_anything_but_the_two_parts_is_refused(api: Api, files: list, param: str) -> None:
    async with api.client() as client:
        answer = await client.put(PATH, files=files)
    assert code_of(answer) == (400, "invalid_parameter")
    assert answer.json()["error"]["param"] == param
    nothing_left(api)


async def test_an_upload_cut_anywhere_leaves_nothing(api: Api) -> None:
    request = httpx.Request("PUT", "http://weft" + PATH, files=parts())
    body = request.read()
    headers = {"Content-Type": request.headers["content-type"]}
    async with api.client() as client:
        for end in range(0, len(body) - 2, 16):
            answer = await client.put(PATH, content=body[:end], headers=headers)
            assert answer.status_code in (400, 422), answer.text
    nothing_left(api)
    assert not api.engine.loaded


async def test_an_upload_beyond_the_limit_is_413(tmp_path: Path) -> None:
    with make_api(tmp_path, max_adapter_size=1) as api:
        (name, (file, _)), weights = parts()
        big = [(name, (file, b"{" + b" " * (2 << 20))), weights]
        async with api.client() as client:
            answer = await client.put(PATH, files=big)
            assert code_of(answer) == (413, "request_too_large")
            answer = await client.put(PATH, json={"path": str(api.folder())})
            assert code_of(answer) == (413, "request_too_large")
        nothing_left(api)


@pytest.mark.parametrize("path", ["/etc", "..", "../..", "/nowhere/at/all", "open/../.."])
async def test_a_path_outside_is_forbidden_in_the_same_words(api: Api, path: str) -> None:
    async with api.client() as client:
        answer = await client.put(PATH, json={"path": path})
    assert code_of(answer) == (403, "forbidden")
    assert answer.json()["error"]["message"] == (
        "This is not allowed: the path is not below a folder that is open for loading."
    )


async def test_links_that_lead_outside_are_forbidden(api: Api, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    api.folder().rename(outside)
    (api.root / "whole").symlink_to(outside)
    inner = api.root / "file"
    inner.mkdir()
    (inner / "adapter_config.json").symlink_to(outside / "adapter_config.json")
    (inner / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    async with api.client() as client:
        for name in ("whole", "file"):
            assert code_of(await client.put(PATH, json={"path": name})) == (403, "forbidden")


async def test_links_that_stay_inside_are_followed(api: Api) -> None:
    (api.root / "link").symlink_to(api.folder())
    async with api.client() as client:
        assert (await client.put(PATH, json={"path": "link"})).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("none", 422, "adapter_invalid"),
        ("a\0b", 400, "invalid_parameter"),
        ("", 400, "invalid_parameter"),
    ],
)
async def test_a_path_to_nothing_is_told(api: Api, path: str, status: int, code: str) -> None:
    async with api.client() as client:
        answer = await client.put(PATH, json={"path": path})
    assert code_of(answer) == (status, code)
    assert str(api.root) not in answer.text


async def test_without_open_folders_only_uploads_load(tmp_path: Path) -> None:
    with make_api(tmp_path, adapter_root=()) as api:
        async with api.client() as client:
            answer = await client.put(PATH, json={"path": str(api.folder())})
            assert code_of(answer) == (403, "forbidden")
            assert (await client.put(PATH, files=parts())).status_code == 200


async def test_a_folder_with_a_tokenizer_of_its_own_is_warned_of(api: Api) -> None:
    folder = api.folder()
    tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<tool>", "id": 9}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    async with api.client() as client:
        shown = (await client.put(PATH, json={"path": str(folder)})).json()
        again = (await client.get(PATH)).json()
    (warning,) = shown["warnings"]
    assert "'<tool>'" in warning
    assert again["warnings"] == again["report"]["warnings"] == [warning]


@pytest.mark.parametrize("body", [{}, {"path": "a", "repo": "b/c"}, {"url": "x"}, {"path": 5}])
async def test_a_body_must_name_one_source(api: Api, body: dict) -> None:
    async with api.client() as client:
        assert (await client.put(PATH, json=body)).status_code == 400


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


@pytest.mark.parametrize("name", ["a b", "-a", "x" * 65, "a@1", "%2e%2e", BASE])
async def test_names_that_no_adapter_may_have(api: Api, name: str) -> None:
    async with api.client() as client:
        answer = await client.put(f"/v1/adapters/{name}", json={"path": str(api.folder())})
    assert code_of(answer) == (400, "invalid_parameter")
    nothing_left(api)


async def test_what_the_engine_refuses_is_422_and_leaves_nothing(api: Api) -> None:
    async with api.client() as client:
        digest = (await client.put(PATH, files=parts())).json()["digest"]
        await client.delete(PATH)
        api.engine.load_failures[digest] = AdapterInvalid("q_proj.lora_A", "has another shape")
        answer = await client.put(PATH, files=parts())
    assert code_of(answer) == (422, "adapter_invalid")
    assert answer.json()["error"]["param"] == "q_proj.lora_A"
    assert "has another shape" in answer.json()["error"]["message"]
    nothing_left(api)


async def test_a_load_that_the_engine_does_not_survive_leaves_nothing(api: Api) -> None:
    api.engine.ready = False
    async with api.client() as client:
        answer = await client.put(PATH, files=parts())
    assert code_of(answer) == (503, "engine_unavailable")
    nothing_left(api)


async def test_removing_works_while_the_engine_is_away(api: Api) -> None:
    await api.add("pirate")
    api.engine.ready = False
    async with api.client() as client:
        assert (await client.delete(PATH)).status_code == 200
    nothing_left(api)


async def test_a_pickle_is_refused_with_the_way_out(api: Api) -> None:
    folder = api.folder()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    async with api.client() as client:
        answer = await client.put(PATH, json={"path": folder.name})
    assert code_of(answer) == (422, "adapter_invalid")
    assert "adapter_model.bin" in answer.json()["error"]["message"]


async def test_a_full_disk_is_507_and_changes_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFull(28, "full")

    monkeypatch.setattr(api.registry, "ingest", full)
    async with api.client() as client:
        answer = await client.put(PATH, files=parts())
    assert code_of(answer) == (507, "insufficient_storage")
    nothing_left(api)


async def test_a_dry_run_reports_and_keeps_nothing(api: Api) -> None:
    async with api.client() as client:
        answer = await client.put(PATH + "?dry_run=true", files=parts())
    assert answer.json()["report"]["rank"] == 4
    assert answer.json()["dry_run"] is True
    nothing_left(api)
    assert not api.engine.loaded


async def test_query_parameters_are_checked(api: Api) -> None:
    async with api.client() as client:
        answer = await client.put(PATH + "?dry_run=perhaps", files=parts())
        assert code_of(answer) == (400, "invalid_parameter")
        assert answer.json()["error"]["param"] == "dry_run"
        assert (await client.get("/v1/adapters?limit=0")).status_code == 400


async def test_replacing_makes_a_version_and_rollback_goes_back(api: Api) -> None:
    async with api.client() as client:
        first = (await client.put(PATH, files=parts(1))).json()
        second = (await client.put(PATH, files=parts(2))).json()
        assert (first["id"], second["id"]) == ("pirate@1", "pirate@2")
        again = (await client.put(PATH, files=parts(2))).json()
        assert again["id"] == "pirate@2"
        back = await client.post(PATH + "/rollback")
        assert back.json()["digest"] == first["digest"]
        assert len(back.json()["versions"]) == 2
        assert (await client.post(PATH + "/rollback")).status_code == 404


async def test_if_match_guards_a_replacement(api: Api) -> None:
    async with api.client() as client:
        guard = {"If-Match": '"' + "0" * 64 + '"'}
        answer = await client.put(PATH, files=parts(1), headers=guard)
        assert code_of(answer) == (409, "version_conflict")
        nothing_left(api)
        first = await client.put(PATH, files=parts(1))
        answer = await client.put(PATH, files=parts(2), headers=guard)
        assert code_of(answer) == (409, "version_conflict")
        assert (await client.delete(PATH, headers=guard)).status_code == 409
        guard = {"If-Match": first.headers["etag"]}
        assert (await client.put(PATH, files=parts(2), headers=guard)).status_code == 200
        assert (await client.put(PATH, files=parts(3), headers=guard)).status_code == 409


async def test_running_requests_finish_on_the_version_they_began_with(api: Api) -> None:
    old = await api.add("pirate", seed=1)
    gate = asyncio.Event()
    api.engine.pace = gate.wait
    async with api.client() as client:
        body = {"model": "pirate", "messages": MESSAGES}
        running = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await api.engine.until(lambda: bool(api.engine.requests))
        assert (await client.get(PATH)).json()["refs"] == 1
        deleted = await client.delete(PATH)
        assert deleted.json() == {"id": "pirate", "object": "adapter", "deleted": True}
        assert api.registry.stored(old)
        gate.set()
        answer = await running
    assert answer.headers["x-adapter-digest"] == old
    no_files(api)


async def test_pins_follow_the_name(api: Api) -> None:
    async with api.client() as client:
        first = (await client.put(PATH, files=parts(1))).json()["digest"]
        assert (await client.post(PATH + "/pin")).json()["pinned"] is True
        assert api.engine.pins == {first: True}
        second = (await client.put(PATH, files=parts(2))).json()["digest"]
        assert api.engine.pins == {first: False, second: True}
        assert (await client.post(PATH + "/unpin")).json()["pinned"] is False
        assert api.engine.pins[second] is False
        await client.post(PATH + "/pin")
        await client.delete(PATH)
        assert api.engine.pins[second] is False


async def test_a_version_shared_by_two_names_stays_pinned_and_loaded(api: Api) -> None:
    digest = await api.add("a")
    await api.add("b")
    async with api.client() as client:
        await client.post("/v1/adapters/a/pin")
        await client.post("/v1/adapters/b/pin")
        await client.delete("/v1/adapters/a")
    assert api.engine.pins[digest] is True
    assert digest in api.engine.loaded


async def test_prefetch_asks_the_engine(api: Api) -> None:
    digest = await api.add("pirate")
    async with api.client() as client:
        assert (await client.post(PATH + "/prefetch")).status_code == 200
        assert (await client.post("/v1/adapters/none/prefetch")).status_code == 404
    assert api.engine.prefetched == [digest]


async def test_the_list_is_paged_and_tells_tiers(api: Api) -> None:
    digests = [await api.add(name, seed=i) for i, name in enumerate("abc")]
    api.engine.stats = stats_of({digests[0]: "device", digests[1]: "host"})
    async with api.client() as client:
        page = (await client.get("/v1/adapters?limit=2")).json()
        assert [entry["name"] for entry in page["data"]] == ["a", "b"]
        assert [entry["tier"] for entry in page["data"]] == ["device", "host"]
        assert page["has_more"] is True
        page = (await client.get("/v1/adapters?limit=2&after=b")).json()
        assert [entry["name"] for entry in page["data"]] == ["c"]
        assert page["has_more"] is False


async def test_an_adapter_on_its_way_is_listed_as_loading(api: Api) -> None:
    gate = asyncio.Event()
    api.engine.pace = gate.wait
    async with api.client() as client:
        loading = asyncio.create_task(client.put(PATH, files=parts()))
        await api.engine.until(lambda: api.engine.paces > 0)
        seen = (await client.get("/v1/adapters")).json()["data"]
        assert (seen[0]["name"], seen[0]["state"]) == ("pirate", "loading")
        assert (await client.get(PATH)).json()["state"] == "loading"
        body = {"model": "pirate", "messages": MESSAGES}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 404
        gate.set()
        assert (await loading).json()["state"] == "ready"


async def test_unknown_adapters_are_404_everywhere(api: Api) -> None:
    async with api.client() as client:
        for method, suffix in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/rollback"),
            ("POST", "/pin"),
            ("POST", "/unpin"),
            ("POST", "/prefetch"),
        ):
            answer = await client.request(method, PATH + suffix)
            assert code_of(answer) == (404, "model_not_found"), (method, suffix)


async def test_where_loading_is_off_every_change_names_the_flag(tmp_path: Path) -> None:
    with make_api(tmp_path, allow_runtime_adapters=False) as api:
        await api.add("pirate")
        async with api.client() as client:
            answers = [
                await client.put(PATH, files=parts()),
                await client.delete(PATH),
                await client.post(PATH + "/rollback"),
                await client.post(PATH + "/pin"),
                await client.post("/v1/load_lora_adapter", json={}),
                await client.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"}),
            ]
            for answer in answers:
                assert code_of(answer) == (403, "adapter_loading_disabled")
                assert "--allow-runtime-adapters" in answer.json()["error"]["message"]
            assert (await client.get(PATH)).status_code == 200


async def test_vllms_routes_load_and_unload(api: Api) -> None:
    body = {"lora_name": "pirate", "lora_path": str(api.folder())}
    async with api.client() as client:
        answer = await client.post("/v1/load_lora_adapter", json=body)
        assert answer.text == "Success: LoRA adapter 'pirate' added successfully."
        answer = await client.post("/v1/load_lora_adapter", json=body)
        assert code_of(answer) == (400, "invalid_parameter")
        again = {**body, "lora_path": str(api.folder(1)), "load_inplace": True}
        assert (await client.post("/v1/load_lora_adapter", json=again)).status_code == 200
        assert (await client.get(PATH)).json()["version"] == 2
        answer = await client.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"})
        assert answer.text == "Success: LoRA adapter 'pirate' removed successfully."
        answer = await client.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"})
        assert code_of(answer) == (404, "model_not_found")
