"""Models, adapters and prompts that benchmarks serve; random weights, real shapes."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from made_up_tokenizer import save_tokenizer
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
)

CACHE = Path(__file__).parent / ".cache"
EMBEDDED = Path(__file__).parents[1] / "server" / "demo" / "base"


@dataclass(frozen=True)
class Base:
    """A base model on disk: its folder, and what a decode step reads of it, as if in 16 bits.

    chosen: the share of its experts that computes a token   idle: values of those that do not
    stored: bytes of a value in its files
    """

    name: str
    folder: Path
    step_bytes: int
    chosen: float = 1.0
    idle: int = 0
    stored: int = 2

    def read_bytes(self, itemsize: int) -> int:
        """What a step reads of it that computes in values of `itemsize` bytes: as few as are kept.

        On a CPU they are kept as the files have them.
        """
        return self.step_bytes // 2 * min(itemsize, self.stored)


def embedded() -> Base:
    """The model that ships with weft."""
    return Base("embedded", EMBEDDED, _step_bytes(EMBEDDED), stored=4)


def qwen_half_billion() -> Base:
    """Qwen2.5-0.5B's shapes with random bfloat16 weights, made once and kept in `.cache/`.

    Its tokenizer is made up as well.
    """
    folder = CACHE / "qwen2.5-0.5b-shapes"
    if not (folder / "model.safetensors").exists():
        config = Qwen2Config(
            vocab_size=151_936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            dtype="bfloat16",
            bos_token_id=None,
            eos_token_id=None,
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(folder, vocab_size=151_936)
    return Base("qwen2.5-0.5b-shapes", folder, _step_bytes(folder))


def many_experts() -> Base:
    """Four layers of 64 experts in Qwen3-MoE's way, 8 for each token; random bfloat16 weights."""
    folder = CACHE / "64-experts"
    if not (folder / "model.safetensors").exists():
        config = Qwen3MoeConfig(
            vocab_size=32_000,
            hidden_size=512,
            moe_intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=64,
            num_experts=64,
            num_experts_per_tok=8,
            norm_topk_prob=True,
            tie_word_embeddings=True,
            dtype="bfloat16",
            bos_token_id=None,
            eos_token_id=None,
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    experts = [p for name, p in _skeleton(folder).named_parameters() if ".experts." in name]
    values = sum(parameter.numel() for parameter in experts)
    return Base("64-experts", folder, _step_bytes(folder), chosen=1 / 8, idle=values * 7 // 8)


def llama_eight_billion() -> Base:
    """Llama-3.1-8B's shapes; a configuration only: an engine draws the weights on its device."""
    folder = CACHE / "llama-3.1-8b-shapes"
    if not (folder / "config.json").exists():
        LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            dtype="bfloat16",
        ).save_pretrained(folder)
    return Base("llama-3.1-8b-shapes", folder, _step_bytes(folder))


def random_adapters(base: Base, count: int, rank: int) -> list[Path]:
    """`count` LoRA folders in peft's layout: all linear layers but the head, bfloat16."""
    linears = _linears(_skeleton(base.folder))
    folders = []
    for index in range(count):
        folder = CACHE / f"{base.name}-adapters" / f"r{rank}-{index}"
        folders.append(folder)
        if not (folder / "adapter_model.safetensors").exists():
            _write_adapter(folder, linears, rank, seed=index)
    return folders


def adapter_bytes(base: Base, rank: int, bytes_each: int) -> int:
    """What one adapter's pairs take at `bytes_each` per value."""
    return (
        sum(rank * sum(shape) for shape in _linears(_skeleton(base.folder)).values()) * bytes_each
    )


def head_bytes(base: Base) -> int:
    """What the output head takes, 2 bytes a value."""
    config = AutoConfig.from_pretrained(base.folder)
    return 2 * int(config.vocab_size) * int(config.hidden_size)


def prompts(base: Base, count: int, length: int) -> list[tuple[int, ...]]:
    """`count` different prompts of `length` random token ids."""
    vocabulary = AutoConfig.from_pretrained(base.folder).vocab_size
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (count, length), generator=generator)
    return [tuple(row) for row in ids.tolist()]


def _skeleton(folder: Path) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder)
        )
    return model


def _linears(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Name → (in_features, out_features) of each linear layer but the output head."""
    head = model.get_output_embeddings()
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def _step_bytes(folder: Path) -> int:
    """Weights that one decode step reads: all of them, but of an untied embedding only rows."""
    model = _skeleton(folder)
    tied = model.config.tie_word_embeddings
    total = sum(parameter.numel() for parameter in model.parameters())
    if not tied:
        total -= model.get_input_embeddings().weight.numel()
    return total * 2


def _write_adapter(folder: Path, linears: dict[str, tuple[int, int]], rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in linears.items():
        prefix = f"base_model.model.{name}"
        a = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        b = torch.randn(outputs, rank, generator=generator) * 0.02
        tensors[f"{prefix}.lora_A.weight"] = a.bfloat16()
        tensors[f"{prefix}.lora_B.weight"] = b.bfloat16()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in linears}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
