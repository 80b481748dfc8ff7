"""/v1/adapters and vLLM's two routes: loading in all three ways, replacing, removing, refusing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from adapter_uploads import PATH, code_of, no_files, nothing_left, parts
from api_server import BASE, MESSAGES, Api
from api_server import api as make_api
from fake_engine import stats_of

from weft.adapters.errors import AdapterInvalid, StorageFull


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
