"""The low-rank verbs on CPU: one pair of small matmuls a segment, in the dtype that is faster.

Measured (benchmarks/LOG.md): float32 wins for few rows whatever the base's dtype, because a
bfloat16 matmul of one row pays 20 us to start; from 64 rows on the base's own dtype wins.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.kernels.low_rank.table import Factors, LowRankTable
from weft.kernels.segments import Segment, Segments

LONG_SEGMENT_ROWS = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Segments without a base row between them, short ones together, a long one alone."""

    start: int
    stop: int
    slots: tuple[int, ...]
    experts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def is_long(self) -> bool:
        """Whether this is one segment that is faster in the dtype of y."""
        return self.stop - self.start >= LONG_SEGMENT_ROWS and len(self.slots) == 1


def low_rank_add_(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_add_`."""
    for run, sums in _accumulators(y, table, segments):
        inputs = _as(x[run.start : run.stop], sums.dtype)
        for (a, b), rows, out in _parts(run, inputs, sums, table):
            out.addmm_(rows.mm(_as(a, sums.dtype)), _as(b, sums.dtype))


def low_rank_embed_add_(y: Tensor, ids: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_embed_add_`."""
    for run, sums in _accumulators(y, table, segments):
        for (a, b), tokens, out in _parts(run, ids[run.start : run.stop], sums, table):
            out.addmm_(_as(a.index_select(0, tokens), sums.dtype), _as(b, sums.dtype))


def _parts(
    run: Run, inputs: Tensor, sums: Tensor, table: LowRankTable
) -> Iterator[tuple[Factors, Tensor, Tensor]]:
    """The factors of each segment whose slot has some, with its part of the inputs and sums."""
    for slot, expert, rows, out in zip(
        run.slots,
        run.experts,
        inputs.split_with_sizes(run.sizes),
        sums.split_with_sizes(run.sizes),
        strict=True,
    ):
        factors = table.factors(slot, expert)
        if factors is not None:
            yield factors, rows, out


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)` without its microsecond where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _accumulators(
    y: Tensor, table: LowRankTable, segments: Segments
) -> Iterator[tuple[Run, Tensor]]:
    """Each run that `table` knows, with the tensor to add to; written back to y when resumed."""
    for run in segments.once(_runs):
        if table.any_in(run.slots):
            rows = y[run.start : run.stop]
            sums = rows if run.is_long else _as(rows, torch.float32)
            yield run, sums
            if sums is not rows:
                rows.copy_(sums)


def _runs(segments: Segments) -> tuple[Run, ...]:
    runs: list[list[Segment]] = []
    for segment in segments:
        if runs and _joins(runs[-1][-1], segment):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return tuple(
        Run(
            start=run[0].start,
            stop=run[-1].stop,
            slots=tuple(segment.slot for segment in run),
            experts=tuple(segment.expert for segment in run),
            sizes=tuple(segment.stop - segment.start for segment in run),
        )
        for run in runs
    )


def _joins(before: Segment, segment: Segment) -> bool:
    short = max(before.stop - before.start, segment.stop - segment.start) < LONG_SEGMENT_ROWS
    return short and before.stop == segment.start
