"""The low-rank verbs on CPU: one pair of small matmuls a batch, in the dtype that is faster.

Measured (benchmarks/LOG.md): float32 wins for few rows whatever the base's dtype, because a
bfloat16 matmul of one row pays 20 us to start; where one adapter has much to compute, the base's
own dtype wins.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.kernels.low_rank.batches import Batch, Owner
from weft.kernels.low_rank.table import LowRankTable
from weft.kernels.segments import Segment, Segments

LONG_SEGMENT_ROWS = 32
MUCH_WORK = 1024  # rows times rank of a long segment

Shrink = Callable[[Tensor, Tensor], Tensor]


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


def low_rank_add_(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_add_`."""
    _add(y, x, table, segments, _multiply)


def low_rank_embed_add_(y: Tensor, ids: Tensor, table: LowRankTable, segments: Segments) -> None:
    """See `weft.kernels.low_rank.low_rank_embed_add_`."""
    _add(y, ids, table, segments, _look_up)


def _add(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments, shrink: Shrink) -> None:
    """`y[s] += shrink(x[s], aᵀ) b`; this runs in each layer, and a call of Python is not free."""
    for run in segments.once(_runs):
        if not table.any_in(run.slots):
            continue
        dtype = y.dtype if run.is_long and _is_much(run, table) else torch.float32
        rows, inputs = y[run.rows], x[run.rows]
        sums = rows if rows.dtype == dtype else rows.to(dtype)
        if inputs.dtype != dtype and inputs.is_floating_point():
            inputs = inputs.to(dtype)
        for batch, part, own in _cut(sums, inputs, table.batches(run.owners, run.sizes)):
            if batch.first is not None:
                _add_batch(part, own, batch, table, shrink)
        if sums is not rows:
            rows.copy_(sums)


def _cut(
    sums: Tensor, inputs: Tensor, batches: tuple[Batch, ...]
) -> Iterable[tuple[Batch, Tensor, Tensor]]:
    """Each batch with its part of two tensors that hold all their rows."""
    if len(batches) == 1:
        return ((batches[0], sums, inputs),)
    rows = [batch.rows for batch in batches]
    return zip(batches, sums.split_with_sizes(rows), inputs.split_with_sizes(rows), strict=True)


def _add_batch(
    sums: Tensor, inputs: Tensor, batch: Batch, table: LowRankTable, shrink: Shrink
) -> None:
    a, b = table.factors(batch)
    if a.dtype != sums.dtype:
        a, b = a.to(sums.dtype), b.to(sums.dtype)
    if batch.owners == 1:
        sums.addmm_(shrink(inputs, a), b)
    else:
        owners = batch.owners, batch.rows // batch.owners
        inputs = inputs.view(*owners, *inputs.shape[1:])
        sums.view(*owners, -1).baddbmm_(shrink(inputs, a), b)


def _is_much(run: Run, table: LowRankTable) -> bool:
    """Whether the one segment of the run is faster in the dtype of y."""
    place = table.place(*run.owners[0])
    return place is not None and run.sizes[0] * place[2] >= MUCH_WORK


def _multiply(x: Tensor, a: Tensor) -> Tensor:
    """x: [rows, in] or [owners, rows, in]; returns `x a`."""
    return torch.mm(x, a) if a.dim() == 2 else torch.bmm(x, a)


def _look_up(ids: Tensor, a: Tensor) -> Tensor:
    """ids: [rows] or [owners, rows]; returns the rows of `a` that they name."""
    if a.dim() == 2:
        return a.index_select(0, ids)
    return a[torch.arange(len(a))[:, None], ids]


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
