"""Every plan of every table, compiled ahead: nothing spills, and all fits where it must run."""

from pathlib import Path

import pytest
import torch
from ahead_of_time import launches_of
from attention_launches import Features, launches

from weft.kernels.low_rank import triton as low_rank
from weft.kernels.plan import generation, using
from weft.kernels.testing import low_rank_problem

pytestmark = pytest.mark.soak

ARCHITECTURES = pytest.mark.parametrize("architecture", [80, 90, 100])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
SHARED_BYTES = 101376  # of one program on sm_86, sm_89 and sm_120, the least of all


@ARCHITECTURES
@DTYPES
@pytest.mark.parametrize("head", [64, 128, 256, 512])
@pytest.mark.parametrize("new", [1, 200], ids=["decode", "prefill"])
def test_attention(
    architecture: int, dtype: torch.dtype, head: int, new: int, tmp_path: Path
) -> None:
    for features in (
        Features(k_dim=head, v_dim=head),
        Features(k_dim=head, v_dim=head, window=100, softcap=30.0, sinks=True),
    ):
        for launch in launches(new, architecture, dtype, features).values():
            binary = launch.compile(architecture, tmp_path)
            assert not binary.spills
            assert binary.shared_bytes <= SHARED_BYTES


@ARCHITECTURES
@DTYPES
@pytest.mark.parametrize("rank", [8, 64, 256])
@pytest.mark.parametrize("rows", [1, 64], ids=["decode", "prefill"])
def test_low_rank(
    architecture: int, dtype: torch.dtype, rank: int, rows: int, tmp_path: Path
) -> None:
    p = low_rank_problem(
        rows=rows,
        ranks=[rank],
        in_features=4096,
        out_features=1024,
        dtype=dtype,
        arena_dtype=dtype,
    )
    with using(generation(architecture)):
        found = launches_of(
            lambda: low_rank.low_rank_add_(p.y, p.x, p.table, p.segments),
            low_rank,
            pytest.MonkeyPatch(),
        )
    assert len(found) == 2
    for launch in found:
        binary = launch.compile(architecture, tmp_path)
        assert not binary.spills
        assert binary.shared_bytes <= SHARED_BYTES
