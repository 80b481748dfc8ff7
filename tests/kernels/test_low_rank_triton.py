"""The Triton kernels on a machine without a GPU: interpreted, and compiled ahead of time."""

from pathlib import Path

import pytest
import torch
from ahead_of_time import Launch, launches_of
from interpreted import assert_passes_interpreted, needs_interpreter

from weft.kernels.low_rank import triton as verbs
from weft.kernels.plan import generation, using
from weft.kernels.testing import LowRankProblem, low_rank_problem

ARCHITECTURES = pytest.mark.parametrize("architecture", [80, 90, 100])
WARPGROUP_PRODUCT = {80: "HMMA", 90: "HGMMA", 100: "UTC.*MMA"}
TENSOR_CORE = "HMMA|HGMMA|UTC.*MMA"


@needs_interpreter
def test_interpreted_kernels_pass_the_tests_of_the_verbs() -> None:
    assert_passes_interpreted(Path(__file__).with_name("test_low_rank.py"))


@pytest.fixture(scope="module")
def patch() -> pytest.MonkeyPatch:
    return pytest.MonkeyPatch()


def problem(dtype: torch.dtype, rows: int, rank: int) -> LowRankProblem:
    return low_rank_problem(
        rows=rows,
        ranks=[rank],
        in_features=4096,
        out_features=1024,
        dtype=dtype,
        arena_dtype=dtype,
    )


def add_launches(
    dtype: torch.dtype, rows: int, architecture: int, patch: pytest.MonkeyPatch
) -> dict[str, Launch]:
    p = problem(dtype, rows, rank=64)
    with using(generation(architecture)):
        launches = launches_of(lambda: add(p), verbs, patch)
    return {launch.kernel.__name__: launch for launch in launches}


@ARCHITECTURES
@pytest.mark.parametrize("kernel", ["shrink", "expand"])
@pytest.mark.parametrize("rows", [1, 64], ids=["decode", "prefill"])
def test_16_bit_kernels_use_tensor_cores_and_wide_loads_and_spill_nothing(
    architecture: int, kernel: str, rows: int, patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launch = add_launches(torch.bfloat16, rows, architecture, patch)[kernel]
    binary = launch.compile(architecture, tmp_path)
    assert not binary.spills
    assert binary.registers <= 128
    assert binary.shared_bytes <= 64 * 1024
    assert binary.has(WARPGROUP_PRODUCT[architecture] if rows == 64 else "HMMA")
    assert binary.has(r"(LDG|LDGSTS)\..*128")


@ARCHITECTURES
@pytest.mark.parametrize("kernel", ["shrink", "expand"])
def test_float32_kernels_are_exact_and_spill_nothing(
    architecture: int, kernel: str, patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launch = add_launches(torch.float32, 64, architecture, patch)[kernel]
    binary = launch.compile(architecture, tmp_path)
    assert not binary.spills
    assert binary.registers <= 128
    assert binary.shared_bytes <= 64 * 1024
    assert binary.has("FFMA")
    assert not binary.has(TENSOR_CORE)


@ARCHITECTURES
def test_an_embedding_look_up_compiles_and_spills_nothing(
    architecture: int, patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    p = problem(torch.bfloat16, 64, rank=16)
    with using(generation(architecture)):
        look_up, _ = launches_of(
            lambda: verbs.low_rank_embed_add_(p.y, p.ids, p.table, p.segments), verbs, patch
        )
    binary = look_up.compile(architecture, tmp_path)
    assert not binary.spills
    assert binary.registers <= 64
    assert binary.shared_bytes <= 16 * 1024


def test_a_step_launches_only_what_its_segments_need(patch: pytest.MonkeyPatch) -> None:
    mixed = low_rank_problem(
        rows=50,
        ranks=[8, 300],
        in_features=64,
        out_features=64,
        popularity="distinct",
        base_rows=3,
        dtype=torch.bfloat16,
        arena_dtype=torch.bfloat16,
    )
    assert len(launches_of(lambda: add(mixed), verbs, patch)) == 2
    decode = add_launches(torch.bfloat16, 16, 90, patch)
    assert decode["shrink"].keywords["BLOCK_ROWS"] == 16
    mixed.table.clear(0)
    mixed.table.clear(1)
    assert not launches_of(lambda: add(mixed), verbs, patch)


def add(p: LowRankProblem) -> None:
    verbs.low_rank_add_(p.y, p.x, p.table, p.segments)


def test_an_output_that_cannot_be_written_by_rows_is_refused() -> None:
    p = problem(torch.float32, 2, rank=4)
    with pytest.raises(ValueError, match="last dimension"):
        verbs.low_rank_add_(p.y.T.contiguous().T, p.x, p.table, p.segments)
