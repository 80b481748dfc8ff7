"""LoRA as peft saved it while each expert was a few linear layers, before transformers 5."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from adapter_files import write_adapter
from tiny_models import tiny_config

FORMER = {
    "mixtral": ("block_sparse_moe", ("w1", "w2", "w3")),
    "qwen3_moe": ("mlp", ("gate_proj", "down_proj", "up_proj")),
}


def save_former_lora(
    path: Path,
    arch: str,
    *,
    seed: int = 0,
    names: Collection[str] | None = None,
    layers: Sequence[int] = (0, 1),
    **config: Any,
) -> Path:
    """Writes a strong random adapter for `tiny_model(arch)`; returns `path`.

    names: of the layers of each expert, all three by default, and maybe `gate`, the router
    config: fields of the file's configuration
    """
    block, own = FORMER[arch]
    names = own if names is None else names
    fields = {"r": 3, "lora_alpha": 6, "target_modules": list(names)} | config
    rank = fields["r"]
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        for module, inputs, outputs in _modules(arch, names):
            name = f"base_model.model.model.layers.{layer}.{block}.{module}"
            a, b = (
                torch.randn(rank, inputs, generator=random),
                torch.randn(outputs, rank, generator=random),
            )
            tensors[f"{name}.lora_A.weight"] = 0.3 * a
            tensors[f"{name}.lora_B.weight"] = 0.3 * b
    return write_adapter(path, {"peft_type": "LORA", "task_type": "CAUSAL_LM"} | fields, tensors)


def _modules(arch: str, names: Collection[str]) -> list[tuple[str, int, int]]:
    """Names, inputs and outputs of what was linear in one layer."""
    model = tiny_config(arch)
    hidden, experts = model.hidden_size, 4
    width = getattr(model, "moe_intermediate_size", model.intermediate_size)
    down = FORMER[arch][1][1]
    modules = [("gate", hidden, experts)] if "gate" in names else []
    for expert in range(experts):
        for name in names:
            if name != "gate":
                sides = (width, hidden) if name == down else (hidden, width)
                modules.append((f"experts.{expert}.{name}", *sides))
    return modules
