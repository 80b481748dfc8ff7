"""Reads parts of a base's weights from its files, without a model."""

import json
from functools import cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from weft.adapters.base import BaseModules
from weft.adapters.delta import WeightNorm, estimated_norm

_INDEX = "model.safetensors.index.json"


def weight_norms_in(folder: Path, base: BaseModules) -> WeightNorm:
    """The norms of weights that lie in the files under the names, and in the shapes, of the base.

    Some checkpoints name modules without the model's own prefix. Others are packed or quantised:
    their norms are not told.
    """
    files = _files(folder)

    @cache
    def norm(module: str) -> float | None:
        owner = base.owners.get(module)
        names = (module, module.partition(".")[2])
        name = next((f"{name}.weight" for name in names if f"{name}.weight" in files), None)
        if owner is None or name is None:
            return None
        try:
            with safe_open(files[name], "pt") as file:
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                fits = len(shape) == 2 and shape == owner.shapes.get("weight")
                return estimated_norm(part, shape[0]) if fits else None
        except (OSError, SafetensorError):
            return None

    return norm


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
