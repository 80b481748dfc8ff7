"""The command, from end to end: a server that runs, one that it starts, and what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import pytest
import typer
import workload
from api_server import listening
from real_server import real_server
from serving import command, served
from serving.discovery import discover
from serving.target import ByLoraField, ByModel, PlainOpenAI
from serving.weft_server import weft_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from weft.server.demo import BASE, adapter_folders

SHORT: dict[str, Any] = {"rate": 8.0, "seconds": 1.0, "prompt": "4-8", "answer": "2-4"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_server_that_runs(tmp_path: Path, results: Path) -> None:
    names = ["s-lora 5", "punica identical", "prefix", "prefix, not shared"]
    with real_server(BASE, tmp_path / "state", adapter_folders()) as url:
        command.main(
            url=f"{url}/",
            workloads="s-lora 5; prefix*;*identical",
            plot=tmp_path / "plot.png",
            **SHORT,
        )
    found = json.loads((results / "serving.json").read_text())
    assert found["machine"]["packages"]
    assert list(found["runs"]) == names
    for run in found["runs"].values():
        assert 0 < run["requests"] == run["answered"]
        assert (run["errors"], run["short"], run["counted"]) == ({}, 0, True)
        assert run["tokens_per_second"] > run["requests_per_second"] > 0
        assert run["first_token"]["p50"] <= run["first_token"]["p99"] <= run["whole"]["max"]
        assert run["floor_step_seconds"] is None
    assert found["runs"]["punica identical"]["sent"] == "32 clients"
    assert found["runs"]["prefix"]["cached"] > found["runs"]["prefix, not shared"]["cached"]
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_server_that_is_started(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "CACHE", tmp_path / "cache")
    for name in ("MOST_ADAPTERS", "MIXED", "COLD"):
        monkeypatch.setattr(served, name, 8)
    command.main(workloads="cold", results="own", clients=0, **SHORT)
    run = json.loads((results / "own.json").read_text())["runs"]["cold"]
    assert run["sent"] == "8 a second"
    assert run["errors"] == {}
    assert {kind: part["errors"] for kind, part in run["kinds"].items()} == {"cold": {}, "warm": {}}
    assert run["kinds"]["cold"]["requests"] == 2
    assert 0 < run["floor_step_seconds"] < run["first_token"]["p50"]


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"weft did not start: .*nowhere"),
        weft_server(tmp_path / "nowhere", {}),
    ):
        pytest.fail("it serves nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workloads": "s-lora 5;chess"}, "--workloads: chess is none of s-lora 5; "),
        ({"prompt": "64"}, "--prompt: should be LEAST-MOST"),
        ({"answer": "9-8"}, "--answer: should be LEAST-MOST"),
        ({"answer": "0-8"}, "--answer: should be LEAST-MOST"),
        ({"dialect": "ollama"}, "--dialect: ollama is none of weft"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        command.main(url="http://127.0.0.1:1", **options)


@pytest.fixture(scope="module")
def others() -> Iterator[str]:
    """What vLLM and llama.cpp say of themselves."""
    models = [
        {"id": "qwen", "parent": None},
        {"id": "support", "parent": "qwen"},
        {"id": "legal", "parent": "qwen"},
    ]

    def listed(request: Request) -> JSONResponse:
        keyed = request.headers.get("authorization") == "Bearer key"
        return JSONResponse({"data": models if keyed else []})

    def lora(request: Request) -> JSONResponse:
        paths = ("support.gguf", "legal.gguf")
        adapters = [{"id": n, "path": path, "scale": 0.0} for n, path in enumerate(paths)]
        return JSONResponse(adapters)

    app = Starlette(routes=[Route("/v1/models", listed), Route("/lora-adapters", lora)])
    with listening(app) as url:
        yield url


def test_servers_are_asked_what_they_have(others: str) -> None:
    key = {"authorization": "Bearer key"}
    assert discover(others, "vllm", key) == (ByModel("qwen"), ["support", "legal"])
    assert discover(others, "openai", key) == (PlainOpenAI("qwen"), ["support", "legal"])
    places = {"0": 0, "1": 1}
    assert discover(others, "llama.cpp", {}) == (ByLoraField(places), ["0", "1"])
    with pytest.raises(OSError, match="names no model without a parent"):
        discover(others, "vllm", {})
