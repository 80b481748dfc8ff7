"""GGUF as another reader finds it, by the format's description."""

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import workload
from made_up_tokenizer import save_tokenizer
from safetensors.torch import load_file
from sides.gguf import adapter_name, base_name, write_adapter, write_base
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

SCALARS = {4: "I", 5: "i", 6: "f", 7: "?"}
DTYPES = {0: torch.float32, 30: torch.bfloat16}


class Reader:
    """Reads a whole file of version 3."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._at = 4
        assert self._data[:4] == b"GGUF"
        version, tensors, keys = self._take("IQQ")
        assert version == 3
        self.metadata = {self._string(): self._value(self._take("I")[0]) for _ in range(keys)}
        places = [self._place() for _ in range(tensors)]
        start = self._at + -self._at % 32
        self.tensors = {
            name: self._tensor(start + offset, kind, shape) for name, shape, kind, offset in places
        }

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def _string(self) -> str:
        (size,) = self._take("Q")
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == 9:
            element, count = self._take("IQ")
            return [self._value(element) for _ in range(count)]
        return self._string() if kind == 8 else self._take(SCALARS[kind])[0]

    def _place(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._take("I")
        shape = self._take(f"{dimensions}Q")[::-1]
        kind, offset = self._take("IQ")
        assert offset % 32 == 0
        return name, shape, kind, offset

    def _tensor(self, start: int, kind: int, shape: tuple[int, ...]) -> Tensor:
        dtype = DTYPES[kind]
        count = int(torch.tensor(shape).prod())
        data = bytearray(self._data[start : start + count * dtype.itemsize])
        return torch.frombuffer(data, dtype=dtype).view(shape)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> workload.Base:
    folder = tmp_path_factory.mktemp("base")
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, config.vocab_size)
    return workload.Base("tiny", folder, step_bytes=0)


@pytest.mark.parametrize("matrices", [torch.bfloat16, torch.float32])
def test_a_base_has_all_its_weights_and_its_shape(
    base: workload.Base, tmp_path: Path, matrices: torch.dtype
) -> None:
    path = tmp_path / "base.gguf"
    write_base(base.folder, path, matrices)
    found = Reader(path)
    assert found.metadata["general.architecture"] == "qwen2"
    assert found.metadata["qwen2.block_count"] == 2
    assert found.metadata["qwen2.attention.head_count_kv"] == 2
    assert found.metadata["qwen2.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert len(set(found.metadata["tokenizer.ggml.tokens"])) == 300
    stored = load_file(base.folder / "model.safetensors")
    assert found.tensors.keys() == {base_name(name) for name in stored}
    for name, tensor in stored.items():
        written = found.tensors[base_name(name)]
        assert written.dtype == (matrices if tensor.dim() > 1 else torch.float32)
        assert torch.equal(written.bfloat16(), tensor)


def test_an_adapter_has_all_its_pairs(
    base: workload.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "CACHE", tmp_path)
    [folder] = workload.random_adapters(base, 1, rank=4)
    path = tmp_path / "adapter.gguf"
    write_adapter(folder, path, torch.bfloat16)
    found = Reader(path)
    assert found.metadata["general.type"] == "adapter"
    assert found.metadata["adapter.lora.alpha"] == 4.0
    stored = load_file(folder / "adapter_model.safetensors")
    assert len(stored) == 2 * 7 * 2
    assert found.tensors.keys() == {adapter_name(name) for name in stored}
    for name, tensor in stored.items():
        assert torch.equal(found.tensors[adapter_name(name)], tensor)


def test_names() -> None:
    assert base_name("model.embed_tokens.weight") == "token_embd.weight"
    assert base_name("model.layers.11.self_attn.q_proj.bias") == "blk.11.attn_q.bias"
    assert base_name("model.layers.0.input_layernorm.weight") == "blk.0.attn_norm.weight"
    name = "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight"
    assert adapter_name(name) == "blk.3.ffn_up.weight.lora_a"
