"""Writes a base of Qwen2's kind and its LoRA adapters as GGUF, which llama.cpp reads.

Matrices are stored as bfloat16 or float32, vectors as float32, as llama.cpp needs them.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from made_up_tokenizer import vocabulary_of
from safetensors.torch import load_file
from torch import Tensor

ALIGNMENT = 32
VERSION = 3
FLOAT32, BFLOAT16 = 0, 30  # of tensors
UINT32, INT32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # of metadata
FORMATS = {UINT32: "<I", INT32: "<i", FLOAT: "<f", BOOL: "<?"}
ORDINARY_TOKEN = 1

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

Metadata = Mapping[str, tuple[int, Any]]
"""Key → type and value; of a list the type is that of its elements."""


def write_base(folder: Path, path: Path, matrices: torch.dtype) -> None:
    """Writes the model in `folder`, with a tokenizer of `made_up_tokenizer`, to `path`.

    matrices: bfloat16 or float32
    """
    config = json.loads((folder / "config.json").read_text())
    tokens, merges = vocabulary_of(folder)
    metadata = {
        "general.architecture": (STRING, "qwen2"),
        "qwen2.block_count": (UINT32, config["num_hidden_layers"]),
        "qwen2.context_length": (UINT32, config["max_position_embeddings"]),
        "qwen2.embedding_length": (UINT32, config["hidden_size"]),
        "qwen2.feed_forward_length": (UINT32, config["intermediate_size"]),
        "qwen2.attention.head_count": (UINT32, config["num_attention_heads"]),
        "qwen2.attention.head_count_kv": (UINT32, config["num_key_value_heads"]),
        "qwen2.attention.layer_norm_rms_epsilon": (FLOAT, config["rms_norm_eps"]),
        "qwen2.rope.freq_base": (FLOAT, config["rope_parameters"]["rope_theta"]),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "qwen2"),
        "tokenizer.ggml.tokens": (STRING, tokens),
        "tokenizer.ggml.token_type": (INT32, [ORDINARY_TOKEN] * len(tokens)),
        "tokenizer.ggml.merges": (STRING, merges),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
    }
    tensors = load_file(folder / "model.safetensors")
    named = {base_name(name): _stored(tensor, matrices) for name, tensor in tensors.items()}
    write(path, metadata, named)


def write_adapter(folder: Path, path: Path, matrices: torch.dtype) -> None:
    """Writes the LoRA in `folder`, in peft's layout, to `path`; see `write_base`."""
    config = json.loads((folder / "adapter_config.json").read_text())
    metadata = {
        "general.architecture": (STRING, "qwen2"),
        "general.type": (STRING, "adapter"),
        "adapter.type": (STRING, "lora"),
        "adapter.lora.alpha": (FLOAT, float(config["lora_alpha"])),
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    named = {adapter_name(name): _stored(tensor, matrices) for name, tensor in tensors.items()}
    write(path, metadata, named)


def base_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`."""
    module, _, end = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{end}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{end}"


def adapter_name(name: str) -> str:
    """`base_model.model.model.layers.3.mlp.up_proj.lora_A.weight`: `blk.3.ffn_up.weight.lora_a`."""
    module, _, matrix = (
        name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    )
    return f"{base_name(f'{module}.weight')}.{matrix.lower()}"


def write(path: Path, metadata: Metadata, tensors: Mapping[str, Tensor]) -> None:
    """Writes one GGUF file: header, metadata, the tensors' places, and the tensors, aligned.

    tensors: contiguous, float32 or bfloat16
    """
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
        for key, (kind, value) in metadata.items():
            file.write(_string(key) + _value(kind, value))
        offset = 0
        for name, tensor in tensors.items():
            shape = tensor.shape[::-1]
            kind = BFLOAT16 if tensor.dtype == torch.bfloat16 else FLOAT32
            file.write(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", kind, offset))
            offset += _aligned(tensor.nbytes)
        _pad(file)
        for tensor in tensors.values():
            file.write(tensor.view(torch.uint8).numpy())
            _pad(file)


def _stored(tensor: Tensor, matrices: torch.dtype) -> Tensor:
    return tensor.to(matrices if tensor.dim() > 1 else torch.float32).contiguous()


def _value(kind: int, value: Any) -> bytes:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(
            _plain(kind, each) for each in value
        )
    return struct.pack("<I", kind) + _plain(kind, value)


def _plain(kind: int, value: Any) -> bytes:
    return _string(value) if kind == STRING else struct.pack(FORMATS[kind], value)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_aligned(file.tell()) - file.tell()))
