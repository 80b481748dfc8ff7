"""Large weights that stay in the 16 bits of their files, and are widened where they are read.

The files are mapped: what is left there takes no memory of its own, and a start does not copy it.
Widening is exact, so each value is the one that a widened copy would have.
"""

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from weft.server.engine.widening import SMALLEST, widened_blocks

_STORED = {"BF16": torch.bfloat16, "F16": torch.float16}


class Stored(nn.Module):
    """A module whose `weight` is read from `stored`, as a new tensor, until another one is set.

    Its parameter is a stand-in of the weight's shape and dtype that takes no memory.
    """

    stored: Tensor

    @property
    def is_stored(self) -> bool:
        """Whether its weight is read from `stored`."""
        return _is_stand_in(self._parameters["weight"])

    def __getattr__(self, name: str) -> Any:
        value: Any = super().__getattr__(name)
        is_read = name == "weight" and _is_stand_in(value)
        return self.stored.to(value.dtype) if is_read else value


class StoredLinear(Stored, nn.Linear):
    """A linear layer that widens its weight at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        """linear: shares its parameters with this one, and what is stored where that is so"""
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, has_bias, device="meta")
        self._parameters.update(linear._parameters)
        self.register_buffer("stored", getattr(linear, "stored", None), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]; returns [..., out_features]."""
        if not self.is_stored:
            return super().forward(x)
        if _own.is_dry:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        bias: Tensor | None = self.bias
        parts = [
            F.linear(x, weight, None if bias is None else bias[rows])
            for rows, weight in self.blocks()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The weight and its rows: widened some at a time, or as a whole where it is not stored.

        What was widened is overwritten by what this thread widens next.
        """
        weight = self._parameters["weight"]
        assert weight is not None
        if _is_stand_in(weight):
            yield from widened_blocks(self.stored, weight.dtype)
        else:
            yield slice(None), weight


class StoredEmbedding(Stored, nn.Embedding):
    """An embedding that widens the rows that are looked up.

    embed_scale: what they are multiplied by, told as transformers' own embeddings tell it
    """

    embed_scale = 1.0

    def __init__(self, embedding: nn.Embedding) -> None:
        """embedding: shares its parameter with this one"""
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self._parameters.update(embedding._parameters)
        self.register_buffer("stored", None, persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch calls it so
        """input: int64 [...]; returns [..., embedding_dim]."""
        weight = self._parameters["weight"]
        assert weight is not None
        table = self.stored if _is_stand_in(weight) else weight
        return F.embedding(input, table).to(weight.dtype)


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The 16-bit dtype of all tensors in the safetensors files; None: there is no such."""
    found = set()
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return _STORED.get(found.pop()) if len(found) == 1 else None


@contextmanager
def left_in(stored: torch.dtype | None) -> Iterator[None]:
    """Lets models that transformers loads meanwhile have large weights in this dtype, if any."""
    plan = PreTrainedModel._get_dtype_plan

    def with_large(self: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
        large = [name for name, module in self.named_modules() if can_stay(module)]
        patterns = (rf"^{re.escape(name)}\.weight$" for name in large)
        return plan(self, dtype) | dict.fromkeys(patterns, stored)

    if stored is not None:
        PreTrainedModel._get_dtype_plan = with_large  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel._get_dtype_plan = plan  # type: ignore[method-assign]


def values_kept(model: nn.Module) -> int:
    """How many values of a model, which may be without weights, `left_in` leaves in their dtype."""
    large, other = set[nn.Parameter](), set[nn.Parameter]()
    for module in model.modules():
        of_kind = large if can_stay(module) else other
        of_kind.update(module.parameters(recurse=False))
    return sum(weight.numel() for weight in large - other if weight.dim() > 1)


def adopt(model: nn.Module, dtype: torch.dtype) -> None:
    """Lets the modules whose weights were left in another dtype compute in `dtype`; in place."""
    kept: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for name, module in list(model.named_modules()):
        if can_stay(module) and module.weight.dtype != dtype:
            weight = module.weight
            if id(weight) not in kept:
                kept[id(weight)] = _stand_in(weight.shape, dtype), weight.detach()
            own = StoredLinear(module) if isinstance(module, nn.Linear) else StoredEmbedding(module)
            own.weight, own.stored = kept[id(weight)]
            model.set_submodule(name, own)
    model.requires_grad_(False).eval()


def widen(model: nn.Module, linears: Iterable[nn.Module]) -> None:
    """Gives linear layers of the model, and what shares their weights, widened copies."""
    copies = {
        id(linear._parameters["weight"]): nn.Parameter(linear.weight, requires_grad=False)
        for linear in linears
        if isinstance(linear, StoredLinear)
    }
    for module in model.modules():
        weight = module._parameters.get("weight")
        if isinstance(module, Stored) and id(weight) in copies:
            module.weight = copies[id(weight)]


def can_stay(module: nn.Module) -> bool:
    """Whether it has a large weight, and computes with it only what a class in this file does."""
    if type(module) is nn.Embedding:
        return module.max_norm is None and module.weight.numel() >= SMALLEST
    return type(module) is nn.Linear and module.weight.numel() >= SMALLEST


def _stand_in(shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    """Of NaNs, so that nobody computes with it unnoticed."""
    return nn.Parameter(torch.full((1, 1), torch.nan, dtype=dtype).expand(shape), False)


def _is_stand_in(weight: Tensor | None) -> bool:
    return weight is not None and not any(weight.stride())


@contextmanager
def dry() -> Iterator[None]:
    """Lets stored linear layers that this thread calls give zeros, and read no weight."""
    _own.is_dry = True
    try:
        yield
    finally:
        _own.is_dry = False


class _Own(threading.local):
    """What each thread has of its own.   is_dry: see `dry`"""

    is_dry = False


_own = _Own()
