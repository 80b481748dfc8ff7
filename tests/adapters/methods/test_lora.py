"""LoRA from peft's own files, against peft's own forward pass, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import AdaptedModel
from adapter_files import edit_tensors
from peft_adapters import peft_logits, save_lora

from weft.adapters.operations import LowRank

TOLERANCE = 2e-5
IDS = torch.randint(5, 512, (2, 13), generator=torch.Generator().manual_seed(3))

LLAMA = ["q_proj", "v_proj", "down_proj"]
TOKENS: list[int] = [*IDS[0, [7, 2, 12]].tolist(), 3]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one rank": ("llama", {"target_modules": LLAMA, "r": 1}),
    "odd rank": ("llama", {"target_modules": LLAMA, "r": 7, "lora_alpha": 3}),
    "rank above the width": ("llama", {"target_modules": ["k_proj"], "r": 80}),
    "rslora": ("llama", {"target_modules": LLAMA, "r": 9, "use_rslora": True}),
    "dropout is for training": ("llama", {"target_modules": LLAMA, "lora_dropout": 0.4}),
    "all-linear": ("llama", {"target_modules": "all-linear", "r": 3}),
    "regex": ("llama", {"target_modules": r".*\.layers\.1\.(self_attn\.[qo]|mlp\.up)_proj"}),
    "full names": ("llama", {"target_modules": ["model.layers.0.mlp.up_proj", "o_proj"]}),
    "excluded": ("llama", {"target_modules": LLAMA, "exclude_modules": ["layers.0.mlp.down_proj"]}),
    "excluded by regex": ("llama", {"target_modules": LLAMA, "exclude_modules": r".*\.0\..*q_.*"}),
    "one layer": ("llama", {"target_modules": LLAMA, "layers_to_transform": 1}),
    "layers": (
        "llama",
        {"target_modules": LLAMA, "layers_to_transform": [0], "layers_pattern": "layers"},
    ),
    "patterns": (
        "llama",
        {
            "target_modules": LLAMA,
            "r": 4,
            "rank_pattern": {"down_proj": 2, r"^model\.layers\.1\..*q_proj": 6},
            "alpha_pattern": {"layers.0.self_attn.v_proj": 32, r".*\.1\..*": 3},
        },
    ),
    "patterns with rslora": (
        "llama",
        {"target_modules": LLAMA, "use_rslora": True, "rank_pattern": {"v_proj": 3}},
    ),
    "gaussian": ("llama", {"target_modules": LLAMA, "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"target_modules": LLAMA, "init_lora_weights": "orthogonal"}),
    "pissa": ("llama", {"target_modules": LLAMA, "r": 5, "init_lora_weights": "pissa"}),
    "pissa with patterns": (
        "llama",
        {
            "target_modules": LLAMA,
            "init_lora_weights": "pissa",
            "use_rslora": True,
            "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {"v_proj": 20},
        },
    ),
    "pissa on embedding and head": (
        "llama",
        {"target_modules": [*LLAMA, "embed_tokens", "lm_head"], "init_lora_weights": "pissa"},
    ),
    "olora": ("llama", {"target_modules": LLAMA, "r": 5, "init_lora_weights": "olora"}),
    "embedding and head": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "r": 6}),
    "biases in the base": ("qwen2", {"target_modules": ["q_proj", "k_proj", "v_proj"]}),
    "tied embedding": ("qwen2", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": ("qwen2", {"target_modules": ["lm_head", "q_proj"]}),
    "both of a tied pair": ("qwen2", {"target_modules": ["lm_head", "embed_tokens"]}),
    "tied adapters": ("qwen2", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "scaled embedding": ("gemma2", {"target_modules": ["embed_tokens", "gate_proj"]}),
    "scaled embedding, tied": (
        "gemma2",
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "gemma3": ("gemma3_text", {"target_modules": ["embed_tokens", "o_proj"]}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "Conv1D, all-linear": ("gpt2", {"target_modules": "all-linear"}),
    "pissa on Conv1D": (
        "gpt2",
        {"target_modules": ["c_attn", "c_fc"], "init_lora_weights": "pissa"},
    ),
    "tokens and positions": ("gpt2", {"target_modules": ["wte", "wpe"]}),
    "tied adapters of one module": (
        "gpt2",
        {"target_modules": ["wte", "c_attn"], "ensure_weight_tying": True},
    ),
    "packed projections": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "opt": ("opt", {"target_modules": ["fc1", "out_proj", "embed_tokens"]}),
    "gpt_neox": ("gpt_neox", {"target_modules": ["query_key_value", "embed_out"]}),
    "dora": ("llama", {"target_modules": LLAMA, "r": 5, "use_dora": True}),
    "dora with rslora": ("llama", {"target_modules": LLAMA, "use_dora": True, "use_rslora": True}),
    "dora beside biases": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "use_dora": True}),
    "dora and biases": (
        "qwen2",
        {"target_modules": ["q_proj", "o_proj"], "use_dora": True, "bias": "all"},
    ),
    "dora on Conv1D": (
        "gpt2",
        {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True},
    ),
    "dora on embedding and head": (
        "llama",
        {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    ),
    "dora on a scaled embedding": (
        "gemma2",
        {"target_modules": ["embed_tokens"], "use_dora": True},
    ),
    "dora from pissa": (
        "llama",
        {"target_modules": LLAMA, "use_dora": True, "init_lora_weights": "pissa"},
    ),
    "bias of B": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "lora_bias": True}),
    "bias of B on Conv1D": ("gpt2", {"target_modules": ["c_attn"], "lora_bias": True}),
    "biases of targets": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}),
    "all biases": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "all biases, with norms": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "all biases beside saved modules": (
        "gpt2",
        {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f", "0.mlp"]},
    ),
    "no biases": ("llama", {"target_modules": LLAMA, "bias": "all"}),
    "biases of both kinds": (
        "gpt2",
        {"target_modules": ["c_fc", "c_attn"], "bias": "lora_only", "lora_bias": True},
    ),
    "saved head": ("llama", {"target_modules": LLAMA, "modules_to_save": ["lm_head"]}),
    "saved embedding and head": (
        "llama",
        {"target_modules": LLAMA, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "saved norms": ("llama", {"target_modules": LLAMA, "modules_to_save": ["norm"]}),
    "saved part of a layer": (
        "qwen2",
        {"target_modules": ["o_proj"], "modules_to_save": ["0.mlp", "1.self_attn.k_proj"]},
    ),
    "saved head, tied": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "saved embedding, tied": (
        "qwen2",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "saved embedding with its head": (
        "qwen2",
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "saved scaled embedding": (
        "gemma2",
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens", "post_attention_layernorm"],
        },
    ),
    "saved modules of gpt2": (
        "gpt2",
        {"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "wte", "0.mlp"]},
    ),
    "saved router": (
        "qwen3_moe",
        {"target_modules": ["q_proj"], "modules_to_save": ["mlp.gate", "0.mlp.experts"]},
    ),
    "tokens": ("llama", {"target_modules": LLAMA, "trainable_token_indices": TOKENS}),
    "tokens of a tied embedding": (
        "qwen2",
        {"target_modules": ["q_proj"], "trainable_token_indices": TOKENS},
    ),
    "tokens of a scaled embedding": (
        "gemma2",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": TOKENS}},
    ),
    "tokens of gpt2": ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": TOKENS}),
    "tokens of embedding and head": (
        "llama",
        {
            "target_modules": LLAMA,
            "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS[:2]},
        },
    ),
    "the same tokens of a tied pair": (
        "qwen2",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS},
        },
    ),
    "other tokens of a tied pair": (
        "qwen2",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS[1:]},
        },
    ),
    "tokens of a tied head": (
        "qwen2",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": TOKENS}},
    ),
    "everything": (
        "qwen2",
        {
            "target_modules": ["q_proj", "down_proj"],
            "use_dora": True,
            "bias": "all",
            "modules_to_save": ["norm", "1.mlp.up_proj"],
            "trainable_token_indices": TOKENS,
        },
    ),
    "attention beside experts": ("qwen3_moe", {"target_modules": ["q_proj", "o_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_pefts(case: str, tmp_path: Path) -> None:
    arch, config = CASES[case]
    folder = save_lora(tmp_path, arch, **config)
    expected = peft_logits(arch, folder, IDS)
    assert (expected - peft_logits(arch, None, IDS)).abs().max() > 0.1
    logits = AdaptedModel(arch, [folder]).logits(IDS, [0, 0])
    assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "gpt2", "phi3", "opt"])
def test_rows_of_one_batch_have_each_their_own_adapter(arch: str, tmp_path: Path) -> None:
    targets = "all-linear" if arch != "gemma2" else ["embed_tokens", "q_proj"]
    folders = [
        save_lora(
            tmp_path / str(rank),
            arch,
            seed=rank,
            r=rank,
            use_rslora=rank == 5,
            target_modules=["lm_head"] if rank == 2 else targets,
        )
        for rank in (2, 5, 8)
    ]
    ids = torch.randint(5, 512, (5, 9), generator=torch.Generator().manual_seed(5))
    slots = [-1, 0, 1, 2, -1]
    model = AdaptedModel(arch, folders)
    base_rows = model.logits(ids, [-1] * 5)
    logits = model.logits(ids, slots)
    for row, slot in enumerate(slots):
        if slot < 0:
            assert torch.equal(logits[row], base_rows[row])
        else:
            expected = peft_logits(arch, folders[slot], ids[row : row + 1])[0]
            assert (logits[row] - expected).abs().max() < TOLERANCE
            assert (logits[row] - base_rows[row]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "llama", target_modules=LLAMA)
    edit_tensors(folder, lambda tensors: {k: v.to(dtype) for k, v in tensors.items()})
    expected = peft_logits("llama", folder, IDS)
    logits = AdaptedModel("llama", [folder]).logits(IDS, [0, 0])
    assert (logits - expected).abs().max() < TOLERANCE


def test_a_plan_says_which_version_it_is(tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "llama", target_modules=LLAMA, r=5, init_lora_weights="pissa")
    plan = AdaptedModel("llama", [folder]).plans[0]
    assert plan.method == "lora"
    assert len(plan.digest) == 64
    assert {op.rank for op in plan.of_kind(LowRank).values()} == {10}
    assert all(tensor.is_contiguous() for _, op in plan for tensor in op.tensors)
