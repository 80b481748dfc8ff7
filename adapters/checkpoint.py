"""The files of an adapter: found, read and named by their digest. Knows no method, no torch."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
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
ADAPTERHUB_WEIGHTS_NAME = "adapter.safetensors"
HEAD_NAME = "model_head.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_CONFIG_DEPTH = 16

_PICKLES = (
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.pth",
    "adapter_model.pkl",
    "pytorch_adapter.bin",
)
_HEAD_PICKLES = ("pytorch_model_head.bin",)
_CONVERTED = {
    **dict.fromkeys(_PICKLES, WEIGHTS_NAME),
    "pytorch_adapter.bin": ADAPTERHUB_WEIGHTS_NAME,
    "pytorch_model_head.bin": HEAD_NAME,
}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class HeadFile:
    """The model's head as AdapterHub saves it with an adapter, a safetensors file."""

    header: Header
    weights: Path


@dataclass(frozen=True)
class Checkpoint:
    """A version as its files say, not yet lowered.

    weights: the safetensors file   digest: see `start_digest`
    nbytes: size of the safetensors files   head: see HeadFile; only of AdapterHub's adapters
    """

    config: Mapping[str, Json]
    header: Header
    weights: Path
    digest: str
    nbytes: int
    head: HeadFile | None = None

    @property
    def from_adapterhub(self) -> bool:
        """Whether it is in AdapterHub's format, not in peft's."""
        return _is_adapterhub(self.config)

    @property
    def lead(self) -> int:
        """Positions that it puts before a prompt, as its configuration says."""
        count = self.config.get("num_virtual_tokens")
        return count if type(count) is int else 0


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads an adapter's folder, or its only sub-folder that is one, as peft saves named adapters.

    Raises AdapterInvalid where a file is missing, not the right format, or broken.
    """
    try:
        folder = adapter_folder(folder)
        config = _read_config(folder / CONFIG_NAME)
        return _read_files(folder, config)
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
    """The SHA-256 of a version, to be updated with all bytes of its safetensors files, in order.

    A digest is SHA-256 over: the length of the canonical configuration as 8 bytes, little-endian;
    the canonical configuration (JSON in ASCII, keys sorted, no spaces); the weights file; the
    head's file, if there is one. What else is in a folder changes nothing.
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


def pickle_refusal(files: Collection[str], *, of_head: bool = False) -> AdapterInvalid | None:
    """Why no other file is looked for where `files` hold a pickle: how to convert it, or None."""
    pickle = next(
        (name for name in (_HEAD_PICKLES if of_head else _PICKLES) if name in files), None
    )
    if pickle is None:
        return None
    command = CONVERT_COMMAND.replace(_PICKLES[0], pickle).replace(WEIGHTS_NAME, _CONVERTED[pickle])
    return AdapterInvalid(pickle, f"pickle files are not read; convert it with: {command}")


def _read_config(path: Path) -> dict[str, Json]:
    with path.open("rb") as file:
        return parse_config(file.read(MAX_CONFIG_BYTES + 1))


def _read_files(folder: Path, config: dict[str, Json]) -> Checkpoint:
    adapterhub = _is_adapterhub(config)
    weights = _weights_in(folder, adapterhub=adapterhub)
    digest = start_digest(config)
    header, nbytes = _read_header(weights, digest)
    head = None
    if adapterhub and (folder / HEAD_NAME).is_file():
        of_head, more = _read_header(folder / HEAD_NAME, digest)
        head, nbytes = HeadFile(of_head, folder / HEAD_NAME), nbytes + more
    elif adapterhub and (refusal := pickle_refusal(_names(folder), of_head=True)):
        raise refusal
    return Checkpoint(config, header, weights, digest.hexdigest(), nbytes, head)


def _is_adapterhub(config: Mapping[str, Json]) -> bool:
    return "peft_type" not in config and "config" in config


def _weights_in(folder: Path, *, adapterhub: bool) -> Path:
    names = (WEIGHTS_NAME, ADAPTERHUB_WEIGHTS_NAME) if adapterhub else (WEIGHTS_NAME,)
    found = [folder / name for name in names if (folder / name).is_file()]
    if found:
        return found[0]
    raise pickle_refusal(_names(folder)) or AdapterInvalid(names[-1], "is missing")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def _read_header(path: Path, digest: "hashlib._Hash") -> tuple[Header, int]:
    """A safetensors file's header and size; all of its bytes go into the digest."""
    with path.open("rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        head = file.read(8 + MAX_HEADER_BYTES)
        header = parse_header(head, nbytes, path.name)
        digest.update(head)
        _update(digest, file)
    return header, nbytes


def _update(digest: "hashlib._Hash", file: BinaryIO) -> None:
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
