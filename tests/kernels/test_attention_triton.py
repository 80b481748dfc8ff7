"""The Triton kernels on a machine without a GPU: interpreted, and compiled ahead of time."""

from pathlib import Path

import pytest
import torch
from attention_launches import EVERYTHING, PLAIN, Features, launches, write_launch
from interpreted import assert_passes_interpreted, needs_interpreter

ARCHITECTURES = pytest.mark.parametrize("architecture", [80, 90, 100])
WARPGROUP_PRODUCT = {80: "HMMA", 90: "HGMMA", 100: "UTC.*MMA"}
TENSOR_CORE = "HMMA|HGMMA|UTC.*MMA"
WIDE_COPY = r"LDGSTS\..*128"  # from memory to shared memory, 16 bytes a thread, without waiting


@needs_interpreter
def test_interpreted_kernels_pass_the_tests_of_the_verbs() -> None:
    assert_passes_interpreted(Path(__file__).with_name("test_attention.py"))


FEATURES = pytest.mark.parametrize("features", [PLAIN, EVERYTHING], ids=["plain", "everything"])


@ARCHITECTURES
@FEATURES
def test_decoding_in_16_bits_copies_ahead_uses_tensor_cores_and_spills_nothing(
    architecture: int, features: Features, tmp_path: Path
) -> None:
    launch = launches(1, architecture, torch.bfloat16, features)["attend_part"]
    binary = launch.compile(architecture, tmp_path)
    assert not binary.spills
    assert binary.registers <= 168  # three groups of four warps fit a multiprocessor
    assert binary.shared_bytes <= 64 * 1024
    assert binary.has("HMMA")
    assert binary.has(WIDE_COPY)


@ARCHITECTURES
@FEATURES
def test_prompts_in_16_bits_copy_ahead_use_tensor_cores_and_spill_nothing(
    architecture: int, features: Features, tmp_path: Path
) -> None:
    launch = launches(200, architecture, torch.bfloat16, features)["attend_tile"]
    binary = launch.compile(architecture, tmp_path)
    assert not binary.spills
    assert binary.registers <= 255
    assert binary.shared_bytes <= 100 * 1024  # two tiles fit a multiprocessor of sm_90
    assert binary.has(WARPGROUP_PRODUCT[architecture])
    assert binary.has(WIDE_COPY)


@ARCHITECTURES
@pytest.mark.parametrize(("new", "kernel"), [(1, "attend_part"), (200, "attend_tile")])
def test_float32_is_exact_and_spills_nothing(
    architecture: int, new: int, kernel: str, tmp_path: Path
) -> None:
    binary = launches(new, architecture, torch.float32)[kernel].compile(architecture, tmp_path)
    assert not binary.spills
    assert binary.shared_bytes <= 100 * 1024
    assert binary.has("FFMA")
    assert not binary.has(TENSOR_CORE)


@ARCHITECTURES
def test_combining_parts_and_writing_rows_spill_nothing(architecture: int, tmp_path: Path) -> None:
    for launch in (
        launches(1, architecture, torch.bfloat16)["combine_parts"],
        write_launch(architecture),
    ):
        binary = launch.compile(architecture, tmp_path)
        assert not binary.spills
        assert binary.registers <= 64
        assert binary.shared_bytes <= 4 * 1024
        assert binary.has(r"LDG\..*128")


def test_a_call_launches_only_what_its_sequences_need() -> None:
    assert launches(1, 90, torch.bfloat16).keys() == {"attend_part", "combine_parts"}
    assert launches(1, 90, torch.bfloat16, Features(window=100)).keys() == {"attend_part"}
    assert launches(7, 90, torch.bfloat16).keys() == {"attend_tile"}
