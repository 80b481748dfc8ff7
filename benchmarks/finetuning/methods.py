"""The six ways to fine-tune: what each wraps the base in, trains, and leaves as files.

Settings are those that papers and libraries start from, except where the base is too small.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import peft
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from finetuning.bottleneck import BottleneckModel
from weft.server.demo import BASE, MODEL_NAME

FULL = "full"
ADAPTER = "adapter"
_RANK, _VIRTUAL_TOKENS, _REDUCTION_FACTOR = 8, 16, 16


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    quantization: of the base that it is trained and served on
    wrap: from the base to what is trained
    save: writes the folder ADAPTER in another, for weft to serve; returns a checkpoint's bytes
    """

    title: str
    quantization: str
    settings: str
    wrap: Callable[[PreTrainedModel], nn.Module]
    save: Callable[[nn.Module, Path], int]


def load_base(quantization: str) -> PreTrainedModel:
    """The embedded base in float32 on the CPU; with "nf4" as QLoRA stores it."""
    settings: dict[str, Any] = {"dtype": torch.float32}
    if quantization == "nf4":
        settings["device_map"] = {"": "cpu"}
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BASE, **settings)
    for module in base.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # Its fused kernel, used without gradients, would compute in bfloat16.
            module.support_avx512bf16_for_cpu = False
    return base


def trainable(model: nn.Module) -> int:
    """Values that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def fewer_at_7b(method: Method) -> float:
    """How many times fewer values the method trains than a base of Llama-7B's shapes has.

    Counted, not trained: no weight is made.
    """
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
        total = base.num_parameters()
        return total / trainable(method.wrap(base))


def _with_peft(config: Callable[[], peft.PeftConfig]) -> Callable[[PreTrainedModel], nn.Module]:
    def wrap(base: PreTrainedModel) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what peft finds in transformers
            return get_peft_model(base, config())

    return wrap


def _save_with_peft(model: nn.Module, folder: Path) -> int:
    model.peft_config["default"].base_model_name_or_path = MODEL_NAME
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
    return _bytes_in(folder / ADAPTER)


def _save_bottleneck(model: nn.Module, folder: Path) -> int:
    assert isinstance(model, BottleneckModel)
    model.save(folder / ADAPTER)
    return _bytes_in(folder / ADAPTER)


def _save_full(model: nn.Module, folder: Path) -> int:
    """The model as transformers saves it, and as an adapter that replaces all weights.

    That one is peft's LN tuning of all modules, which are whole modules trained anew: a tied head
    is written a second time, as peft would.
    """
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder / "model")
    tensors, ends = {}, set()
    for module, owner in model.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            tensors[f"base_model.model.{module}.ln_tuning_layers.{name}"] = (
                parameter.detach().clone()
            )
            ends.add(module.rpartition(".")[2])
    config = {
        "base_model_name_or_path": MODEL_NAME,
        "peft_type": "LN_TUNING",
        "target_modules": sorted(ends),
        "task_type": "CAUSAL_LM",
    }
    (folder / ADAPTER).mkdir(exist_ok=True)
    (folder / ADAPTER / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / ADAPTER / "adapter_model.safetensors", {"format": "pt"})
    return _bytes_in(folder / "model")


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _lora() -> peft.PeftConfig:
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=_RANK, lora_alpha=2 * _RANK, target_modules="all-linear"
    )


def _prefix() -> peft.PeftConfig:
    return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=_VIRTUAL_TOKENS)


def _prompt() -> peft.PeftConfig:
    return peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=_VIRTUAL_TOKENS,
        prompt_tuning_init="SAMPLE_VOCAB",
    )


_LORA_SETTINGS = f"rank {_RANK}, alpha {2 * _RANK}, all linear layers but the head"
METHODS: Mapping[str, Method] = {
    FULL: Method(
        "full fine-tuning",
        "none",
        "all weights",
        lambda base: base,
        _save_full,
    ),
    "lora": Method("LoRA", "none", _LORA_SETTINGS, _with_peft(_lora), _save_with_peft),
    "qlora": Method(
        "QLoRA",
        "nf4",
        f"{_LORA_SETTINGS}, base in NF4 with double quantisation",
        _with_peft(_lora),
        _save_with_peft,
    ),
    "prefix": Method(
        "prefix tuning",
        "none",
        f"{_VIRTUAL_TOKENS} positions, no projection",
        _with_peft(_prefix),
        _save_with_peft,
    ),
    "prompt": Method(
        "prompt tuning",
        "none",
        f"{_VIRTUAL_TOKENS} virtual tokens, from random words",
        _with_peft(_prompt),
        _save_with_peft,
    ),
    "bottleneck": Method(
        "bottleneck adapters",
        "none",
        f"after attention and feed-forward, reduction factor {_REDUCTION_FACTOR}, swish",
        lambda base: BottleneckModel(base, _REDUCTION_FACTOR),
        _save_bottleneck,
    ),
}
