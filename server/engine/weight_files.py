"""Reads parts of a base's weights from its files, without a model."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.delta import estimated_norm, norm_of

_INDEX = "model.safetensors.index.json"
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
        """The norm of a module's weight, estimated from some of its rows; None: not told."""
        if module not in self._norms:
            self._norms[module] = self._read(module, "weight", _norm)
        return self._norms[module]

    def parameter(self, module: str, name: str) -> Tensor | None:
        """A parameter's values; None: not told."""
        return self._read(module, name, _whole)

    def _read(self, module: str, name: str, read: Callable[[Any], T | None]) -> T | None:
        """What `read` makes of the slice of a file that holds a parameter."""
        owner = self._base.owners.get(module)
        names = (f"{module}.{name}", f"{module.partition('.')[2]}.{name}")
        found = next((name for name in names if name in self._files), None)
        if owner is None or found is None:
            return None
        try:
            with safe_open(self._files[found], "pt") as file:
                part = file.get_slice(found)
                fits = tuple(part.get_shape()) == owner.shapes.get(name)
                return read(part) if fits and part.get_dtype() in _FLOATS else None
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
    return estimated_norm(part, shape[0]) if len(shape) == 2 else norm_of(part[:])


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
