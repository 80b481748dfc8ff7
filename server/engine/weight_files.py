"""Reads parts of a base's weights from its files, without a model."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.delta import estimated_norm, norm_of
from weft.adapters.expert_maps import ExpertMap

_INDEX = "model.safetensors.index.json"
_EXPERTS = 8
_FLOATS = ("F64", "F32", "F16", "BF16")
T = TypeVar("T")


class FileWeights:
    """The weights that lie in a folder's files under the names, and in the shapes, of a base.

    Some checkpoints name modules without the model's own prefix. Others are packed or quantised:
    theirs are not told.
    """

    def __init__(self, folder: Path, base: BaseModules) -> None:
        self._folder = folder
        self._base = base
        self._norms: dict[str, float | None] = {}

    def norm(self, module: str) -> float | None:
        """The norm of a module's weight, estimated from some of its rows; None: not told.

        Of a map of experts it is estimated from some of these.
        """
        if module not in self._norms:
            norm = self._read(*self._base.weight_of(module), _norm)
            if norm is None and module in self._base.experts:
                norm = self._norm_of_experts(self._base.experts[module])
            self._norms[module] = norm
        return self._norms[module]

    def parameter(self, module: str, name: str) -> Tensor | None:
        """A parameter's values; None: not told."""
        experts = self._base.experts.get(f"{module}.{name}")
        values = self._read(module, name, _whole)
        if values is not None or experts is None:
            return values
        each = self._of_experts(experts, range(experts.experts), _whole)
        return None if each is None else torch.stack([torch.cat(parts) for parts in each])

    def _norm_of_experts(self, experts: ExpertMap) -> float | None:
        some = _some(experts.experts)
        each = self._of_experts(experts, some, _norm)
        if each is None:
            return None
        return math.hypot(*chain.from_iterable(each)) * math.sqrt(experts.experts / len(some))

    def _of_experts(
        self, experts: ExpertMap, some: Sequence[int], read: Callable[[Any], T | None]
    ) -> list[list[T]] | None:
        """What `read` makes of some experts' layers, where each expert's are stored apart."""
        found = []
        for expert in some:
            layers = [self._slice(name, "weight") for name in experts.former_of(expert)]
            shapes = [part.get_shape() for part in layers if part is not None]
            widths = {tuple(shape[1:]) for shape in shapes}
            if len(shapes) < len(layers) or widths != {(experts.in_features,)}:
                return None
            values = [value for part in layers if (value := read(part)) is not None]
            if sum(shape[0] for shape in shapes) != experts.out_features:
                return None
            found.append(values)
        return found

    def _read(self, module: str, name: str, read: Callable[[Any], T | None]) -> T | None:
        """What `read` makes of the slice of a file that holds a parameter."""
        owner, part = self._base.owners.get(module), self._slice(module, name)
        if owner is None or part is None or tuple(part.get_shape()) != owner.shapes.get(name):
            return None
        return read(part)

    def _slice(self, module: str, name: str) -> Any:
        """The part of a file that holds a tensor of floating-point numbers, or None."""
        names = (f"{module}.{name}", f"{module.partition('.')[2]}.{name}")
        found = next((name for name in names if name in self._files), None)
        if found is None:
            return None
        try:
            with safe_open(self._files[found], "pt") as file:
                part = file.get_slice(found)
                return part if part.get_dtype() in _FLOATS else None
        except (OSError, SafetensorError):
            return None

    @cached_property
    def _files(self) -> Mapping[str, Path]:
        return _files(self._folder)


def _whole(part: Any) -> Tensor:
    values: Tensor = part[:]
    return values


def _norm(part: Any) -> float | None:
    shape = part.get_shape()
    if len(shape) == 2:
        return estimated_norm(part, shape[0])
    if len(shape) < 2:
        return norm_of(part[:])
    some = _some(shape[0])
    known = [norm_of(part[index]) or 0.0 for index in some]
    return math.hypot(*known) * math.sqrt(shape[0] / len(some))


def _some(experts: int) -> Sequence[int]:
    """A few of them, spread over all."""
    if experts <= _EXPERTS:
        return range(experts)
    return [index * (experts - 1) // (_EXPERTS - 1) for index in range(_EXPERTS)]


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    try:
        index: dict[str, str] = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        return {name: folder / file for name, file in index.items()}
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    found: dict[str, Path] = {}
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError):
            continue
    return found
