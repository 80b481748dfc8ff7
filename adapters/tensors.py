"""A checkpoint's tensors in host memory, each value checked. Knows no method and no base."""

import math
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from weft.adapters.checkpoint import Checkpoint, start_digest
from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME, TensorSpec

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
    """All tensors of the file by the names it gives them, contiguous, in the file's dtypes.

    Raises AdapterInvalid where a value is not finite, or the file is no longer the one that the
    checkpoint's digest names.
    """
    digest = start_digest(checkpoint.config)
    tensors: dict[str, Tensor] = {}
    with _open(checkpoint.weights) as file:
        digest.update(file.read(checkpoint.header.data_start))
        for spec in checkpoint.header.tensors.values():
            data = _read(file, spec)
            digest.update(data)
            tensors[spec.name] = _tensor(data, spec)
    if digest.hexdigest() != checkpoint.digest:
        raise AdapterInvalid(WEIGHTS_NAME, "changed after it was checked")
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise AdapterInvalid(name, "holds NaN or infinity")
    return tensors


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; a tensor's largest magnitude tells, in one fast pass."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return math.isfinite(tensor.abs().max().item())


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
