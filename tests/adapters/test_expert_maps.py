"""What is told of a model's layers of experts, without knowing the model."""

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from weft.adapters.base import BaseModules
from weft.adapters.expert_maps import ExpertMap

LAYER = "model.layers.1.mlp.experts"


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        (
            "mixtral",
            ExpertMap(
                *(LAYER, "gate_up_proj", 4, 64, 192, False),
                former=(
                    "model.layers.1.block_sparse_moe.experts.*.w1",
                    "model.layers.1.block_sparse_moe.experts.*.w3",
                ),
            ),
        ),
        (
            "qwen3_moe",
            ExpertMap(
                *(LAYER, "down_proj", 4, 48, 64, False),
                former=("model.layers.1.mlp.experts.*.down_proj",),
            ),
        ),
        ("gpt_oss", ExpertMap(LAYER, "gate_up_proj", 4, 64, 192, True)),
        ("gpt_oss", ExpertMap(LAYER, "down_proj", 4, 96, 64, True)),
    ],
)
def test_a_map(arch: str, expected: ExpertMap) -> None:
    base = BaseModules.of(tiny_model(arch))
    assert len(base.experts) == 4
    assert base.experts[expected.name] == expected
    assert base.sides(expected.name) == (expected.in_features, expected.out_features)
    assert base.weight_of(expected.name) == (LAYER, expected.parameter)


def test_maps_are_told_without_weights() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("mixtral"))
    assert BaseModules.of(model).experts == BaseModules.of(tiny_model("mixtral")).experts


def test_former_names_of_a_layer_and_of_the_modules_beside() -> None:
    base = BaseModules.of(tiny_model("mixtral"))
    experts = base.experts[f"{LAYER}.gate_up_proj"]
    block = "model.layers.1.block_sparse_moe"
    assert experts.former_of(3) == (f"{block}.experts.3.w1", f"{block}.experts.3.w3")
    assert base.former[f"{block}.gate"] == "model.layers.1.mlp.gate"


def test_models_without_experts_have_none() -> None:
    base = BaseModules.of(tiny_model("llama"))
    assert not base.experts
    assert not base.former
    assert base.weight_of("lm_head") == ("lm_head", "weight")
    assert base.sides("lm_head") == (64, 512)


def test_a_layer_that_cannot_be_adapted_says_why() -> None:
    base = BaseModules.of(tiny_model("mixtral"), {LAYER: "the base runs it twice"})
    refusals = [experts.refusal for experts in base.experts.values()]
    assert refusals == [None, None, "the base runs it twice", "the base runs it twice"]


def test_only_whole_layers_count() -> None:
    model = tiny_model("mixtral")
    model.model.layers[0].mlp.experts.down_proj = nn.Parameter(torch.zeros(2, 2))
    del model.model.layers[1].mlp.experts.has_gate
    assert not BaseModules.of(model).experts
