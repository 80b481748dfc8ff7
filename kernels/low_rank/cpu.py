"""The low-rank verbs on CPU: one pair of small matmuls a segment, in the dtype that is faster.

Measured (benchmarks/LOG.md): float32 wins for few rows whatever the base's dtype, because a
bfloat16 matmul of one row pays 20 us to start; from 64 rows on the base's own dtype wins.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from weft.kernels.low_rank.table import LowRankTable
from weft.kernels.segments import Segment, Segments

LONG_SEGMENT_ROWS = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Segments without a base row between them, short ones together, a long one alone."""

    start: int
    stop: int
    slots: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def is_long(self) -> bool:
        """Whether this is one segment that is faster in the dtype of y."""
        return self.stop - self.start >= LONG_SEGMENT_ROWS and len(self.slots) == 1


def low_rank_add_(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_add_`."""
    for run, out in _accumulators(y, table, segments):
        inputs = x[run.start : run.stop].to(out.dtype)
        for slot, rows, sums in zip(
            run.slots,
            inputs.split_with_sizes(run.sizes),
            out.split_with_sizes(run.sizes),
            strict=True,
        ):
            pair = table.pair(slot)
            if pair is not None:
                a, b = pair
                sums.addmm_(linear(rows, a.to(out.dtype)), b.to(out.dtype))


def low_rank_embed_add_(y: Tensor, ids: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_embed_add_`."""
    for run, out in _accumulators(y, table, segments):
        inputs = ids[run.start : run.stop]
        for slot, rows, sums in zip(
            run.slots,
            inputs.split_with_sizes(run.sizes),
            out.split_with_sizes(run.sizes),
            strict=True,
        ):
            pair = table.pair(slot)
            if pair is not None:
                a, b = pair
                sums.addmm_(a.index_select(1, rows).T.to(out.dtype), b.to(out.dtype))


def _accumulators(
    y: Tensor, table: LowRankTable, segments: Segments
) -> Iterator[tuple[Run, Tensor]]:
    """Each run that `table` knows, with the tensor to add to; written back to y when resumed."""
    for run in segments.once(_runs):
        if table.any_in(run.slots):
            rows = y[run.start : run.stop]
            sums = rows if run.is_long else rows.to(torch.float32)
            yield run, sums
            if sums.dtype != y.dtype:
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
            sizes=tuple(segment.stop - segment.start for segment in run),
        )
        for run in runs
    )


def _joins(before: Segment, segment: Segment) -> bool:
    short = max(before.stop - before.start, segment.stop - segment.start) < LONG_SEGMENT_ROWS
    return short and before.stop == segment.start
