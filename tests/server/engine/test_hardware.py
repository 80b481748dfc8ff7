"""Device, dtype and threads."""

import resource
from pathlib import Path

import pytest
import torch

from weft.server.engine import hardware
from weft.server.engine.unsupported import ModelUnsupported

CPU = torch.device("cpu")


def test_names_are_checked() -> None:
    with pytest.raises(ModelUnsupported, match="--device tpu"):
        hardware.choose_device("tpu")
    with pytest.raises(ModelUnsupported, match="--dtype int3 is not one of auto, bfloat16"):
        hardware.choose_dtype("int3", CPU, 1)


def test_a_cpu_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.choose_device("auto") == CPU
    assert hardware.choose_device("cpu") == CPU
    with pytest.raises(ModelUnsupported, match="no usable CUDA device"):
        hardware.choose_device("cuda")


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.choose_device("auto").type == "cuda"
    assert hardware.choose_device("cuda:1").index == 1


@pytest.mark.parametrize(
    ("parameters", "has_bf16", "expected"),
    [
        (1_000_000, True, torch.float32),
        (100_000_000, True, torch.bfloat16),
        (100_000_000, False, torch.float32),
    ],
)
def test_small_models_stay_in_float32_on_a_cpu(
    parameters: int, has_bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_cpu_has_bf16", lambda: has_bf16)
    assert hardware.choose_dtype("auto", CPU, parameters) == expected
    assert hardware.choose_dtype("float16", CPU, parameters) == torch.float16


def test_threads_and_memory_are_sensible() -> None:
    assert hardware.default_threads() >= 1
    assert hardware.free_memory(CPU) > 0


def test_zeros_take_no_memory_before_they_are_used() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    values = hardware.zeros((1 << 10, 1 << 18), torch.bfloat16, CPU)
    assert values.shape == (1 << 10, 1 << 18)
    assert values.dtype == torch.bfloat16
    assert resident() - before < 64 << 20
    assert not values[::100, ::1000].any()
    values[5, 7] = 2
    assert values[5, 7] == 2
    assert hardware.zeros((0, 3), torch.float32, CPU).shape == (0, 3)
