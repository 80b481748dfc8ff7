"""The low-rank verbs on CPU: one pair of small matmuls a segment, in the dtype that is faster.

Measured (benchmarks/LOG.md): float32 wins for few rows whatever the base's dtype, because a
bfloat16 matmul of one row pays 20 us to start; where one adapter has much to compute, the base's
own dtype wins.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.kernels.low_rank.table import LowRankTable
from weft.kernels.segments import Segment, Segments

LONG_SEGMENT_ROWS = 32
MUCH_WORK = 1024  # rows times rank of a long segment

Owner = tuple[int, int]
"""A slot and an expert."""


@dataclass(frozen=True, slots=True)
class Run:
    """Segments without a base row between them, short ones together, a long one alone.

    rows: of the step   sizes: how many of them each owner has
    is_long: whether this is one segment of LONG_SEGMENT_ROWS or more
    """

    rows: slice
    owners: tuple[Owner, ...]
    slots: frozenset[int]
    sizes: tuple[int, ...]
    is_long: bool

    def split(self, sums: Tensor, inputs: Tensor) -> Iterable[tuple[Owner, Tensor, Tensor]]:
        """Each owner with its part of two tensors that hold the run's rows."""
        if len(self.owners) == 1:
            return ((self.owners[0], sums, inputs),)
        parts = sums.split_with_sizes(self.sizes), inputs.split_with_sizes(self.sizes)
        return zip(self.owners, *parts, strict=True)


def low_rank_add_(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_add_`."""
    _add(y, x, table, segments, torch.mm)


def low_rank_embed_add_(y: Tensor, ids: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_embed_add_`."""
    _add(y, ids, table, segments, _look_up)


def _add(
    y: Tensor,
    x: Tensor,
    table: LowRankTable,
    segments: Segments,
    shrink: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """`y[s] += shrink(x[s], aᵀ) b`; this runs in each layer, and a call of Python is not free."""
    for run in segments.once(_runs):
        if not table.any_in(run.slots):
            continue
        dtype = y.dtype if run.is_long and _is_much(run, table) else torch.float32
        rows, inputs = y[run.rows], x[run.rows]
        sums = rows if rows.dtype == dtype else rows.to(dtype)
        if inputs.dtype != dtype and inputs.is_floating_point():
            inputs = inputs.to(dtype)
        for owner, part, own in run.split(sums, inputs):
            factors = table.factors(*owner)
            if factors is not None:
                a, b = factors
                if a.dtype != dtype:
                    a, b = a.to(dtype), b.to(dtype)
                part.addmm_(shrink(own, a), b)
        if sums is not rows:
            rows.copy_(sums)


def _is_much(run: Run, table: LowRankTable) -> bool:
    """Whether the one segment of the run is faster in the dtype of y."""
    factors = table.factors(*run.owners[0])
    return factors is not None and run.sizes[0] * len(factors[1]) >= MUCH_WORK


def _look_up(ids: Tensor, a: Tensor) -> Tensor:
    return a.index_select(0, ids)


def _runs(segments: Segments) -> tuple[Run, ...]:
    runs: list[list[Segment]] = []
    for segment in segments:
        if runs and _joins(runs[-1][-1], segment):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return tuple(map(_run, runs))


def _joins(before: Segment, segment: Segment) -> bool:
    short = max(before.stop - before.start, segment.stop - segment.start) < LONG_SEGMENT_ROWS
    return short and before.stop == segment.start


def _run(segments: list[Segment]) -> Run:
    rows = slice(segments[0].start, segments[-1].stop)
    return Run(
        rows=rows,
        owners=tuple((segment.slot, segment.expert) for segment in segments),
        slots=frozenset(segment.slot for segment in segments),
        sizes=tuple(segment.stop - segment.start for segment in segments),
        is_long=len(segments) == 1 and rows.stop - rows.start >= LONG_SEGMENT_ROWS,
    )
