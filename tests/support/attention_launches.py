"""The launches that calls of paged attention ask for, as GPUs of some generation get them."""

from dataclasses import dataclass

import pytest
import torch
from ahead_of_time import Launch, launches_of

from weft.kernels.attention import triton_decode, triton_prefill, triton_write
from weft.kernels.attention.call import Call
from weft.kernels.plan import generation, using
from weft.kernels.testing import PagedProblem, paged_problem


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
