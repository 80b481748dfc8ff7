"""The bottleneck verb: which rows it changes, what each network is given, in which dtype."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from weft.kernels.bottleneck import ACTIVATIONS, TAPS, Network, Tap, bottleneck_add_
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable
from weft.kernels.testing import assert_close

WIDTH = 8


def network(seed: int, size: int, tap: Tap = "output", activation: str = "relu") -> Network:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((size, WIDTH), (size,), (WIDTH, size), (WIDTH,))
    down, down_bias, up, up_bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return Network(down, down_bias, up, up_bias, activation, tap)


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def table(*networks: Network) -> SlotTable[Network]:
    result: SlotTable[Network] = SlotTable()
    for slot, entry in enumerate(networks):
        result.set(slot, entry)
    return result


@pytest.mark.parametrize("tap", TAPS)
def test_formula_by_tap(tap: Tap) -> None:
    y, residual, net = rows(5), rows(5, 1), network(2, 3, tap)
    x = {"output": y, "residual": residual, "sum": y + residual}[tap]
    expected = y + relu(x @ net.down.T + net.down_bias) @ net.up.T + net.up_bias
    bottleneck_add_(y, residual, table(net), Segments.from_slots([0] * 5))
    assert_close(y, expected, torch.float32)


def test_rows_of_others_keep_their_bits_and_nothing_crosses() -> None:
    y, residual = rows(7), rows(7, 1)
    y[3] = residual[3] = torch.nan  # a row of slot 2, which has no network
    before = y.clone()
    slots = [-1, 0, 0, 2, 1, -1, 0]
    bottleneck_add_(y, residual, table(network(1, 4), network(2, 1)), Segments.from_slots(slots))
    changed = [not torch.equal(a, b) for a, b in zip(y, before, strict=True)]
    assert [at for at, other in enumerate(changed) if other] == [1, 2, 3, 4, 6]
    assert y[3].isnan().all()
    assert y[[0, 1, 2, 4, 5, 6]].isfinite().all()


def test_networks_compute_in_their_own_dtype() -> None:
    net = network(3, 4, "sum")
    y, residual = rows(4).bfloat16(), rows(4, 1).bfloat16()
    exact = y.float()
    bottleneck_add_(exact, residual.float(), table(net), Segments.from_slots([0] * 4))
    bottleneck_add_(y, residual, table(net), Segments.from_slots([0] * 4))
    assert_close(y, exact.bfloat16(), torch.bfloat16)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_computed(activation: str) -> None:
    y, net = rows(3), network(4, 5, activation=activation)
    expected = y + ACTIVATIONS[activation](y @ net.down.T + net.down_bias) @ net.up.T + net.up_bias
    bottleneck_add_(y, y.clone(), table(net), Segments.from_slots([0] * 3))
    assert_close(y, expected, torch.float32)
