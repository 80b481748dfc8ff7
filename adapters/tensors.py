"""A checkpoint's tensors in host memory, each value checked. Knows no method and no base."""

import hashlib
import math
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from weft.adapters.checkpoint import Checkpoint, start_digest
from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME, Header, TensorSpec

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of the files by the names they give them, contiguous, in the files' dtypes.

    Raises AdapterInvalid where a value is not finite, two tensors have one name, or the files are
    no longer those that the checkpoint's digest names.
    """
    digest = start_digest(checkpoint.config)
    tensors = _read_file(checkpoint.weights, checkpoint.header, digest)
    if checkpoint.head is not None:
        head = _read_file(checkpoint.head.weights, checkpoint.head.header, digest)
        for name in tensors.keys() & head.keys():
            raise AdapterInvalid(name, f"is also in {checkpoint.head.weights.name}")
        tensors |= head
    if digest.hexdigest() != checkpoint.digest:
        raise AdapterInvalid(WEIGHTS_NAME, "changed after it was checked")
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise AdapterInvalid(name, "holds NaN or infinity")
    return tensors


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; the least and the largest tell, in one fast pass."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(tensor))


def _read_file(path: Path, header: Header, digest: "hashlib._Hash") -> dict[str, Tensor]:
    """The tensors of one file, all of whose bytes go into the digest."""
    tensors: dict[str, Tensor] = {}
    with _open(path) as file:
        digest.update(file.read(header.data_start))
        for spec in header.tensors.values():
            data = _read(file, spec)
            digest.update(data)
            tensors[spec.name] = _tensor(data, spec)
    return tensors


def _open(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise AdapterInvalid(WEIGHTS_NAME, f"cannot be read: {error.strerror}") from None


def _read(file: BufferedReader, spec: TensorSpec) -> bytearray:
    data = bytearray(spec.stop - spec.start)
    if file.readinto(data) != len(data):
        raise AdapterInvalid(spec.name, "is truncated")
    return data


def _tensor(data: bytearray, spec: TensorSpec) -> Tensor:
    if not data:
        return torch.empty(spec.shape, dtype=_DTYPES[spec.dtype])
    return torch.frombuffer(data, dtype=_DTYPES[spec.dtype]).view(spec.shape)
