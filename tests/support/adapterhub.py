"""Bottleneck adapters in AdapterHub's format, and what AdapterHub computes with them, by hooks.

The hooks are held against the library's own logits in tests/adapters/methods/test_bottleneck.py.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config
from torch import Tensor, nn
from torch.nn.functional import relu, silu
from transformers import PreTrainedModel

NAME = "hub"
STYLES: dict[str, dict[str, Any]] = {
    "pfeiffer": {
        "mh_adapter": False,
        "output_adapter": True,
        "non_linearity": "relu",
        "original_ln_before": True,
        "is_parallel": False,
    },
    "houlsby": {
        "mh_adapter": True,
        "output_adapter": True,
        "non_linearity": "swish",
        "original_ln_before": False,
        "is_parallel": False,
    },
    "parallel": {
        "mh_adapter": False,
        "output_adapter": True,
        "non_linearity": "relu",
        "original_ln_before": False,
        "is_parallel": True,
    },
}
_COMMON = {"original_ln_after": True, "residual_before_ln": True, "leave_out": []}
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "swish": silu,
    "tanh": torch.tanh,
}
# Of a decoder layer: the flag of the configuration, the file's name for the networks, the module
# beside which they stand, and the norm that is given the residual stream.
_ENDS = {
    "llama": (
        ("mh_adapter", "attention_adapters", "self_attn", "input_layernorm"),
        ("output_adapter", "output_adapters", "mlp", "post_attention_layernorm"),
    ),
    "gemma2": (
        ("mh_adapter", "attention_adapters", "self_attn", "input_layernorm"),
        ("output_adapter", "output_adapters", "mlp", "pre_feedforward_layernorm"),
    ),
    "gpt2": (
        ("mh_adapter", "attention_adapters", "attn", "ln_1"),
        ("output_adapter", "output_adapters", "mlp", "ln_2"),
    ),
}


def styles(arch: str) -> list[str]:
    """Those that are served on an architecture: gemma2 has norms where Pfeiffer's adds."""
    return [style for style in STYLES if (arch, style) != ("gemma2", "pfeiffer")]


def save_bottleneck(
    path: Path, arch: str, style: str, *, seed: int = 0, factor: int = 8, **model: Any
) -> Path:
    """Writes a strong random adapter for `tiny_model(arch, **model)`; returns `path`.

    factor: by which the networks are narrower than the model
    """
    config = {**_COMMON, **STYLES[style], "reduction_factor": factor, "scaling": 1.5}
    base = tiny_config(arch, **model)
    layers = "transformer.h" if arch == "gpt2" else "model.layers"
    width, size = base.hidden_size, base.hidden_size // factor
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(base.num_hidden_layers):
        for flag, places, _, _ in _ends(arch):
            if config[flag]:
                place = f"{layers}.{layer}.{places}.adapters.{NAME}"
                shapes = {
                    "adapter_down.0.weight": (size, width),
                    "adapter_down.0.bias": (size,),
                    "adapter_up.weight": (width, size),
                    "adapter_up.bias": (width,),
                }
                for part, shape in shapes.items():
                    tensors[f"{place}.{part}"] = torch.randn(shape, generator=generator) * 0.2
    outer = {"model_type": arch, "hidden_size": width, "name": NAME, "version": "adapters.1.3.0"}
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"config": config, **outer}))
    save_file(tensors, path / "adapter.safetensors")
    return path


def attach(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """The model with the adapter in its layers, for good: `h + a + network(tap)`."""
    outer = json.loads((path / "adapter_config.json").read_text())
    config, tensors = outer["config"], load_file(path / "adapter.safetensors")
    for name, layer in model.named_modules():
        if type(layer).__name__.endswith(("DecoderLayer", "GPT2Block")):
            for flag, places, sublayer, norm in _ends(outer["model_type"]):
                if config[flag]:
                    prefix = f"{name}.{places}.adapters.{outer['name']}."
                    parts = {
                        name.removeprefix(prefix): tensor.float()
                        for name, tensor in tensors.items()
                        if name.startswith(prefix)
                    }
                    modules = layer.get_submodule(sublayer), layer.get_submodule(norm)
                    _hook(*modules, _network(config, parts), _tap(config))
    return model


def _ends(arch: str) -> tuple[tuple[str, str, str, str], ...]:
    return _ENDS.get(arch, _ENDS["llama"])


def _network(config: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """`s (U act(D x + b) + c)`."""
    scaling = config["scaling"]
    factor = parts["scaling"] if scaling in ("learned", "channel") else scaling
    activation = _ACTIVATIONS[config["non_linearity"]]

    def network(x: Tensor) -> Tensor:
        down, up = parts["adapter_down.0.weight"], parts["adapter_up.weight"]
        inner = activation(x @ down.T + parts["adapter_down.0.bias"])
        output: Tensor = (inner @ up.T + parts["adapter_up.bias"]) * factor
        return output

    return network


def _tap(config: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """What the network is given of the sublayer's output a and the residual stream h."""
    if config["is_parallel"]:
        return lambda a, h: h
    if config["original_ln_before"]:
        return lambda a, h: a + h
    return lambda a, h: a


def _hook(
    sublayer: nn.Module,
    norm: nn.Module,
    network: Callable[[Tensor], Tensor],
    tap: Callable[[Tensor, Tensor], Tensor],
) -> None:
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = [args[0]]

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        a = output[0] if isinstance(output, tuple) else output
        a = a + network(tap(a, seen[0]))
        return (a, *output[1:]) if isinstance(output, tuple) else a

    norm.register_forward_pre_hook(see)
    sublayer.register_forward_hook(add)
