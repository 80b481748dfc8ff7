"""What each class of launch plans is measured and checked on: layers of an 8B model."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from kernel_cases import EIGHT_BILLION, RANK, Case, attention, cache_write, low_rank

from weft.kernels.attention import paged_attention
from weft.kernels.attention import reference as attention_reference
from weft.kernels.low_rank import low_rank_add_
from weft.kernels.low_rank import reference as low_rank_reference
from weft.kernels.testing import assert_close, low_rank_problem, paged_problem

DTYPES = {"16-bit": torch.bfloat16, "32-bit": torch.float32}
CONTEXTS = (512, 4096)
PROMPT = 2048


@dataclass(frozen=True)
class Tuned:
    """The cases that count, alike, and a check that raises AssertionError for a wrong result."""

    cases: list[Case]
    check: Callable[[], None]


def tuned(kernel: str, problem: str, device: torch.device) -> Tuned:
    """For a kernel and a class of problem as the plan tables call them."""
    if kernel == "low_rank":
        return _low_rank(problem, device)
    if kernel == "cache_write":
        case = cache_write(EIGHT_BILLION, EIGHT_BILLION.decodes[-1], torch.bfloat16, device)()
        return Tuned([case], lambda: None)  # a copy: its sizes only cut it
    width, head = problem.split(", head ")
    return _attention(kernel == "attention_decode", DTYPES[width], int(head), device)


def _low_rank(problem: str, device: torch.device) -> Tuned:
    dtype = torch.float32 if problem == "exact" else torch.bfloat16
    rows, adapters = (PROMPT, (1, 8)) if problem == "long" else (EIGHT_BILLION.decodes[-1], (4, 64))
    cases = [
        low_rank(EIGHT_BILLION, name, width, rows, [RANK] * count, dtype, device)()
        for name, width in EIGHT_BILLION.maps.items()
        for count in adapters
    ]
    small = low_rank_problem(
        rows=100 if problem == "long" else 20,
        ranks=[RANK, 40] if problem == "long" else [RANK, 1, 40],
        in_features=EIGHT_BILLION.hidden,
        out_features=EIGHT_BILLION.hidden,
        dtype=dtype,
        arena_dtype=dtype,
        device=str(device),
    )
    expected = small.y.clone()
    low_rank_reference.low_rank_add_(expected, small.x, small.table, small.segments)

    def check() -> None:
        y = small.y.clone()
        low_rank_add_(y, small.x, small.table, small.segments)
        assert_close(y, expected, dtype)

    return Tuned(cases, check)


def _attention(decodes: bool, dtype: torch.dtype, head: int, device: torch.device) -> Tuned:
    kv_heads = max(1, EIGHT_BILLION.kv_heads * EIGHT_BILLION.head_dim // max(head, 128))
    shapes = replace(EIGHT_BILLION, kv_heads=kv_heads, head_dim=head)  # of no more bytes
    if decodes:
        lengths = [[(keys - 1, 1)] * rows for keys in CONTEXTS for rows in shapes.decodes]
    else:
        lengths = [[(0, PROMPT)], [(PROMPT, PROMPT // 4)]]
    cases = [attention(shapes, "", each, dtype, device)() for each in lengths]
    new = 1 if decodes else 77
    p = paged_problem(
        [(700, new), (30, new), (0, new)],
        kv_heads=shapes.kv_heads,
        group=shapes.group,
        k_dim=head,
        v_dim=head,
        page_size=16,
        dtype=dtype,
        device=str(device),
    )
    arguments = (p.q, p.k_pool, p.v_pool, p.batch)
    expected = attention_reference.paged_attention(
        *arguments, scaling=head**-0.5, window=None, softcap=None, sinks=None
    )

    def check() -> None:
        assert_close(paged_attention(*arguments, scaling=head**-0.5), expected, dtype)

    return Tuned(cases, check)
