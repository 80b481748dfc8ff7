"""Microseconds per call of low-rank strategies and attention: `python benchmarks/kernel_times.py`.

One CPU thread. Adapters are rotated so that their bytes come from memory, as in a model with many
layers.
"""

import itertools
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import linear

from weft.kernels.attention import paged_attention
from weft.kernels.attention.reference import paged_attention as attention_reference
from weft.kernels.low_rank import LowRankTable, low_rank_add_, reference
from weft.kernels.testing import LowRankProblem, low_rank_problem, paged_problem

RANK = 16
ROTATED_BYTES = 100e6
SHAPES = ((896, 896), (4864, 896), (896, 4864))
CASES = (("decode", 32, 32), ("decode", 32, 8), ("prefill", 512, 1), ("prefill", 512, 8))
DTYPES = (torch.float32, torch.bfloat16)
ATTENTION_CASES = (
    ("decode 32 x 128", 32, 127, 1),
    ("decode 32 x 512", 32, 511, 1),
    ("prefill 512", 1, 0, 512),
    ("chunk 256 of 2048", 1, 1792, 256),
)


def pair_of(table: LowRankTable, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair of a slot that is known to have one."""
    pair = table.pair(slot)
    assert pair is not None
    return pair


def sub_batches(problem: LowRankProblem) -> None:
    """One gather, two matmuls and a scatter an adapter, in the base's dtype: peft's way."""
    for segment in problem.segments:
        a, b = (tensor.to(problem.x.dtype) for tensor in pair_of(problem.table, segment.slot))
        rows = torch.arange(segment.start, segment.stop)
        problem.y[rows] += linear(linear(problem.x[rows], a), b.T)


def masked_dense(problem: LowRankProblem) -> None:
    """All adapters stacked, every row times every adapter, other adapters' columns cleared."""
    pairs = [pair_of(problem.table, segment.slot) for segment in problem.segments]
    a = torch.cat([a for a, _ in pairs]).to(problem.x.dtype)
    b = torch.cat([b for _, b in pairs]).to(problem.x.dtype)
    owner = torch.tensor([s.slot for s in problem.segments for _ in range(s.start, s.stop)])
    other = owner[:, None] != torch.arange(len(pairs)).repeat_interleave(RANK)
    problem.y.addmm_(linear(problem.x, a).masked_fill_(other, 0), b)


def verb(problem: LowRankProblem) -> None:
    """What the server runs."""
    low_rank_add_(problem.y, problem.x, problem.table, problem.segments)


def loop(problem: LowRankProblem) -> None:
    """The reference: segments in float32."""
    reference.low_rank_add_(problem.y, problem.x, problem.table, problem.segments)


STRATEGIES = (verb, loop, sub_batches, masked_dense)


def microseconds(call: Callable[[], object], seconds: float = 0.15) -> float:
    """The fastest fifth of the calls that fit `seconds`: other processes share the cores."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * sorted(times)[len(times) // 5]


def measure(
    rows: int, adapters: int, out: int, width: int, x: torch.dtype, arena: torch.dtype
) -> None:
    """Prints the rest of a line: the base's linear alone, then each strategy."""
    problem_bytes = adapters * RANK * (out + width) * arena.itemsize
    problems = [
        low_rank_problem(
            rows=rows,
            ranks=[RANK] * adapters,
            in_features=width,
            out_features=out,
            dtype=x,
            arena_dtype=arena,
            seed=seed,
        )
        for seed in range(max(1, min(16, int(ROTATED_BYTES / problem_bytes))))
    ]
    rotation = itertools.cycle(problems)
    weight = torch.randn(out, width, dtype=x)
    cells = [microseconds(lambda: linear(problems[0].x, weight))]
    cells += [
        microseconds(partial(lambda run: run(next(rotation)), strategy)) for strategy in STRATEGIES
    ]
    print("".join(f"{cell:14.0f}" for cell in cells), flush=True)


def measure_low_rank() -> None:
    """Prints the table of strategies for low-rank additions."""
    header = ("base linear", *(strategy.__name__ for strategy in STRATEGIES))
    print(f"{'low rank':<46}" + "".join(f"{name:>14}" for name in header))
    for (name, rows, adapters), (out, width), x, arena in itertools.product(
        CASES, SHAPES, DTYPES, DTYPES
    ):
        dtypes = f"x {str(x)[6:]:<9} arena {str(arena)[6:]}"
        print(f"{name:<8}{rows:>3}/{adapters:<3}{out:>5}x{width:<5}{dtypes:<22}", end="")
        measure(rows, adapters, out, width, x, arena)


def measure_attention() -> None:
    """Prints the server's paged attention beside the reference, 7 query heads a KV head."""
    print(f"{'attention':<46}{'verb':>14}{'loop':>14}")
    for (name, sequences, cached, new), dtype in itertools.product(ATTENTION_CASES, DTYPES):
        problem = paged_problem(
            [(cached, new)] * sequences,
            group=7,
            k_dim=64,
            v_dim=64,
            page_size=16,
            dtype=dtype,
        )
        options = {"scaling": 0.125, "window": None, "softcap": None, "sinks": None}
        arguments = (problem.q, problem.k_pool, problem.v_pool, problem.batch)
        cells = [
            microseconds(partial(attend, *arguments, **options))
            for attend in (paged_attention, attention_reference)
        ]
        case = f"{name:<20}{str(dtype)[6:]}"
        print(f"{case:<46}" + "".join(f"{cell:14.0f}" for cell in cells), flush=True)


def main() -> None:
    """Prints both tables."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        measure_low_rank()
        measure_attention()


if __name__ == "__main__":
    main()
