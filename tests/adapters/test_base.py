import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from weft.adapters.base import BaseModules
from weft.adapters.errors import AdapterInvalid


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shapes_and_weights_of_every_module(arch: str) -> None:
    model = tiny_model(arch)
    base = BaseModules.of(model)
    assert base.head is not None
    assert base.head in base
    assert base.parameters == model.num_parameters()
    for name, target in base.items():
        weight = target.weight()
        expected = (target.out_features, target.in_features)
        assert tuple(weight.shape) == (expected[::-1] if target.kind == "embedding" else expected)
        assert name == target.name
        x = torch.rand(3, target.in_features)
        if target.kind != "embedding":
            module = model.get_submodule(name)
            bias = 0 if module.bias is None else module.bias
            assert torch.allclose(module(x), x @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize(("arch", "tied"), [("llama", 0), ("qwen2", 2), ("gpt2", 2)])
def test_modules_that_share_a_weight(arch: str, tied: int) -> None:
    base = BaseModules.of(tiny_model(arch))
    assert len(base.tied) == tied
    assert not tied or base.head in base.tied


@pytest.mark.parametrize(("arch", "scale"), [("llama", 1.0), ("gemma2", 8.0), ("gemma3_text", 8.0)])
def test_the_scale_of_an_embedding(arch: str, scale: float) -> None:
    assert BaseModules.of(tiny_model(arch))["model.embed_tokens"].scale == scale


def test_a_model_without_weights_has_shapes_only() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("gemma2"))
    base = BaseModules.of(model)
    assert base["model.layers.0.mlp.up_proj"].out_features == 96
    assert base["model.embed_tokens"].scale == 8.0
    assert base.tied == {"model.embed_tokens", "lm_head"}
    with pytest.raises(AdapterInvalid, match="needs the base's weight"):
        base["model.layers.0.mlp.up_proj"].weight()


def test_what_cannot_be_adapted_is_explained() -> None:
    base = BaseModules.of(tiny_model("opt"), refused={"lm_head": "its rows are others"})
    assert base["lm_head"].refusal == "its rows are others"
    assert "OPTLearnedPositionalEmbedding" in base.explain("model.decoder.embed_positions")
    assert "is a LayerNorm" in base.explain("model.decoder.final_layer_norm")
    assert base.explain("model.nothing") == "the base has no module model.nothing"


def test_parameters_of_every_module() -> None:
    model = tiny_model("gpt2")
    base = BaseModules.of(model, refused={"transformer.ln_f": "its rows are others"})
    for name, parameter in model.named_parameters():
        module, _, own = name.rpartition(".")
        assert base.owners[module].shapes[own] == tuple(parameter.shape)
        assert torch.equal(base.parameter(module, own), parameter)
    assert base.owners["transformer.ln_f"].refusal == "its rows are others"
    assert base.owners["transformer.h.0.ln_1"].refusal is None
    assert "transformer.h" not in base.owners


def test_values_from_elsewhere() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("gpt2"))
    loaded = BaseModules.of(tiny_model("gpt2"))
    base = BaseModules.of(model).with_parameters(loaded.parameter)
    name = "transformer.h.0.attn.c_attn"
    assert torch.equal(base[name].weight(), loaded[name].weight())
    assert torch.equal(base.parameter(name, "bias"), loaded.parameter(name, "bias"))
