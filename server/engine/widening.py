"""Weights of 16 bits, widened some rows at a time. Knows no models."""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

SMALLEST = 100_000
"""Values of a weight that is worth keeping in 16 bits, or packing."""
_BLOCK = 1 << 23  # values that are widened at a time: 32 MiB in float32
_TILE = 64  # rows: products of whole tiles come out as those of the whole weight


def widened_blocks(stored: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a weight [out, in], and their values in another dtype.

    What was widened is overwritten by what this thread widens next.
    """
    step = max(1, _BLOCK // stored.shape[1] // _TILE) * _TILE
    for start in range(0, stored.shape[0], step):
        rows = slice(start, start + step)
        yield rows, _own.widened(stored[rows], dtype)


class _Own(threading.local):
    """Memory that each thread has of its own, used again and again, so that it lies in caches."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    @torch.no_grad()
    def widened(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """`values` in another dtype, until the next call of this thread."""
        if self._memory.dtype != dtype or self._memory.numel() < values.numel():
            with torch.inference_mode(False):
                self._memory = torch.empty(values.numel(), dtype=dtype)
        return self._memory[: values.numel()].view(values.shape).copy_(values)


_own = _Own()
