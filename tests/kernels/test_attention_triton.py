"""The Triton kernels on a machine without a GPU: interpreted, and compiled ahead of time."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ahead_of_time import Binary, Launch, launches_of
from interpreted import assert_passes_interpreted, needs_interpreter

from weft.kernels.attention import triton_decode, triton_prefill, triton_write
from weft.kernels.attention.call import Call
from weft.kernels.plan import generation, using
from weft.kernels.testing import PagedProblem, paged_problem

ARCHITECTURES = pytest.mark.parametrize("architecture", [80, 90, 100])
WARPGROUP_PRODUCT = {80: "HMMA", 90: "HGMMA", 100: "UTC.*MMA"}
TENSOR_CORE = "HMMA|HGMMA|UTC.*MMA"
WIDE_COPY = r"LDGSTS\..*128"  # from memory to shared memory, 16 bytes a thread, without waiting


@needs_interpreter
def test_interpreted_kernels_pass_the_tests_of_the_verbs() -> None:
    assert_passes_interpreted(Path(__file__).with_name("test_attention.py"))


@dataclass(frozen=True)
class Features:
    """What a model asks of attention beside the plain softmax."""

    k_dim: int = 128
    v_dim: int = 128
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


PLAIN = Features()
EVERYTHING = Features(k_dim=96, v_dim=80, window=100, softcap=30.0, sinks=True)
FEATURES = pytest.mark.parametrize("features", [PLAIN, EVERYTHING], ids=["plain", "everything"])


def problem(new: int, dtype: torch.dtype, features: Features) -> PagedProblem:
    return paged_problem(
        [(700, new), (20, new)],
        kv_heads=8,
        group=4,
        k_dim=features.k_dim,
        v_dim=features.v_dim,
        page_size=16,
        dtype=dtype,
    )


def launches(
    new: int, architecture: int, dtype: torch.dtype, features: Features = PLAIN
) -> dict[str, Launch]:
    """Those of an attention call in which each sequence has `new` queries."""
    p = problem(new, dtype, features)
    call = Call(
        out=p.q.new_empty(*p.q.shape[:2], features.v_dim),
        q=p.q,
        k_pool=p.k_pool,
        v_pool=p.v_pool,
        batch=p.batch,
        scaling=0.1,
        window=features.window,
        softcap=features.softcap,
        sinks=p.sinks if features.sinks else None,
    )
    patch = pytest.MonkeyPatch()
    with using(generation(architecture)):
        if new == 1:
            found = launches_of(lambda: triton_decode.attend_decodes(call), triton_decode, patch)
        else:
            found = launches_of(lambda: triton_prefill.attend_prompts(call), triton_prefill, patch)
    return {launch.kernel.__name__: launch for launch in found}


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
        binary: Binary = launch.compile(architecture, tmp_path)
        assert not binary.spills
        assert binary.registers <= 64
        assert binary.shared_bytes <= 4 * 1024
        assert binary.has(r"LDG\..*128")


def write_launch(architecture: int) -> Launch:
    p = problem(1, torch.bfloat16, PLAIN)
    k, v = (p.k_pool.flatten(0, 1)[p.batch.slot_mapping] for _ in range(2))
    with using(generation(architecture)):
        (launch,) = launches_of(
            lambda: triton_write.write_kv(k, v, p.k_pool, p.v_pool, p.batch),
            triton_write,
            pytest.MonkeyPatch(),
        )
    return launch


def test_a_call_launches_only_what_its_sequences_need() -> None:
    assert launches(1, 90, torch.bfloat16).keys() == {"attend_part", "combine_parts"}
    assert launches(1, 90, torch.bfloat16, Features(window=100)).keys() == {"attend_part"}
    assert launches(7, 90, torch.bfloat16).keys() == {"attend_tile"}
