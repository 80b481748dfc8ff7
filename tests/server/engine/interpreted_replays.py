"""Captured decode steps on a tape that does on a CPU what a CUDA graph does; Triton's kernels are
interpreted. Not collected by itself: test_decode_graphs.py starts a process for it."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from adapted_model import PAGE_SIZE, AdaptedModel
from peft_adapters import save_lora
from replayed_story import ROOM, SMALL, assert_replays_answer_as_peft, computed
from tape import Tape, tape_kernels
from torch import Tensor

from weft.adapters.pool import SlotRef
from weft.server.engine import probe
from weft.server.engine.batch import StepBatch
from weft.server.engine.decode_capture import capture
from weft.server.engine.decode_graphs import DecodeGraphs
from weft.server.engine.sequence import Share
from weft.server.engine.step_plan import Scheduled, StepPlan


@pytest.fixture
def kernels() -> Iterator[None]:
    with tape_kernels():
        yield


def test_replays_answer_as_peft_while_rows_and_adapters_come_and_go(tmp_path: Path) -> None:
    tape = Tape()
    assert_replays_answer_as_peft(tmp_path, "llama", tape, SMALL, async_scheduling=True, **ROOM)
    assert tape.captures == 9
    assert tape.replays > 5


def save(folder: Path, rank: int) -> Path:
    targets = ["q_proj", "o_proj", "down_proj", "embed_tokens"]
    return save_lora(
        folder / str(rank), "qwen2", seed=rank, r=rank, target_modules=targets, model=SMALL
    )


def decodes(
    model: AdaptedModel, lengths: Sequence[int], slots: Sequence[int], padding: int = 0
) -> StepBatch:
    """A step that computes the last token of sequences of these lengths.

    padding: so many rows at its end that write to page 0
    """
    prompts = [probe.prompt(length, SMALL["vocab_size"]) for length in lengths]
    sequences = probe.probes(prompts, PAGE_SIZE)
    for seq, slot in zip(sequences, slots, strict=True):
        seq.shares = () if slot < 0 else (Share(SlotRef(slot, 0)),)
    for _ in range(padding):
        sequences += probe.probes([(0,)], PAGE_SIZE)
        sequences[-1].pages[:] = [0]
    items = (Scheduled(seq, len(seq.tokens) - 1, 1, samples=True) for seq in sequences)
    return model.forward.build(StepPlan(tuple(items)))


@pytest.mark.usefixtures("kernels")
def test_replays_have_the_bits_of_the_step_and_write_its_own_rows_only(tmp_path: Path) -> None:
    four, nine, three = (save(tmp_path, rank) for rank in (4, 9, 3))
    model = AdaptedModel("qwen2", [four, nine], **SMALL)
    pools = [pool for pair in model.allocate(12) for pool in pair]
    for pool in pools:
        pool.normal_()
    graphs = DecodeGraphs(model.forward, model.arena, most_rows=4, longest=16, ranks=(0, 16))
    tape = Tape()
    for rows, rank in graphs.kinds:
        graphs.capture(tape, rows, rank)
    captures = tape.captures
    steps = {
        (4,): [0],
        (5, 2, 8, 13): [-1, 0, 0, 1],
        (1, 12, 9): [0, -1, 1],
        (3, 6, 2): [-1, 1, -1],  # fewer tiles than before
    }
    for lengths, slots in steps.items():
        check(model, graphs, pools, lengths, slots)
    assert model.install(three) == 0
    check(model, graphs, pools, (7, 10), [0, 1])
    model.arena.clear(1)
    check(model, graphs, pools, (11, 6, 3), [-1, -1, -1])
    assert (tape.captures, tape.replays) == (captures, len(steps) + 2)


def check(
    model: AdaptedModel,
    graphs: DecodeGraphs,
    pools: list[Tensor],
    lengths: Sequence[int],
    slots: Sequence[int],
) -> None:
    """A product of torch rounds as its number of rows says: the same padding is computed, too."""
    rows, bucket = len(slots), next(each for each in graphs.buckets if each >= len(slots))
    step, padded = (decodes(model, lengths, slots, more) for more in (0, bucket - rows))
    before = [pool.clone() for pool in pools]
    replayed = graphs.run(step)
    left = [pool.clone() for pool in pools]
    for pool, kept in zip(pools, before, strict=True):
        pool.copy_(kept)
    assert torch.equal(replayed, graphs.forward.run(padded)[:rows])
    for old, new, pool in zip(before, left, pools, strict=True):
        assert torch.equal(new[1:], pool[1:])
        changed = (new != old).flatten(0, 1).flatten(1).any(1).nonzero().flatten()
        assert set(changed.tolist()) <= {*step.paged.slot_mapping.tolist(), *range(PAGE_SIZE)}


@pytest.mark.usefixtures("kernels")
def test_replays_are_held_against_steps_with_made_up_pairs(tmp_path: Path) -> None:
    ranks = {"target_modules": "all-linear", "model": SMALL}
    folders = [save_lora(tmp_path / str(r), "llama", r=r, **ranks) for r in (16, 5)]
    model = AdaptedModel("llama", folders, **SMALL)
    for slot in (0, 1):
        model.arena.clear(slot)
    model.arena.values.zero_()
    model.allocate(4)
    graphs = DecodeGraphs(model.forward, model.arena, most_rows=2, longest=6, ranks=(0, 16))
    stages: list[tuple[str, int, int]] = []
    assert capture(graphs, Tape(), lambda *stage: stages.append(stage))
    assert stages == [("graphs", done, 4) for done in range(5)]
    assert not model.arena.values.any()
    assert model.arena.pair_rank(0) is None


@pytest.mark.usefixtures("kernels")
def test_a_model_that_asks_the_device_for_a_value_is_served_without_captures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = AdaptedModel("llama", [], **SMALL)
    model.allocate(4)
    norm = model.model.get_decoder().norm
    norm.register_forward_hook(lambda module, args, y: y * y.max().item())
    graphs = DecodeGraphs(model.forward, model.arena, most_rows=1, longest=6, ranks=(0,))
    with caplog.at_level(logging.WARNING):
        assert not capture(graphs, Tape(), lambda *stage: None)
    (record,) = caplog.records
    assert "aten::item cannot be captured" in record.getMessage()
    with computed() as steps:
        assert graphs.run(decodes(model, (5,), [-1])).shape == (1, SMALL["vocab_size"])
    assert len(steps) == 1
