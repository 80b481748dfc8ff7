"""Which decode steps are captured and replayed; where that fails a model is served without.

What replays compute is shown by interpreted_replays.py, in a process of its own, and on a GPU.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import PAGE_SIZE, AdaptedModel
from engines import tiny_engine
from interpreted import assert_passes_interpreted, needs_interpreter
from msgspec import structs
from peft_adapters import save_lora
from replayed_story import ROOM, SMALL, assert_replays_answer_as_peft, computed
from tape import CaptureForbidden, Tape
from tiny_models import ARCHITECTURES
from torch import Tensor

from weft.adapters.pool import SlotRef
from weft.kernels.low_rank import ReplayedSegments
from weft.kernels.segments import Segments
from weft.server.engine import probe
from weft.server.engine.decode_capture import capture
from weft.server.engine.decode_graphs import DecodeGraphs, buckets
from weft.server.engine.messages import Sampling
from weft.server.engine.sequence import Sequence, Share
from weft.server.engine.step_plan import Scheduled, StepPlan

PAIRS, MANY, NORMS, SCALES = range(4)  # slots


@needs_interpreter
def test_replays_of_interpreted_kernels_pass_their_tests() -> None:
    assert_passes_interpreted(Path(__file__).with_name("interpreted_replays.py"))


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_gpus_replays_answer_as_peft_while_rows_and_adapters_come_and_go(
    arch: str, tmp_path: Path
) -> None:
    assert_replays_answer_as_peft(tmp_path, arch, None, SMALL, device="cuda", **ROOM)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_gpus_replays_have_the_bits_of_their_steps(arch: str, dtype: str, tmp_path: Path) -> None:
    found: list[DecodeGraphs | None] = []
    config: dict[str, Any] = {"device": "cuda", "dtype": dtype, "max_num_seqs": 20}
    with tiny_engine(
        tmp_path, arch, watch=lambda model: found.append(model.decodes) or model, **config
    ):
        assert found != [None]  # those that differ are not kept


def test_a_cpus_steps_are_not_captured(tmp_path: Path) -> None:
    found: list[DecodeGraphs | None] = []
    with tiny_engine(tmp_path, watch=lambda model: found.append(model.decodes) or model):
        assert found == [None]


def test_buckets_pad_by_at_most_seven_rows_or_an_eighth_and_are_few() -> None:
    assert buckets(1) == (1,)
    assert buckets(20) == (1, 2, 4, 8, 16, 20)
    assert buckets(64) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    found = buckets(1000)
    assert found[-1] == 1000
    assert len(found) < 50
    for less, more in pairwise(found):
        assert more - less - 1 <= max(7, less / 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture
def model(folder: Path) -> AdaptedModel:
    found = AdaptedModel(
        "llama",
        [
            save_lora(folder / "pairs", "llama", r=4, target_modules="all-linear"),
            save_lora(folder / "many", "llama", r=17, target_modules=["embed_tokens"]),
            save_lora(folder / "norms", "llama", r=4, modules_to_save=["norm"]),
            save_lora(folder / "scales", "llama", r=4, use_dora=True),
        ],
    )
    found.allocate(30)
    return found


@pytest.fixture
def graphs(model: AdaptedModel) -> DecodeGraphs:
    """Captures of up to four rows and rank 16, whose replays do nothing."""
    found = DecodeGraphs(model.forward, model.arena, most_rows=4, longest=12, ranks=(0, 16))
    for rows, rank in found.kinds:
        found.capture(lambda step: lambda: None, rows, rank)
    return found


def sequences(slots: list[int]) -> list[Sequence]:
    found = probe.probes([probe.prompt(3 + n, 100) for n in range(len(slots))], PAGE_SIZE)
    for seq, slot in zip(found, slots, strict=True):
        seq.shares = () if slot < 0 else (Share(SlotRef(slot, 0)),)
    return found


def decodes(*slots: int) -> list[Scheduled]:
    return [Scheduled(seq, len(seq.tokens) - 1, 1, samples=True) for seq in sequences(list(slots))]


def is_replayed(graphs: DecodeGraphs, *items: Scheduled) -> bool:
    """Whether the step is left to a capture, and not computed by the model's forward."""
    batch = graphs.forward.build(StepPlan(items))
    with computed() as steps:
        assert graphs.run(batch).shape[0] == len(batch.kept)
    assert steps in ([], [batch])
    return not steps


def test_steps_of_decodes_with_pairs_are_replayed(graphs: DecodeGraphs) -> None:
    assert is_replayed(graphs, *decodes(-1))
    assert is_replayed(graphs, *decodes(-1, -1, PAIRS))
    assert is_replayed(graphs, *decodes(PAIRS, PAIRS, -1, PAIRS))


def test_all_other_steps_are_computed_as_they_were(graphs: DecodeGraphs) -> None:
    for slots in ([MANY], [PAIRS, NORMS], [SCALES], [-1] * 5):
        assert not is_replayed(graphs, *decodes(*slots))
    first, second = decodes(-1, PAIRS)
    assert not is_replayed(graphs, first, replace(second, start=0, count=second.stop))
    assert not is_replayed(graphs, first, replace(second, samples=False))
    assert not is_replayed(graphs, replace(first, count=2, drafts=(7,)), second)
    blended = decodes(PAIRS)[0]
    blended.seq.shares = (Share(SlotRef(PAIRS, 0), 0.5),)
    assert not is_replayed(graphs, blended)


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed(graphs: DecodeGraphs) -> None:
    (item,) = decodes(-1)
    asked = replace(item, start=item.start - 1)
    sampling = Sampling(max_tokens=1, prompt_logprobs=0)
    asked.seq.request = structs.replace(asked.seq.request, sampling=sampling)
    assert not is_replayed(graphs, asked)
    assert not is_replayed(graphs, replace(asked, samples=False))


def test_slots_are_looked_at_anew_when_others_fill_them(
    model: AdaptedModel, graphs: DecodeGraphs
) -> None:
    model.arena.clear(PAIRS)
    assert not is_replayed(graphs, *decodes(PAIRS))


def test_more_rows_than_a_capture_has_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rows for a captured step of 4"):
        ReplayedSegments(4, 16).tell(Segments.from_slots([0] * 5))


# ---- a model is served without


def test_a_replay_that_differs_is_not_served(
    model: AdaptedModel, graphs: DecodeGraphs, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not capture(graphs, lambda step: lambda: None, lambda *stage: None)
    (record,) = caplog.records
    assert "a replay of 1 rows with room for rank 0 differs by" in record.getMessage()
    assert not is_replayed(graphs, *decodes(-1))


def test_a_capture_that_fails_leaves_none(
    graphs: DecodeGraphs, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(step: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        assert not capture(graphs, fails, lambda *stage: None)
    assert "not permitted when stream is capturing" in caplog.text
    assert not is_replayed(graphs, *decodes(-1))


# ---- what the proof rests on


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0, 2.0]),
        lambda x: bool((x > 0).all()),
    ],
)
def test_the_tape_forbids_what_a_capture_forbids(forbidden: Callable[[Tensor], object]) -> None:
    x = torch.ones(2)
    with pytest.raises(CaptureForbidden):
        Tape()(lambda: (forbidden(x), None)[1])


def test_the_tape_runs_operations_again_on_the_same_memory_and_no_python() -> None:
    x, y, seen = torch.ones(3), torch.zeros(3), []

    def step() -> None:
        seen.append(1)
        y.copy_((x[:, None] * torch.empty(1, 2).fill_(2)).sum(1))

    replay = Tape()(step)
    calls = len(seen)
    x[1] = 5
    y.zero_()
    replay()
    assert y.tolist() == [4, 20, 4]
    assert len(seen) == calls


def test_the_tape_holds_no_memory_that_the_step_found() -> None:
    found = [torch.ones(3)]
    y = torch.zeros(3)
    replay = Tape()(lambda: (y.copy_(found[0] * 2), None)[1])
    replay()
    found.clear()
    with pytest.raises(AssertionError, match="given back"):
        replay()
