"""Decode steps that are captured at the start and replayed in place of the model's forward.

A replay asks the device for what the captured step asked it for, on the same memory, and costs no
Python of the model. So whatever differs from step to step lies in memory that is written before:
ids, positions, places, tables of pages, lengths, and which rows belong to which slot. What slots
hold is found through the tables of pairs; versions come and go without another capture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weft.adapters.arena import Arena
from weft.kernels.attention import PagedBatch
from weft.kernels.low_rank import ReplayedSegments
from weft.kernels.segments import Segments
from weft.server.engine.batch import StepBatch
from weft.server.engine.forward import Forward

BASE_ONLY = 0
RANKS = (BASE_ONLY, 16, 64, 256)
"""A step is computed by a capture with room for its largest rank: idle programs cost, too."""

_DOUBLING = 8
_SHARE = 8

Replay = Callable[[], None]


class Recorder(Protocol):
    """What captures a step on a device."""

    def __call__(self, step: Callable[[], None]) -> Replay:
        """Notes what `step` asks the device for, and returns what asks for the same again.

        `step` is called several times; raises whatever it raises where it cannot be captured.
        """


def buckets(most_rows: int) -> tuple[int, ...]:
    """The numbers of rows that steps are captured for: 1, 2, 4, 8, 16, 24, … `most_rows`.

    From 8 rows on, a multiple of which products are computed in anyway, in steps of 8 and, from
    128 on, of an eighth: so at most 7 rows or an eighth are padding, and there are few captures.
    """
    found, rows = [], 1
    while rows < most_rows:
        found.append(rows)
        power = 1 << (rows.bit_length() - 1)
        rows += rows if rows < _DOUBLING else max(_DOUBLING, power // _SHARE)
    return (*found, most_rows)


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What captured steps read, in memory that stays; they share it, each its first rows.

    rows: int64 [3, rows]: ids, positions and places   tables: int32 [rows, pages]
    """

    rows: Tensor
    tables: Tensor
    page_size: int

    @classmethod
    def zeros(cls, rows: int, pages: int, page_size: int, device: torch.device) -> "_Inputs":
        return cls(
            torch.zeros(3, rows, dtype=torch.int64, device=device),
            torch.zeros(rows, pages, dtype=torch.int32, device=device),
            page_size,
        )

    def batch(self, rows: int, segments: Segments) -> StepBatch:
        """A step of so many rows, each of which is a sequence's and is kept."""
        return StepBatch(
            input_ids=self.rows[:1, :rows],
            position_ids=self.rows[1:2, :rows],
            paged=PagedBatch(
                slot_mapping=self.rows[2, :rows],
                query_starts=tuple(range(rows + 1)),
                kv_lens=(0,) * rows,
                block_tables=self.tables[:rows],
                page_size=self.page_size,
            ),
            segments=segments,
            kept=torch.arange(rows, device=self.rows.device),
            kept_segments=segments,
            virtual=(),
            layers=(),
            sampling=tuple(range(rows)),
            prompts=(),
        )


@dataclass(frozen=True, eq=False)
class _Captured:
    """A step of `inputs`' first rows, and what replays it."""

    batch: StepBatch
    replay: Replay

    def fill(self, batch: StepBatch) -> None:
        """Lets the next replay compute this step; rows beyond it write to page 0 and see none."""
        own, rows = self.batch, batch.input_ids.shape[1]
        pages = batch.paged.block_tables
        for ours, theirs in (
            (own.input_ids[0], batch.input_ids[0]),
            (own.position_ids[0], batch.position_ids[0]),
            (own.paged.slot_mapping, batch.paged.slot_mapping),
            (own.paged.lengths, batch.paged.lengths),
        ):
            ours[:rows].copy_(theirs)
            ours[rows:].zero_()
        own.paged.block_tables[:rows, : pages.shape[1]].copy_(pages)
        if isinstance(own.segments, ReplayedSegments):
            own.segments.tell(batch.segments)


class DecodeGraphs:
    """The steps of one model, those of decodes by replays as far as they are captured.

    Captured are steps in which each sequence has one row, which is kept, and slots do nothing but
    add low-rank pairs. All others are computed by `forward`, as those of one that has no captures.
    The cache's pools and the arena must stay where they are.
    """

    def __init__(
        self,
        forward: Forward,
        arena: Arena,
        *,
        most_rows: int,
        longest: int,
        ranks: Sequence[int] = RANKS,
    ) -> None:
        """longest: tokens that a sequence has at most   ranks: those that there is room for"""
        self.forward = forward
        self.arena = arena
        self.longest = longest
        self.buckets = buckets(most_rows)
        self.ranks = tuple(ranks)
        pages = -(-longest // forward.page_size)
        device = forward.model.device
        self._inputs = _Inputs.zeros(most_rows, pages, forward.page_size, device)
        self._logits: Tensor | None = None
        self._captured: dict[tuple[int, int], _Captured] = {}

    @property
    def kinds(self) -> tuple[tuple[int, int], ...]:
        """What there is to capture: rows and ranks; the largest first, whose memory all share."""
        return tuple((rows, rank) for rows in self.buckets[::-1] for rank in self.ranks[::-1])

    @torch.inference_mode()
    def capture(self, record: Recorder, rows: int, rank: int) -> None:
        """Captures the steps of a bucket with room for a rank."""
        segments = Segments((), rows) if rank == BASE_ONLY else ReplayedSegments(rows, rank)
        batch = self._inputs.batch(rows, segments)
        if self._logits is None:
            self._logits = torch.empty_like(self.forward.compute(batch))
        logits = self._logits[:rows]

        def step() -> None:
            logits.copy_(self.forward.compute(batch))

        try:
            self._captured[rows, rank] = _Captured(batch, record(step))
        finally:
            self.forward.end()

    def clear(self) -> None:
        """Forgets all captures."""
        self._captured.clear()
        self._logits = None

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> Tensor:
        """See Forward.run."""
        captured = self._capture_of(batch)
        if captured is None:
            return self.forward.run(batch)
        return self._replayed(captured, batch)

    @torch.inference_mode()
    def replayed(self, batch: StepBatch, rows: int, rank: int) -> Tensor:
        """`run` by the capture of a bucket and a rank, which the step must fit in."""
        return self._replayed(self._captured[rows, rank], batch)

    def _replayed(self, captured: _Captured, batch: StepBatch) -> Tensor:
        assert self._logits is not None
        captured.fill(batch)
        self.arena.tell_device()
        captured.replay()
        return self._logits[: len(batch.kept)].to(torch.float32, copy=True)

    def _capture_of(self, batch: StepBatch) -> _Captured | None:
        rows = batch.input_ids.shape[1]
        is_decode = rows == len(batch.paged.kv_lens) == len(batch.kept)
        if not is_decode or batch.prompts or batch.virtual or batch.layers:
            return None
        rank = self._rank_of(batch.segments.slots)
        if rank is None:
            return None
        bucket = next((each for each in self.buckets if each >= rows), None)
        return None if bucket is None else self._captured.get((bucket, rank))

    def _rank_of(self, slots: frozenset[int]) -> int | None:
        """The room that pairs of these slots need; None where they do more, or none is enough."""
        largest = 0
        for slot in slots:
            rank = self.arena.pair_rank(slot)
            if rank is None:
                return None
            largest = max(largest, rank)
        return next((room for room in self.ranks if room >= largest), None)
