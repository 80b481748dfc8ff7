import msgspec
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from weft.adapters.base import BaseModules, KVShape
from weft.adapters.base_outline import BaseOutline

READERS = {"_targets", "parameter"}


def crossed(base: BaseModules) -> BaseModules:
    """The base as another process has it, with every value asked of this one."""
    wire = msgspec.msgpack.encode(BaseOutline.of(base))
    return msgspec.msgpack.decode(wire, type=BaseOutline).modules(base.parameter)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "phi3", "qwen3_moe"])
def test_nothing_is_lost_on_the_way(arch: str) -> None:
    model = tiny_model(arch)
    refused = {"model.embed_tokens": "for a test"}
    base = BaseModules.of(model, refused, {"model.layers.0.self_attn": KVShape(2, 16, 8)})
    other = crossed(base)
    for name in vars(base).keys() - READERS:
        assert getattr(other, name) == getattr(base, name), name
    assert list(other) == list(base)
    for name, module in base.items():
        mine = other[name]
        described = ("name", "kind", "in_features", "out_features", "scale", "refusal", "elements")
        for field in described:
            assert getattr(mine, field) == getattr(module, field)
        assert torch.equal(mine.weight(), module.weight())


def test_values_come_from_whoever_reads_them() -> None:
    asked: list[tuple[str, str]] = []

    def read(module: str, name: str) -> Tensor:
        asked.append((module, name))
        return torch.ones(2, 3)

    base = BaseOutline.of(BaseModules.of(tiny_model("gpt2"))).modules(read)
    assert base["transformer.h.0.attn.c_attn"].weight().shape == (3, 2)
    assert base.parameter("any", "bias").shape == (2, 3)
    assert asked == [("transformer.h.0.attn.c_attn", "weight"), ("any", "bias")]
