"""Bottleneck adapters to be trained, in plain torch, and their files in AdapterHub's format.

Houlsby's placement (`double_seq_bn` with the library's defaults): a network on the output of each
attention and each feed-forward sublayer of a llama, before the residual stream is added.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

_NAME = "trained"
_PLACES = {"attention_adapters": "self_attn.o_proj", "output_adapters": "mlp.down_proj"}
_CONFIG = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "init_weights": "bert",
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": True,
    "non_linearity": "swish",
    "original_ln_after": True,
    "original_ln_before": False,
    "output_adapter": True,
    "phm_layer": False,
    "residual_before_ln": True,
    "scaling": 1.0,
    "use_gating": False,
}


class Network(nn.Module):
    """`x + up(silu(down(x)))`, `size` wide within."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.adapter_down = nn.Sequential(nn.Linear(width, size), nn.SiLU())
        self.adapter_up = nn.Linear(size, width)
        for linear in (self.adapter_down[0], self.adapter_up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]."""
        return x + self.adapter_up(self.adapter_down(x))


class BottleneckModel(nn.Module):
    """A llama whose own weights are frozen, with networks that are trained; called as the base."""

    def __init__(self, base: PreTrainedModel, reduction_factor: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.reduction_factor = reduction_factor
        self.networks = nn.ModuleDict()
        width = base.config.hidden_size
        for number, layer in enumerate(base.model.layers):
            for place, output in _PLACES.items():
                network = Network(width, max(1, width // reduction_factor))
                self.networks[f"{number}_{place}"] = network
                layer.get_submodule(output).register_forward_hook(
                    lambda _module, _inputs, y, network=network: network(y)
                )

    def forward(self, **inputs: Any) -> Any:
        """As the base's."""
        return self.base(**inputs)

    def save(self, folder: Path) -> None:
        """Writes `adapter_config.json` and `adapter.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "config": {**_CONFIG, "reduction_factor": self.reduction_factor},
            "hidden_size": self.base.config.hidden_size,
            "model_class": type(self.base).__name__,
            "model_type": self.base.config.model_type,
            "name": _NAME,
            "version": "adapters.1.3.0",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(self.named_tensors(), folder / "adapter.safetensors", {"format": "pt"})

    def named_tensors(self) -> dict[str, Tensor]:
        """The networks' parameters by AdapterHub's names for them."""
        named = {}
        for key, network in self.networks.items():
            number, _, place = key.partition("_")
            prefix = f"model.layers.{number}.{place}.adapters.{_NAME}"
            for name, parameter in network.named_parameters():
                named[f"{prefix}.{name}"] = parameter.detach()
        return named
