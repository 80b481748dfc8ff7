"""Tiny random models of many architectures and a byte-level tokenizer, built without a download."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 512
MAX_POSITIONS = 256
WINDOW = 8
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>")
EOS_TOKEN_ID = 2
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS_TOKEN_ID}
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "tie_word_embeddings": False,
}
_ALTERNATING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "tie_word_embeddings": True, **_ALTERNATING}

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _COMMON),
    "llama3-rope": ("llama", _COMMON | {"rope_parameters": _LLAMA3_ROPE}),
    "qwen2": ("qwen2", _COMMON | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _COMMON | {"head_dim": 24}),
    "mistral": ("mistral", _COMMON | {"sliding_window": WINDOW, "head_dim": 16}),
    "gemma2": ("gemma2", _COMMON | _GEMMA | {"attn_logit_softcapping": 5.0}),
    "gemma3_text": ("gemma3_text", _COMMON | _GEMMA),
    "phi3": ("phi3", _COMMON),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCAB_SIZE,
            "n_positions": MAX_POSITIONS,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
        },
    ),
    "gpt_neox": ("gpt_neox", _COMMON),
    "opt": ("opt", _COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "olmo2": ("olmo2", _COMMON),
    "mixtral": ("mixtral", _COMMON | _EXPERTS),
    "qwen3_moe": (
        "qwen3_moe",
        _COMMON
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16},
    ),
    "gpt_oss": (
        "gpt_oss",
        _COMMON | _EXPERTS | _ALTERNATING | {"head_dim": 16, "rope_parameters": _YARN_ROPE},
    ),
}

ARCHITECTURES = tuple(_CONFIGS)


def tiny_config(arch: str, **overrides: Any) -> PreTrainedConfig:
    """The configuration of a tiny model; `overrides` are fields of its transformers config."""
    model_type, fields = _CONFIGS[arch]
    return AutoConfig.for_model(model_type, **(_SPECIAL_IDS | fields | overrides))


def tiny_model(arch: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A float32 model in eval mode with eager attention; equal arguments give equal weights."""
    return random_model(tiny_config(arch, **overrides), seed=seed)


def random_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """Any config's causal LM, with weights wide enough that greedy choices have clear margins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
        for name, parameter in model.named_parameters():
            # A tied head must not merely find the last input token again: keep embeddings small.
            _randomize(name, parameter.data, 0.03 if config.tie_word_embeddings else 0.15)
    if config.pad_token_id is not None:
        model.generation_config.pad_token_id = config.pad_token_id
    return model.eval()


def _randomize(name: str, data: torch.Tensor, embedding_std: float) -> None:
    if data.dim() >= 2:
        data.normal_(std=embedding_std if "embed" in name or "wte" in name else 0.15)
    elif name.endswith("weight"):
        data.add_(torch.randn_like(data), alpha=0.2)
    else:
        data.normal_(std=0.2)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with exactly `VOCAB_SIZE` tokens, all decodable, and a ChatML template.

    Its end token `<|im_end|>` differs from the model's `<eos>`, as in many chat models.
    """
    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters = "etaoinshrdlucmwf"
    pairs = [(a, b) for a in letters for b in letters][: VOCAB_SIZE - len(symbols)]
    symbols += [a + b for a, b in pairs]
    tokenizer = Tokenizer(models.BPE({s: i for i, s in enumerate(symbols)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<eos>", "<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny(
    arch: str,
    path: Path,
    *,
    seed: int = 0,
    build: Callable[..., PreTrainedModel] = tiny_model,
    **overrides: Any,
) -> Path:
    """Writes model and tokenizer as a folder that `weft serve` takes; returns `path`."""
    build(arch, seed=seed, **overrides).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
