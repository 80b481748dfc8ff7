"""Packed layers compute what plain ones do, and give way where they would not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from weft.server.engine import hardware
from weft.server.engine.packed_linear import PackedLinear, Way, begin_packing

with_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN computes no bfloat16 here"
)


def packed(model: nn.Module) -> int:
    with ThreadPoolExecutor(2) as threads:
        return begin_packing(model, threads)()


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    shapes = [(1024, 512, True), (512, 1024, False), (1024, 64, True)]
    return nn.Sequential(
        *(nn.Linear(i, o, bias=b, dtype=dtype) for i, o, b in shapes)
    ).requires_grad_(False)


@with_bfloat16
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 130])
def test_bit_for_bit_the_same(rows: int) -> None:
    model = layers(torch.bfloat16)
    x = torch.randn(1, rows, 1024, dtype=torch.bfloat16)
    hidden = model[0](x)
    expected = model[1](hidden)
    assert packed(model) == 2
    assert [type(module) for module in model] == [PackedLinear, PackedLinear, nn.Linear]
    assert torch.equal(model[0](x), hidden)
    assert torch.equal(model[1](hidden), expected)


def test_the_weight_stays_readable_and_shared() -> None:
    model = layers()
    weight, count = model[0].weight, sum(p.numel() for p in model.parameters())
    packed(model)
    assert model[0].weight is weight
    assert isinstance(model[0], nn.Linear)
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_weight_put_in_its_place_is_used() -> None:
    model = layers()
    packed(model)
    other = nn.Parameter(torch.randn_like(model[0].weight), requires_grad=False)
    model[0].weight = other
    x = torch.randn(3, 1024)
    assert torch.equal(model[0](x), F.linear(x, other, model[0].bias))


@pytest.mark.parametrize("rows", [1, 2, 33, 130])
def test_in_float32_the_same_but_for_rounding(rows: int) -> None:
    model = layers()
    x = torch.randn(1, rows, 1024)
    hidden = model[0](x)
    expected = model[1](hidden)
    assert packed(model) == 2
    torch.testing.assert_close(model[0](x), hidden, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1](hidden), expected, rtol=1e-5, atol=1e-6)


def test_other_dtypes_stay_as_they_are() -> None:
    assert packed(layers(torch.float16)) == 0


def test_nothing_is_packed_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda device: 6 << 20)
    assert packed(layers()) == 0


def test_nothing_is_packed_where_the_operators_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias) + 0.001

    monkeypatch.setattr(PackedLinear, "forward", wrong)
    assert packed(layers()) == 0


def test_nothing_is_packed_where_torch_has_no_such_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(self: PackedLinear, linear: nn.Linear, way: Way) -> None:
        raise AttributeError("no operator")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    assert packed(layers()) == 0
