"""Writes and changes the two files of an adapter, well-formed or not, without peft."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def write_adapter(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / CONFIG).write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path / WEIGHTS
    )
    return path


def read_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / CONFIG).read_text())
    return config


def edit_config(path: Path, **changes: Any) -> Path:
    (path / CONFIG).write_text(json.dumps(read_config(path) | changes))
    return path


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    return write_adapter(path, read_config(path), edit(load_file(path / WEIGHTS)))


def rename_tensors(path: Path, rename: Callable[[str], str]) -> Path:
    return edit_tensors(path, lambda tensors: {rename(k): v for k, v in tensors.items()})


def safetensors_bytes(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A file of this header, sound or not, as the format frames it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
