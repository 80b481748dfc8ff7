"""Tensors in anonymous memory that one process fills and another one maps, and nobody changes."""

import fcntl
import mmap
import os
from typing import Any

import torch
from torch import Tensor

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def seal(tensor: Tensor) -> int:
    """A descriptor of memory with the bytes of a contiguous tensor on the host."""
    file = os.memfd_create("weft", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        values: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
        data = memoryview(values)
        while data:
            data = data[os.write(file, data) :]
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(file)
        raise
    return file


def unseal(file: int) -> Tensor:
    """The bytes, uint8 [count], as a private mapping; closes the descriptor.

    Raises ValueError where whoever made them could still take them away.
    """
    try:
        if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("memory that is not sealed")
        size = os.fstat(file).st_size
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        mapped = mmap.mmap(file, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        data = torch.frombuffer(mapped, dtype=torch.uint8)
        data[:: mmap.PAGESIZE].sum()  # maps the pages now, in a thread that nobody waits for
        return data
    finally:
        os.close(file)
