"""The self-test lets good models pass and catches those that no configuration check would."""

from typing import Any

import pytest
import torch
from tiny_models import random_model, tiny_model
from transformers import AutoConfig, PreTrainedModel

from weft.adapters.step_state import StepState
from weft.server.engine.attention import AttentionStep, use_paged_attention
from weft.server.engine.forward import Forward
from weft.server.engine.kv_memory import KVLayout
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.self_test import Reference, SelfTest, check_model, computed, twin
from weft.server.engine.unsupported import ModelUnsupported

PAGE_SIZE = 4
COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
# Each is refused by a check of its configuration; here nothing but the self-test looks at it.
BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "convolution": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96}),
    "chunked attention": (
        "llama4_text",
        {
            "attention_chunk_size": 8,
            "intermediate_size_mlp": 96,
            "num_local_experts": 2,
            "head_dim": 16,
            "moe_layers": [],
        },
    ),
    "linear attention": (
        "minimax",
        {
            "num_local_experts": 2,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 8,
        },
    ),
    "dynamic rope": (
        "llama",
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
    ),
    "recurrent state": (
        "recurrent_gemma",
        {"lru_width": 64, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    ),
}


def run_self_test(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
    model = model.to(dtype)
    use_paged_attention(model)
    spec = KVSpec.discover(model)
    layout = KVLayout(spec, PAGE_SIZE, dtype, torch.device("cpu"))
    test = SelfTest.design(
        window=spec.longest_window, max_model_len=256, vocabulary=512, page_size=PAGE_SIZE
    )
    reference = Reference.of(twin(model), test)
    step = AttentionStep()
    layout.allocate(test.pages, step)
    check_model(computed(Forward(model, step, StepState(), PAGE_SIZE), test), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "mixtral", "gpt_oss"])
def test_good_models_pass(arch: str, dtype: torch.dtype) -> None:
    run_self_test(tiny_model(arch), dtype)


def test_rounding_explains_what_a_deep_model_of_experts_makes_of_it() -> None:
    run_self_test(tiny_model("mixtral", num_hidden_layers=12, num_local_experts=8), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_models_are_caught(fault: str, dtype: torch.dtype) -> None:
    model_type, fields = BROKEN[fault]
    model = random_model(AutoConfig.for_model(model_type, **(COMMON | fields)))
    with pytest.raises(ModelUnsupported, match="self-test failed"):
        run_self_test(model, dtype)


def test_a_model_that_mixes_rows_outside_attention_is_caught() -> None:
    """No check of a configuration can know of it: the code itself was changed."""
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x + 0.2 * torch.roll(x, 1, dims=1).index_fill(1, zero, 0.0))
    zero = torch.tensor([0])
    with pytest.raises(ModelUnsupported, match="self-test failed"):
        run_self_test(model)


def test_logits_that_are_not_finite_are_caught() -> None:
    model = tiny_model("llama")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(ModelUnsupported, match="self-test failed"):
        run_self_test(model)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_contexts_too_short_for_chunks_are_tested_as_far_as_they_go(length: int) -> None:
    test = SelfTest.design(window=0, max_model_len=length, vocabulary=512, page_size=PAGE_SIZE)
    rows = [row for plan in test.plans() for item in plan.items for row in range(item.count)]
    assert len(rows) == sum(len(prompt) for prompt in test.prompts)


@pytest.mark.parametrize("window", [0, 100])
def test_prompts_span_several_chunks_and_reach_beyond_the_window(window: int) -> None:
    test = SelfTest.design(window=window, max_model_len=500, vocabulary=512, page_size=PAGE_SIZE)
    assert min(map(len, test.prompts)) > window / 2
    assert len(test.prompts[0]) > window
    for kept in test.positions():
        assert len(kept) >= 4
