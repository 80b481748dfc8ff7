"""AdapterHub's bottleneck adapters as its library computes them, in plain PyTorch: to compare with.

Attached to a model of its own, for good. Knows nothing of plans, batches and caches, and reads the
files for itself, so that a mistake made there is not made here too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from weft.adapters.checkpoint import Checkpoint
from weft.adapters.sublayers import Part, Sublayer, sublayers_of
from weft.adapters.tensors import read_tensors

_PLACES: Mapping[Part, str] = {
    "attention": "attention_adapters",
    "feed_forward": "output_adapters",
}
_NETWORK = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")
# What a name meant before configurations had a version.
_FORMERLY = {"gelu": "gelu_new", "gelu_orig": "gelu"}


def attach(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Lets a model compute with an adapter that `lower` accepts, and with the head that it brings.

    In place; `model` is a float32 model that nothing else uses.
    """
    outer: Any = checkpoint.config
    tensors = {name: tensor.float() for name, tensor in read_tensors(checkpoint).items()}
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    for sublayer in sublayers_of(types):
        found = _tensors_of(sublayer, outer["name"], tensors)
        if found:
            _hook(model, sublayer, _Bottleneck.of(outer, found, model.device))
    for name in ("lm_head.weight", f"heads.{outer['name']}.0.weight"):
        if name in tensors:
            head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
            head.weight = nn.Parameter(tensors[name].to(model.device), requires_grad=False)


@dataclass(frozen=True)
class _Bottleneck:
    """One network and where it stands; fields of the configuration by their names there."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    scaling: Tensor | float
    activation: Callable[[Tensor], Tensor]
    is_parallel: bool
    original_ln_before: bool
    original_ln_after: bool
    residual_before_ln: bool

    @classmethod
    def of(
        cls, outer: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
    ) -> "_Bottleneck":
        config = outer["config"]
        scaling = config.get("scaling", 1.0)
        if scaling in ("learned", "channel"):
            scaling = tensors["scaling"].to(device)
        down, down_bias, up, up_bias = (tensors[part].to(device) for part in _NETWORK)
        return cls(
            down,
            down_bias,
            up,
            up_bias,
            scaling=1.0 if scaling is None else scaling,
            activation=_activation(config["non_linearity"], versioned="version" in outer),
            is_parallel=bool(config.get("is_parallel")),
            original_ln_before=bool(config.get("original_ln_before")),
            original_ln_after=config.get("original_ln_after") is not False,
            residual_before_ln=config.get("residual_before_ln") is not False,
        )

    def after(self, output: Tensor, residual: Tensor) -> Tensor:
        """The residual stream after a sublayer that put this out and was given that."""
        given = output + residual if self.original_ln_before else output
        inner = output if self.residual_before_ln else given
        if self.is_parallel:
            given, inner = residual, output
        hidden = self.activation(linear(given, self.down, self.down_bias))
        stream = linear(hidden, self.up, self.up_bias) * self.scaling + inner
        return stream + residual if self.original_ln_after else stream


def _tensors_of(sublayer: Sublayer, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A sublayer's part of the file, in which names may begin inside the model's own prefix."""
    place = f"{sublayer.of}.{_PLACES[sublayer.part]}.adapters.{name}."
    inside = place.partition(".")[2]
    return {
        key.removeprefix(prefix): tensor
        for prefix in (place, inside)
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def _activation(name: str, *, versioned: bool) -> Callable[[Tensor], Tensor]:
    name = (name if versioned else _FORMERLY.get(name, name)).lower()
    if name == "leakyrelu":
        return leaky_relu
    found: Callable[[Tensor], Tensor] = ACT2FN[name]
    return found


def _hook(model: nn.Module, sublayer: Sublayer, bottleneck: _Bottleneck) -> None:
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = [args[0]]

    def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # The layer itself adds the residual stream to what comes out here.
        return bottleneck.after(output, seen[0]) - seen[0]

    model.get_submodule(sublayer.norm).register_forward_pre_hook(see)
    model.get_submodule(sublayer.output).register_forward_hook(change)
