"""What a model's layers store per token, seen in a dry run instead of believed from a config."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft.adapters.base import KVShape, head_of
from weft.adapters.overridable import RowLayout
from weft.server.engine import stored_weights
from weft.server.engine.attention import AttentionOptions, set_backend
from weft.server.engine.row_layouts import RowWatch
from weft.server.engine.unsupported import ModelUnsupported

_ROWS = 13  # like no dimension of a model: heads, experts, widths
_KEPT = 3


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """One attention module: what it stores per token, and how far it looks back."""

    name: str
    module: nn.Module
    kv_heads: int
    k_dim: int
    v_dim: int
    window: int | None


@dataclass(frozen=True)
class KVSpec:
    """All attention layers in the order in which they run, and how modules see a step's rows.

    layouts: of the modules beside linears and embeddings that can be adapted row by row
    refused: why a module with parameters cannot be adapted row by row, by its name
    """

    layers: tuple[LayerSpec, ...]
    layouts: Mapping[str, RowLayout]
    refused: Mapping[str, str]

    @property
    def elements_per_token(self) -> int:
        """Values stored per token over all layers."""
        return sum(layer.kv_heads * (layer.k_dim + layer.v_dim) for layer in self.layers)

    @property
    def shapes(self) -> dict[str, KVShape]:
        """What each layer stores per token, by name."""
        return {
            layer.name: KVShape(layer.kv_heads, layer.k_dim, layer.v_dim) for layer in self.layers
        }

    @property
    def longest_window(self) -> int:
        """The largest sliding window; 0 where no layer has one."""
        return max((layer.window or 0 for layer in self.layers), default=0)

    @classmethod
    def discover(cls, model: PreTrainedModel) -> "KVSpec":
        """Runs `model`, which must call our attention, once on a few rows without a cache.

        Raises ModelUnsupported for what cannot be paged.
        """
        recorder = _Recorder({id(module): name for name, module in model.named_modules()})
        for module in model.modules():
            set_backend(module, recorder)
        with RowWatch.of(model, _ROWS) as watch, stored_weights.dry():
            _dry_run(model)
        for module in model.modules():
            set_backend(module, None)
        if not recorder.layers:
            raise ModelUnsupported(f"{type(model).__name__} never called its attention function")
        head = head_of(model)
        refused = watch.refused({} if head is None else {head: _KEPT}, _ROWS)
        return cls(tuple(recorder.layers.values()), watch.adaptable(), refused)


@torch.inference_mode()
def _dry_run(model: PreTrainedModel) -> None:
    positions = torch.arange(_ROWS, device=model.device)
    model(
        input_ids=torch.zeros_like(positions)[None],
        position_ids=positions[None],
        use_cache=False,
        logits_to_keep=positions[-_KEPT:],
    )


@dataclass
class _Recorder:
    """An attention backend that notes what it sees and answers zeros."""

    names: Mapping[int, str]
    layers: dict[int, LayerSpec] = field(default_factory=dict)

    def __call__(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions
    ) -> Tensor:
        if id(module) in self.layers:
            raise ModelUnsupported(f"{type(module).__name__} runs more than once in a forward")
        if q.shape[1] % k.shape[1]:
            raise ModelUnsupported(f"{type(module).__name__} has an uneven number of heads")
        self.layers[id(module)] = LayerSpec(
            self.names[id(module)], module, k.shape[1], k.shape[2], v.shape[2], options.window
        )
        return q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
