"""A step never waits for the device, up to the logits: whatever would fails on these tensors."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import ARCHITECTURES
from torch import Tensor
from valueless import ValuelessModel, alone, copies_noted, plan

from weft.adapters.pool import SlotRef
from weft.server.engine import sampling
from weft.server.engine.decode_graphs import DecodeGraphs
from weft.server.engine.launcher import Flight
from weft.server.engine.messages import Sampling
from weft.server.engine.sampling import Choices, SampleRow, choose
from weft.server.engine.sequence import Share
from weft.server.engine.step_plan import Scheduled, StepPlan

BLEND = (Share(SlotRef(0, 0), 0.5), Share(SlotRef(1, 0), 0.5))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_steps_of_prompts_decodes_and_blends_wait_for_nothing(arch: str) -> None:
    model = ValuelessModel(arch)
    step = plan([1, 20, 1, 1, 5], [alone(0), alone(1), (), alone(2), BLEND])
    with copies_noted() as copies:
        logits = model.forward(step)
    assert logits.shape[0] == 5
    assert copies
    assert not [copy for copy in copies if copy.waits]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decodes_can_be_captured_since_they_copy_nothing_once_they_were_rehearsed(
    arch: str,
) -> None:
    model = ValuelessModel(arch)
    graphs = DecodeGraphs(model.forward, model.arena, most_rows=3, longest=24, ranks=(0, 16))

    def rehearsed(step: Callable[[], None]) -> Callable[[], None]:
        step()
        with copies_noted() as captured:
            step()
        assert captured == []
        return step

    with copies_noted() as copies:
        for rank in (16, 0):
            graphs.capture(rehearsed, rows=3, rank=rank)
    assert [copy.shape for copy in copies].count((3,)) == 2  # lengths


@pytest.mark.parametrize(("arch", "slots"), [("llama", (3, 0)), ("mixtral", (3, 2))])
def test_decodes_of_the_same_sequences_describe_their_adapters_to_the_device_once(
    arch: str, slots: tuple[int, int]
) -> None:
    model = ValuelessModel(arch)
    steps = [plan([1, 1, 1], [alone(slots[0]), (), alone(slots[1])]) for _ in range(2)]
    with copies_noted() as first:
        model.forward(steps[0])
    with copies_noted() as second:
        model.forward(steps[1])
    assert (2, 4) in {copy.shape for copy in first}  # tiles
    assert (2, 4) not in {copy.shape for copy in second}
    assert len(second) < len(first)


CHOICES = (
    Sampling(max_tokens=9, temperature=0.0),
    Sampling(max_tokens=9, temperature=0.0, logprobs=3),
    Sampling(max_tokens=9, min_p=0.1, logit_bias={5: 1.0}),
    Sampling(max_tokens=9, top_p=0.9, top_k=20, logprobs=0),
    Sampling(max_tokens=9, min_tokens=5, stop_token_ids=(7, 8)),
)


@pytest.mark.parametrize("fewer", [0, 2])
@pytest.mark.parametrize("arch", ["llama", "mixtral"])
def test_two_steps_are_launched_one_after_the_other_and_nothing_is_read_between(
    arch: str, fewer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fewer: rows that end with the first of them"""
    monkeypatch.setattr(sampling, "Readback", lambda *tensors: tensors)
    model = ValuelessModel(arch)

    def launch(step: StepPlan, ids: Tensor | None, unread: int) -> Choices:
        logits = model.forward.run(model.forward.build(step, ids))
        rows = [
            SampleRow(CHOICES[index], item.seq.tokens, item.seq.prompt_len, 0, (2,), unread)
            for index, item in enumerate(step.items)
        ]
        return choose(logits, rows)

    first = plan([1] * len(CHOICES), [alone(0), alone(1), (), alone(2), alone(0)])
    with copies_noted() as copies:
        flight = Flight(first, launch(first, None, unread=0))
        items = (Scheduled(item.seq, item.stop, 1, samples=True) for item in first.items[fewer:])
        second = StepPlan(tuple(items), is_ahead=True)
        ids = flight.ids(second)
        assert ids.is_meta
        assert launch(second, ids, unread=1).tokens.shape == (len(CHOICES) - fewer,)
    assert copies
    assert not [copy for copy in copies if copy.waits]


def test_what_waits_is_found() -> None:
    with copies_noted() as copies:
        torch.zeros(3).to("meta")
        torch.zeros(5).to("meta", non_blocking=True)
    assert [(copy.shape, copy.waits) for copy in copies] == [((3,), True), ((5,), False)]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(3, device="meta").tolist()
