"""A plan in one host buffer, laid out as it will lie on the device. Knows no slots and no files."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weft.adapters.errors import AdapterInvalid
from weft.adapters.plan import AdapterPlan, LowRank


@dataclass(frozen=True)
class Packed:
    """A plan whose tensors are views of `buffer`, a 1-D tensor of the arena's dtype.

    `sizes` are the tensors' bytes, padding included, in the order of the plan's operations, `a`
    before `b`; in the buffer they follow each other without gaps.
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
    sizes = tuple(_padded(t.numel() * dtype.itemsize, align) for _, t in _tensors(plan))
    buffer = torch.zeros(sum(sizes) // dtype.itemsize, dtype=dtype, pin_memory=pin_memory)
    views: list[Tensor] = []
    start = 0
    for (module, tensor), size in zip(_tensors(plan), sizes, strict=True):
        view = buffer[start : start + tensor.numel()].view(tensor.shape)
        view.copy_(tensor)
        if not torch.isfinite(view).all():
            raise AdapterInvalid(module, f"has values that {dtype} cannot hold")
        views.append(view)
        start += size // dtype.itemsize
    pairs = zip(views[::2], views[1::2], strict=True)
    ops = {module: LowRank(a, b) for module, (a, b) in zip(plan.ops, pairs, strict=True)}
    return Packed(replace(plan, ops=ops), buffer, sizes)


def _tensors(plan: AdapterPlan) -> Iterator[tuple[str, Tensor]]:
    for module, op in plan.ops.items():
        yield module, op.a
        yield module, op.b


def _padded(size: int, align: int) -> int:
    return size + -size % align
