"""Reading what is uploaded, here and in a process of its own: the same, or less of it."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import CONFIG, WEIGHTS, safetensors_bytes, write_adapter

from weft.adapters.errors import AdapterInvalid, LoadFailed
from weft.adapters.identity import Identify, identify, identify_apart
from weft.adapters.store import Store

LORA = {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}
BOTH = pytest.mark.parametrize("read", [identify, identify_apart])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "a", LORA, {"lora_A": torch.ones(1, 4)})


@BOTH
def test_a_folder_has_a_digest_a_size_and_files(read: Identify, adapter: Path) -> None:
    found = read(adapter)
    assert found == identify(adapter)
    assert found.nbytes == (adapter / WEIGHTS).stat().st_size
    assert found.files == {name: str(adapter / name) for name in (CONFIG, WEIGHTS)}
    assert found.digest == Store(adapter.parent / "store").put(adapter)


@BOTH
def test_files_of_a_named_adapter_lie_one_folder_deeper(read: Identify, adapter: Path) -> None:
    assert read(adapter.parent).files[WEIGHTS] == str(adapter / WEIGHTS)


@BOTH
@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        (CONFIG, b"[1", CONFIG),
        (CONFIG, b'{"a": 1, "a": 2}', CONFIG),
        (CONFIG, b"[" * 100_000, CONFIG),
        (WEIGHTS, b"\xff" * 100, WEIGHTS),
        (WEIGHTS, safetensors_bytes({"x": {"dtype": "F32", "shape": [0]}}), "x"),
    ],
)
def test_what_is_no_adapter_is_refused_alike(
    read: Identify, adapter: Path, name: str, content: bytes, where: str
) -> None:
    (adapter / name).write_bytes(content)
    with pytest.raises(AdapterInvalid) as refused:
        read(adapter)
    assert refused.value.where == where
    with pytest.raises(AdapterInvalid) as expected:
        identify(adapter)
    assert str(refused.value) == str(expected.value)


@BOTH
def test_a_missing_folder_is_refused(read: Identify, tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalid, match="is not a folder"):
        read(tmp_path / "missing")


def test_a_header_that_needs_too_much_memory_is_refused(adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes(safetensors_bytes(json.dumps({"x": "a" * 7_000_000}).encode()))
    with pytest.raises(AdapterInvalid, match="needs more than 8388608 bytes"):
        identify_apart(adapter, memory=8 << 20)
    with pytest.raises(AdapterInvalid):
        identify_apart(adapter)  # for what it is


@pytest.mark.parametrize("status", [-signal.SIGKILL, -signal.SIGXCPU, 1])
def test_a_process_that_dies_is_a_failure_that_may_pass(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    def died(command: list[str], **_: Any) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.CompletedProcess(command, status, b"")

    monkeypatch.setattr(subprocess, "run", died)
    with pytest.raises(LoadFailed):
        identify_apart(adapter)


def test_a_store_reads_uploads_as_it_is_told(adapter: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", identify=identify_apart)
    files = (adapter / CONFIG, adapter / WEIGHTS)
    assert store.put(files) == store.put(adapter) == identify(adapter).digest
    (adapter / CONFIG).write_bytes(b"{")
    with pytest.raises(AdapterInvalid, match="JSON"):
        store.put(files)
    assert not list(store.root.glob(".*"))
