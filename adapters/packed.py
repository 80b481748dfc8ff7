"""A plan in one host buffer, laid out as it will lie on the device. Knows no slots and no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from weft.adapters.errors import AdapterInvalid
from weft.adapters.plan import AdapterPlan
from weft.adapters.tensors import all_finite

ALIGNMENT = 16
"""Bytes at a multiple of which tensors begin, for kernels that read them in wide words."""


@dataclass(frozen=True)
class Packed:
    """A plan whose tensors are views of `buffer`, a 1-D tensor of the arena's dtype.

    `sizes` are the tensors' bytes, padding included, in the plan's order; in the buffer they
    follow each other without gaps. A tensor of another dtype lies there as its own bytes.
    """

    plan: AdapterPlan
    buffer: Tensor
    sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on the host, and on the device."""
        return self.buffer.numel() * self.buffer.element_size()


def pack(plan: AdapterPlan, dtype: torch.dtype, align: int, *, pin_memory: bool) -> Packed:
    """Converts a plan's tensors to `dtype`, each starting at a multiple of `align` bytes.

    Raises AdapterInvalid where a value is finite in the file but not in `dtype`.
    """
    sources = list(plan.stored(dtype))
    sizes = tuple(aligned(t.numel() * stored.itemsize, align) for _, t, stored in sources)
    buffer = torch.zeros(sum(sizes) // dtype.itemsize, dtype=dtype, pin_memory=pin_memory)
    data = buffer.view(torch.uint8)
    views: list[Tensor] = []
    for (_, tensor, stored), start in zip(sources, accumulate(sizes, initial=0), strict=False):
        view = typed_view(data, start, tensor.shape, stored)
        view.copy_(tensor)
        views.append(view)
    _check_finite([module for module, *_ in sources], views, buffer)
    return Packed(plan.with_tensors(views), buffer, sizes)


def typed_view(data: Tensor, start: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What lies in `data`, 1-D bytes, from byte `start` on, as a tensor of `shape` and `dtype`."""
    count = torch.Size(shape).numel() * dtype.itemsize
    return data[start : start + count].view(dtype).view(shape)


def _check_finite(modules: Sequence[str], views: Sequence[Tensor], buffer: Tensor) -> None:
    """One look at the buffer tells of all tensors of its own dtype where each value is finite."""
    fine = all_finite(buffer)
    for module, view in zip(modules, views, strict=True):
        seen = fine and view.dtype == buffer.dtype
        if not seen and not all_finite(view):
            raise AdapterInvalid(module, f"has values that {view.dtype} cannot hold")


def aligned(size: int, align: int = ALIGNMENT) -> int:
    """The first multiple of `align` that is not below `size`."""
    return size + -size % align
