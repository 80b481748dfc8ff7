"""The memory that holds keys and values, and how much of it a model gets.

Who owns which page is the page pool's business.
"""

from dataclasses import dataclass

import torch

from weft.server.engine import hardware
from weft.server.engine.attention import AttentionStep, PagedLayer, set_backend
from weft.server.engine.hardware import GIB
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.messages import EngineConfig
from weft.server.engine.unsupported import ModelUnsupported

_CPU_DEFAULT = 4 * GIB
_CPU_SHARE = 0.4
_CUDA_SHARE = 0.9


@dataclass(frozen=True)
class KVLayout:
    """How pages are laid out: for each layer K `[pages, page_size, kv_heads, k_dim]`, V alike."""

    spec: KVSpec
    page_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.spec.elements_per_token * self.page_size * self.dtype.itemsize

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` of one sequence."""
        return -(-tokens // self.page_size)

    def allocate(self, pages: int, step: AttentionStep) -> None:
        """Gives each layer zeroed pools of `pages` pages, in place of those that it had."""
        self.release()
        for layer in self.spec.layers:
            shape = (pages, self.page_size, layer.kv_heads)
            pools = (
                hardware.zeros((*shape, dim), self.dtype, self.device)
                for dim in (layer.k_dim, layer.v_dim)
            )
            set_backend(layer.module, PagedLayer(step, *pools))

    def release(self) -> None:
        """Takes the layers' pools away."""
        for layer in self.spec.layers:
            set_backend(layer.module, None)


@dataclass(frozen=True)
class KVSize:
    """pages: page 0, which pads, included   max_model_len: the longest sequence that they hold"""

    pages: int
    max_model_len: int


def choose_size(
    config: EngineConfig, layout: KVLayout, *, longest: int, free: int, workspace: int
) -> KVSize:
    """How many pages to allocate, and how long a sequence may become.

    longest: the context length asked for, or the model's own   free: bytes on the device
    workspace: bytes that a step needs beside the cache
    Raises ModelUnsupported where the cache would not hold one sequence, saying what to change.
    """
    budget = _budget(config, layout.device, free, workspace)
    useful = config.max_num_seqs * layout.pages_for(longest) + 1
    pages = min(budget // layout.page_bytes, useful)
    held = (pages - 1) * layout.page_size
    if held >= longest:
        return KVSize(pages, longest)
    if config.max_model_len is None and held > 0:
        return KVSize(pages, held)
    raise ModelUnsupported(
        f"a KV cache of {budget / GIB:.2f} GiB holds {max(held, 0)} tokens, one sequence needs "
        f"{longest}: lower --max-model-len or raise --kv-cache-memory"
    )


def _budget(config: EngineConfig, device: torch.device, free: int, workspace: int) -> int:
    if config.kv_cache_memory is not None:
        return config.kv_cache_memory
    if device.type == "cpu":
        return min(_CPU_DEFAULT, int(free * _CPU_SHARE))
    return int(free * _CUDA_SHARE) - workspace
