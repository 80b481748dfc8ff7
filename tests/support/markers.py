"""Adapters that answer in tokens of their own, and what transformers says that each answers.

The vocabulary's first half belongs to the base. Each adapter prefers MARKS tokens of the second
half, which are no other adapter's, so strongly that one foreign token proves a mix-up; which of
them comes next depends on all that was read, and so on every adapted projection and KV cell.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from adapter_files import WEIGHTS, write_adapter
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, save_tiny, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

MARKS = 4
FIRST_MARK = VOCAB_SIZE // 2
MOST_MARKED = FIRST_MARK // MARKS
"""So many adapters can be told apart."""
_RANK = 2
_LAYER = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 32), "mlp.down_proj": (96, 64)}
_SHAPES = {
    f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in _LAYER.items()
}
_HEAD = "lm_head"
_PREFIX = "base_model.model."


def marks(number: int) -> range:
    """The tokens of adapter `number`."""
    first = FIRST_MARK + MARKS * number
    return range(first, first + MARKS)


def marked_base(arch: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model that does not come upon any adapter's tokens by itself."""
    model = tiny_model(arch, seed=seed, **overrides)
    model.get_output_embeddings().weight.data[FIRST_MARK:] *= 0.05
    return model


def save_marked_base(path: Path) -> Path:
    """Writes the base; returns `path`."""
    return save_tiny("llama", path, build=marked_base)


def save_marker(path: Path, number: int) -> Path:
    """Writes adapter `number`, from 0 to MOST_MARKED - 1; returns `path`."""
    draw = torch.Generator().manual_seed(number)
    tensors: dict[str, Tensor] = {}
    for module, (width, out) in _SHAPES.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = torch.randn(_RANK, width, generator=draw) / 8
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = torch.randn(out, _RANK, generator=draw)
    tensors[f"{_PREFIX}{_HEAD}.lora_A.weight"] = torch.randn(_RANK, 64, generator=draw)
    head = torch.zeros(VOCAB_SIZE, _RANK)
    # Of each pair one is far above all other tokens, whatever the sign of what the rank reads.
    head[marks(number).start : marks(number).stop] = 1000 * torch.tensor(
        [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    )
    tensors[f"{_PREFIX}{_HEAD}.lora_B.weight"] = head
    targets = [_HEAD, *(name.rpartition(".")[2] for name in _LAYER)]
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "target_modules": targets}
    return write_adapter(path, config, tensors)


def weights_bytes(adapter: Path) -> int:
    """What the tensors of an adapter take."""
    return sum(tensor.nbytes for tensor in load_file(adapter / WEIGHTS).values())


class MarkedAnswers:
    """What transformers answers alone, with the adapter added to the weights."""

    def __init__(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        """prompts: of one length   tokens: of each answer"""
        self._model = marked_base("llama")
        self._prompts = torch.tensor(prompts)
        self._tokens = tokens

    @torch.inference_mode()
    def of(self, adapter: Path | None) -> list[tuple[int, ...]]:
        """The greedy answer to each prompt, whatever token it holds; of the base without a path."""
        with self._merged({} if adapter is None else load_file(adapter / WEIGHTS)):
            ids = self._prompts
            for _ in range(self._tokens):
                logits = self._model(input_ids=ids, use_cache=False).logits
                ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
        return [tuple(row) for row in ids[:, self._prompts.shape[1] :].tolist()]

    @contextmanager
    def _merged(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        kept = {}
        for module in (*_SHAPES, _HEAD) if tensors else ():
            weight = self._model.get_submodule(module).weight
            assert isinstance(weight, Tensor)
            kept[module] = weight.clone()
            a, b = (tensors[f"{_PREFIX}{module}.lora_{side}.weight"] for side in "AB")
            weight += b @ a
        try:
            yield
        finally:
            for module, weight in kept.items():
                self._model.get_submodule(module).weight.copy_(weight)  # type: ignore[operator]
