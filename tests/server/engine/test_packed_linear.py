"""Packed layers compute what plain ones do, and give way where they would not."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from weft.server.engine import hardware
from weft.server.engine.packed_linear import PackedLinear, pack_linears


def layers(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    shapes = [(1024, 512, True), (512, 1024, False), (1024, 64, True)]
    return nn.Sequential(
        *(nn.Linear(i, o, bias=b, dtype=dtype) for i, o, b in shapes)
    ).requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 130])
def test_bit_for_bit_the_same(rows: int) -> None:
    model = layers()
    x = torch.randn(1, rows, 1024, dtype=torch.bfloat16)
    hidden = model[0](x)
    expected = model[1](hidden)
    assert pack_linears(model) == 2
    assert [type(module) for module in model] == [PackedLinear, PackedLinear, nn.Linear]
    assert torch.equal(model[0](x), hidden)
    assert torch.equal(model[1](hidden), expected)


def test_the_weight_stays_readable_and_shared() -> None:
    model = layers()
    weight, count = model[0].weight, sum(p.numel() for p in model.parameters())
    pack_linears(model)
    assert model[0].weight is weight
    assert isinstance(model[0], nn.Linear)
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_weight_put_in_its_place_is_used() -> None:
    model = layers()
    pack_linears(model)
    other = nn.Parameter(torch.randn_like(model[0].weight), requires_grad=False)
    model[0].weight = other
    x = torch.randn(3, 1024, dtype=torch.bfloat16)
    assert torch.equal(model[0](x), F.linear(x, other, model[0].bias))


def test_other_dtypes_stay_as_they_are() -> None:
    assert pack_linears(layers(torch.float32)) == 0


def test_nothing_is_packed_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda device: 3 << 20)
    assert pack_linears(layers()) == 0


def test_nothing_is_packed_where_the_operators_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: F.linear(x, self.weight) * 2)
    assert pack_linears(layers()) == 0


def test_nothing_is_packed_where_torch_has_no_such_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(self: PackedLinear, linear: nn.Linear) -> None:
        raise AttributeError("no operator")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    assert pack_linears(layers()) == 0
