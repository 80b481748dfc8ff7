"""Holds replays of captured decode steps against the steps themselves, with made-up pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from weft.adapters.arena import Arena
from weft.adapters.operations import LowRank
from weft.adapters.packed import Packed, aligned
from weft.adapters.plan import AdapterPlan
from weft.adapters.pool import Placement
from weft.kernels.segments import Segments
from weft.server.engine import probe
from weft.server.engine.batch import StepBatch
from weft.server.engine.decode_graphs import BASE_ONLY, DecodeGraphs
from weft.server.engine.self_test import difference
from weft.server.engine.step_plan import Scheduled, StepPlan

_SMALL_RANK = 5
_RUN = 3  # rows of a slot
_SPREAD = 0.02  # of made-up values


class ReplayDiffers(Exception):
    """A replay did not give the logits of the step that it was captured from."""


def check_replays(graphs: DecodeGraphs) -> None:
    """Replays each capture on a made-up step, with made-up pairs; raises ReplayDiffers."""
    for rank in graphs.ranks:
        with _made_up_pairs(graphs.arena, rank) as slots:
            for rows in graphs.buckets:
                batch = _made_up_step(graphs, rows, slots)
                replayed = graphs.replayed(batch, rows, rank)
                computed = graphs.forward.run(batch)
                if not torch.equal(replayed, computed):
                    found = difference(replayed, computed)
                    raise ReplayDiffers(
                        f"a replay of {rows} rows with room for rank {rank} differs by "
                        f"{found:.2g} of the logits' spread"
                    )
    graphs.forward.end()


def _made_up_step(graphs: DecodeGraphs, rows: int, slots: tuple[int, ...]) -> StepBatch:
    """Each row is another position of one sequence, again from the first one where it ends.

    slots: of its rows, in turns
    """
    vocabulary: int = graphs.forward.model.config.get_text_config().vocab_size
    ids = probe.prompt(min(rows, graphs.longest), vocabulary)
    (seq,) = probe.probes([ids], graphs.forward.page_size)
    positions = [row % len(ids) for row in range(rows)]
    batch = graphs.forward.build(
        StepPlan(tuple(Scheduled(seq, at, 1, samples=True) for at in positions))
    )
    if not slots:
        return batch
    segments = Segments.from_slots([slots[at // _RUN % len(slots)] for at in positions])
    return replace(batch, segments=segments, kept_segments=segments)


@contextmanager
def _made_up_pairs(arena: Arena, rank: int) -> Iterator[tuple[int, ...]]:
    """Lets slots 0 and 1, which are empty, add pairs of this rank and of a smaller one everywhere.

    All lie in the same memory. Gives the slots of rows, base rows among them; none for rank 0, or
    where the arena is too small.
    """
    versions = [_version(arena, slot, own) for slot, own in enumerate((rank, _SMALL_RANK))]
    needed = max((end for *_, end in versions), default=0)
    if rank == BASE_ONLY or needed > arena.values.nbytes:
        yield ()
        return
    values = arena.values[: needed // arena.values.itemsize]
    try:
        values.normal_(std=_SPREAD)
        for placement, version, _ in versions:
            arena.publish(placement, version)
        yield (0, -1, 1)
    finally:
        for placement, *_ in versions:
            arena.clear(placement.slot)
        values.zero_()


def _version(arena: Arena, slot: int, rank: int) -> tuple[Placement, Packed, int]:
    """A pair for each module, all of which begin where the arena does; and where the last one ends.

    In bytes; its tensors have shapes only.
    """
    ops: dict[str, tuple[LowRank]] = {}
    offsets: list[int] = []
    end = 0
    for name, table in arena.pairs.items():
        a, b = (
            torch.empty(rank, n, device="meta") for n in (table.in_features, table.out_features)
        )
        start_b = aligned(a.numel() * arena.values.itemsize)
        ops[name] = (LowRank(a, b),)
        offsets += (0, start_b)
        end = max(end, start_b + aligned(b.numel() * arena.values.itemsize))
    packed = Packed(AdapterPlan(f"made up {slot}", "LORA", ops), arena.values[:0], ())
    return Placement(slot, tuple(offsets), ()), packed, end
