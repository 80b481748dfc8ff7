"""`weft serve` as a process, and `weft adapters` against it."""

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_line import Ended, run_weft
from peft_adapters import save_lora
from tiny_models import save_tiny
from weft_process import WeftProcess

Capture = pytest.CaptureFixture[str]
KEY = "sesame"
CONTEXT = 4096


class Files(NamedTuple):
    """A base model and adapters; `foreign` was trained on another base."""

    model: Path
    shop: Path
    other: Path
    foreign: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("files")
    size = {"max_position_embeddings": CONTEXT}
    return Files(
        save_tiny("llama", root / "llama", **size),
        save_lora(root / "in" / "shop", "llama", model=size, r=4, target_modules=["q_proj"]),
        save_lora(root / "out" / "other", "llama", model=size, r=8, target_modules="all-linear"),
        save_lora(root / "out" / "foreign", "gpt2", r=4, target_modules=["c_attn"]),
    )


@pytest.fixture(scope="module")
def server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeftProcess]:
    flags = ["--adapter-dir", files.shop.parent, "--adapter-root", files.shop.parent]
    state = tmp_path_factory.mktemp("state")
    with WeftProcess("serve", files.model, "--api-key", KEY, *flags, state=state) as process:
        yield process


@pytest.fixture
def adapters(server: WeftProcess, capsys: Capture) -> Any:
    """Runs `weft adapters ARGUMENTS` against the server."""

    def run(*arguments: object, key: str = KEY) -> Ended:
        return run_weft(capsys, "adapters", *arguments, "--url", server.url, "--api-key", key)

    return run


def complete(url: str, *, max_tokens: int, model: str = "llama") -> HTTPResponse:
    """An answer that begins to stream."""
    body = {"model": model, "prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body | {"stream": True}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    response: HTTPResponse = urllib.request.urlopen(request)
    return response


def test_the_block_says_what_is_served(server: WeftProcess) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert server.block["model"].startswith("llama (")
    assert server.block["device"].startswith(("cpu, ", "cuda"))
    assert server.block["KV cache"].endswith(" tokens")
    assert "slots" in server.block["adapter pool"]
    assert server.block["adapters"] == "shop"


def test_adapters_are_listed_and_shown(adapters: Any) -> None:
    heading, row = adapters("list").out.splitlines()
    assert heading.split()[:5] == ["name", "version", "state", "tier", "method"]
    assert row.split()[:3] == ["shop", "1", "ready"]
    shown = adapters("show", "shop").out
    assert "shop@1" in shown
    assert "digest" in shown


def test_the_life_of_an_uploaded_adapter(adapters: Any, files: Files, server: WeftProcess) -> None:
    assert adapters("load", "new", files.shop).code == 0
    loaded = adapters("load", "new", files.other).out
    assert "new@2" in loaded
    assert "canary" not in loaded
    assert "canary_text" in adapters("show", "new").out
    assert "new@1" in adapters("rollback", "new").out
    assert adapters("pin", "new").out == "new: pinned\n"
    assert "pinned" in adapters("show", "new").out
    assert adapters("unpin", "new").code == 0
    with complete(server.url, max_tokens=3, model="new") as stream:
        assert stream.headers["X-Adapter-ID"] == "new@1"
        assert stream.read().endswith(b"data: [DONE]\n\n")
    assert adapters("unload", "new").out == "new: removed\n"
    assert "new" not in adapters("list").out.split()


def test_a_dry_run_changes_nothing(adapters: Any, files: Files) -> None:
    assert "all" not in adapters("load", "dry", files.other, "--dry-run").err
    assert "dry" not in adapters("list").out.split()


def test_loading_by_path_needs_an_allowed_root(adapters: Any, files: Files) -> None:
    assert adapters("load", "here", files.shop, "--on-server").code == 0
    assert adapters("unload", "here").code == 0
    refused = adapters("load", "there", files.other, "--on-server")
    assert refused.code == 1
    assert len(refused.lines) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nobody"], "nobody"),
        (["load", "base?", "{shop}"], "name"),
        (["load", "other", "{foreign}"], "target_modules"),
        (["load", "shop", "{other}", "--if-match", "0" * 64], "If-Match"),
        (["load", "hub", "some/repo", "--repo"], "--allow-hub-adapters"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_servers_refusals_are_passed_on(
    adapters: Any, files: Files, arguments: list[str], words: str
) -> None:
    ended = adapters(*(argument.format(**files._asdict()) for argument in arguments))
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.lines
    assert words in line


def test_a_wrong_key(adapters: Any) -> None:
    ended = adapters("list", key="open")
    assert ended.code == 1
    assert "API key" in ended.err


def test_a_server_that_is_not_there(capsys: Capture) -> None:
    ended = run_weft(capsys, "adapters", "list", "--url", "http://127.0.0.1:9")
    assert ended.code == 1
    assert ended.lines == ["weft: http://127.0.0.1:9: no answer: [Errno 111] Connection refused"]


def test_interrupts_drain_then_stop_and_adapters_outlive_them(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    key = ("--api-key", KEY)
    with WeftProcess("serve", files.model, *key, state=tmp_path) as process:
        load = run_weft(capsys, "adapters", "load", "kept", files.shop, *key, "--url", process.url)
        assert load.code == 0
        with complete(process.url, max_tokens=200) as stream:
            stream.readline()
            process.interrupt()
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert process.ended()[0] == 0

    with WeftProcess("serve", files.model, *key, state=tmp_path) as process:
        listed = run_weft(capsys, "adapters", "list", *key, "--url", process.url)
        assert "kept" in listed.out.split()
        with complete(process.url, max_tokens=CONTEXT - 100) as stream:
            stream.readline()
            process.interrupt()
            process.wait_for("finishing the requests under way")
            process.interrupt()
            assert process.ended()[0] == 0
            with contextlib.suppress(IncompleteRead, ConnectionError):
                assert b"[DONE]" not in stream.read()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--adapter", "a={foreign}"], ["--adapter a=", "target_modules"]),
        (["--kv-cache-memory", "1000TiB"], ["--kv-cache-memory", "lower"]),
    ],
    ids=lambda value: value[0],
)
def test_what_the_engine_refuses_ends_the_start(
    files: Files, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    flags = [flag.format(**files._asdict()) for flag in flags]
    with WeftProcess("serve", files.model, *flags, state=tmp_path) as process:
        code, out, err = process.ended()
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert all(word in line for word in words)
    assert not [line for line in err.splitlines() if not line.startswith("weft: ")]
