"""Which modules the dry run finds to compute each row by itself."""

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model
from torch import Tensor, nn

from weft.adapters.overridable import RowLayout
from weft.server.engine.attention import use_paged_attention
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.row_layouts import RowWatch

PLAIN = RowLayout((1,), (1,))


def spec_of(arch: str) -> KVSpec:
    model = tiny_model(arch)
    use_paged_attention(model)
    return KVSpec.discover(model)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_norm_can_be_adapted(arch: str) -> None:
    norms = {
        name for name, module in tiny_model(arch).named_modules() if "Norm" in str(type(module))
    }
    layouts = spec_of(arch).layouts
    assert norms
    assert norms <= layouts.keys()


@pytest.mark.parametrize(
    ("arch", "module", "layout"),
    [
        ("llama", "model.norm", PLAIN),
        ("qwen3", "model.layers.0.self_attn.q_norm", PLAIN),
        ("gemma3_text", "model.layers.0.self_attn.k_norm", RowLayout((2,), (2,))),
        ("qwen3_moe", "model.layers.0.mlp.gate", RowLayout((0,), (0, 0, 0))),
        ("qwen3_moe", "model.layers.0.mlp.experts", RowLayout((0, 0, 0), (0,))),
        ("mixtral", "model.layers.1.mlp.experts", RowLayout((0, 0, 0), (0,))),
    ],
)
def test_layouts(arch: str, module: str, layout: RowLayout) -> None:
    assert spec_of(arch).layouts[module] == layout


def test_what_looks_at_other_rows_too_is_refused() -> None:
    spec = spec_of("gpt_oss")
    assert "model.layers.0.self_attn" in spec.refused
    assert not spec.refused.keys() & spec.layouts.keys()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x * self.weight * scale


@pytest.mark.parametrize(
    "call",
    [
        lambda module: module(torch.ones(1, 5, 3), scale=2.0),
        lambda module: module(torch.ones(1, 5, 3), 2.0),
        lambda module: module(torch.ones(1, 5, 5)),
        lambda module: module(torch.ones(1, 4, 3)),
        lambda module: module(module(torch.ones(1, 5, 3))),
        lambda module: None,
    ],
)
def test_calls_whose_rows_are_not_clear(call: object) -> None:
    model = nn.ModuleDict({"odd": Odd()})
    assert callable(call)
    with RowWatch.of(model, 5) as watch:
        call(model["odd"])
    assert watch.adaptable() == {}
    assert watch.refused({}, 5).keys() == {"odd"}
