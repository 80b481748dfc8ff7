"""A step never waits for the device, up to the logits: whatever would fails on these tensors."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import ARCHITECTURES
from valueless import ValuelessModel, alone, copies_noted, plan

from weft.adapters.pool import SlotRef
from weft.server.engine.decode_graphs import DecodeGraphs
from weft.server.engine.sequence import Share

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


def test_what_waits_is_found() -> None:
    with copies_noted() as copies:
        torch.zeros(3).to("meta")
        torch.zeros(5).to("meta", non_blocking=True)
    assert [(copy.shape, copy.waits) for copy in copies] == [((3,), True), ((5,), False)]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(3, device="meta").tolist()
