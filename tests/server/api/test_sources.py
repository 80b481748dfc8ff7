"""Adapters loaded by a path: below open folders only, whatever links say."""

import json
from pathlib import Path

import pytest
from adapter_uploads import PATH, code_of, parts
from api_server import Api
from api_server import api as make_api


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
