"""The two files of an adapter: found, read and named by their digest. Knows no method, no torch."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import (
    CONVERT_COMMAND,
    MAX_HEADER_BYTES,
    WEIGHTS_NAME,
    Header,
    parse_header,
)
from weft.adapters.strict_json import Json, parse_object

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_CONFIG_DEPTH = 16

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.pkl")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A version as its files say, not yet lowered.

    weights: the safetensors file; nbytes: its size
    digest: see `start_digest`
    """

    config: Mapping[str, Json]
    header: Header
    weights: Path
    digest: str
    nbytes: int


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads an adapter's folder, or its only sub-folder that is one, as peft saves named adapters.

    Raises AdapterInvalid where a file is missing, not the right format, or broken.
    """
    try:
        folder = adapter_folder(folder)
        config = _read_config(folder / CONFIG_NAME)
        return _read_weights(folder / WEIGHTS_NAME, config)
    except OSError as error:
        raise AdapterInvalid(
            "adapter folder", f"cannot be read: {error.strerror or type(error).__name__}"
        ) from None


def parse_config(data: bytes) -> dict[str, Json]:
    """The configuration that a file of these bytes holds; raises AdapterInvalid."""
    if len(data) > MAX_CONFIG_BYTES:
        raise AdapterInvalid(CONFIG_NAME, f"is larger than {MAX_CONFIG_BYTES} bytes")
    return parse_object(data, CONFIG_NAME, MAX_CONFIG_DEPTH)


def start_digest(config: Mapping[str, Json]) -> "hashlib._Hash":
    """The SHA-256 of a version, to be updated with all bytes of its weights file, in order.

    A digest is SHA-256 over: the length of the canonical configuration as 8 bytes, little-endian;
    the canonical configuration (JSON in ASCII, keys sorted, no spaces); the weights file.
    """
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return hashlib.sha256(len(canonical).to_bytes(8, "little") + canonical)


def adapter_folder(folder: Path) -> Path:
    """The folder itself, or its only sub-folder that holds an adapter; raises AdapterInvalid."""
    if not folder.is_dir():
        raise AdapterInvalid("adapter folder", "is not a folder")
    if (folder / CONFIG_NAME).is_file():
        return folder
    inner = sorted(path for path in folder.iterdir() if (path / CONFIG_NAME).is_file())
    if len(inner) == 1:
        return inner[0]
    if not inner:
        raise AdapterInvalid(CONFIG_NAME, "is missing")
    names = ", ".join(path.name for path in inner[:5])
    raise AdapterInvalid(
        CONFIG_NAME, f"is missing, and {len(inner)} sub-folders have one ({names}): name one"
    )


def _read_config(path: Path) -> dict[str, Json]:
    with path.open("rb") as file:
        return parse_config(file.read(MAX_CONFIG_BYTES + 1))


def _read_weights(path: Path, config: dict[str, Json]) -> Checkpoint:
    if not path.is_file():
        pickle = next((name for name in _PICKLES if (path.parent / name).is_file()), None)
        if pickle is None:
            raise AdapterInvalid(WEIGHTS_NAME, "is missing")
        command = CONVERT_COMMAND.replace(_PICKLES[0], pickle)
        raise AdapterInvalid(pickle, f"pickle files are not read; convert it with: {command}")
    with path.open("rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        head = file.read(8 + MAX_HEADER_BYTES)
        header = parse_header(head, nbytes)
        digest = start_digest(config)
        digest.update(head)
        _update(digest, file)
    return Checkpoint(config, header, path, digest.hexdigest(), nbytes)


def _update(digest: "hashlib._Hash", file: BinaryIO) -> None:
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
