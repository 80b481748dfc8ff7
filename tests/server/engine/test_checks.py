"""Base models that must be refused, each with its reason."""

from typing import Any

import pytest
from tiny_models import ARCHITECTURES, tiny_config
from transformers import AutoConfig, PreTrainedConfig

from weft.server.engine.checks import check_config
from weft.server.engine.unsupported import ModelUnsupported

COMMON = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {
    "rope_type": "dynamic",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
}


def config_of(model_type: str, **fields: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **fields)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bloom", {}, "attention in its own code"),
    ("falcon", {"alibi": True}, "attention in its own code"),
    ("mpt", {}, "attention in its own code"),
    ("mamba", {}, "recurrent state"),
    ("jamba", {}, "recurrent state"),
    ("lfm2", COMMON | {"layer_types": ["conv", "full_attention"]}, "layers of type conv"),
    ("llama4_text", {}, "layers of type chunked_attention"),
    ("minimax", {}, "layers of type linear_attention"),
    ("t5", {}, "encoder-decoder"),
    ("bart", {}, "encoder-decoder"),
    ("vit", {}, "no causal language model"),
    ("llama", COMMON | {"rope_parameters": DYNAMIC}, "'dynamic'.*--max-model-len to 64"),
    ("llama", COMMON | {"rope_parameters": LONGROPE}, "'longrope'.*--max-model-len to 64"),
    (
        "gemma3_text",
        COMMON
        | {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": DYNAMIC,
            },
        },
        "'dynamic'",
    ),
]


@pytest.mark.parametrize(("model_type", "fields", "reason"), REFUSED)
def test_refused_with_its_reason(model_type: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelUnsupported, match=reason):
        check_config(config_of(model_type, **fields))


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])
def test_such_rope_is_served_where_no_request_reaches_its_limit(rope: dict[str, Any]) -> None:
    check_config(config_of("llama", **COMMON, rope_parameters=rope), max_model_len=64)


def test_a_context_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match=r"--max-model-len 257.*256 positions"):
        check_config(tiny_config("llama"), max_model_len=257)
    check_config(tiny_config("llama"), max_model_len=256)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_supported_architectures_pass(arch: str) -> None:
    check_config(tiny_config(arch))
