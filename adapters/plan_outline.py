"""A packed plan described without its values, as it crosses to another process beside its buffer.

What comes back is believed only as far as it fits the buffer: shapes, dtypes, kinds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import accumulate
from operator import mul
from typing import Self

import msgspec
import torch
from torch import Tensor

from weft.adapters.operations import Operation
from weft.adapters.packed import Packed
from weft.adapters.plan import AdapterPlan

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.uint8,
        torch.bool,
    )
}


class TensorOutline(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor of the buffer begins, in bytes, and what it is."""

    start: int
    shape: tuple[int, ...]
    dtype: str


Value = TensorOutline | dict[str, TensorOutline] | str
"""A field of an operation."""


class OperationOutline(msgspec.Struct, frozen=True, array_like=True):
    """An operation's kind and fields, in order."""

    kind: str
    values: tuple[Value, ...]


class PlanOutline(msgspec.Struct, frozen=True, kw_only=True):
    """A plan and how its tensors lie in a buffer of `nbytes`; see Packed and AdapterPlan."""

    digest: str
    method: str
    ops: dict[str, tuple[OperationOutline, ...]]
    invocation: tuple[int, ...]
    sizes: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, packed: Packed) -> Self:
        """What is to be said of a packed plan."""
        plan, start = packed.plan, packed.buffer.data_ptr()
        return cls(
            digest=plan.digest,
            method=plan.method,
            ops={
                module: tuple(
                    OperationOutline(type(op).__name__, tuple(_described(op, start))) for op in ops
                )
                for module, ops in plan.ops.items()
            },
            invocation=plan.invocation,
            sizes=packed.sizes,
            nbytes=packed.nbytes,
        )

    def packed(self, buffer: Tensor) -> Packed:
        """The plan with tensors in `buffer`, 1-D of the arena's dtype.

        Raises ValueError where the outline does not describe a plan that lies in it.
        """
        tensors = OutlinedTensors(buffer.view(torch.uint8))
        kinds = {kind.__name__: kind for kind in Operation.__subclasses__()}
        try:
            ops = {
                module: tuple(
                    kinds[op.kind](*(_restored(value, tensors) for value in op.values))
                    for op in ops
                )
                for module, ops in self.ops.items()
            }
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"no plan: {error}") from error
        if sum(self.sizes) != buffer.nbytes:
            raise ValueError("no plan: its sizes are not those of its buffer")
        plan = AdapterPlan(self.digest, self.method, ops, self.invocation)
        return Packed(plan, buffer, self.sizes)


def tensor_outline(tensor: Tensor, start: int = 0) -> TensorOutline:
    """Of a contiguous tensor; `start`: address of the buffer that it lies in, or 0 for its own."""
    offset = tensor.data_ptr() - start if start and tensor.numel() else 0
    return TensorOutline(offset, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


class OutlinedTensors:
    """The tensors in `data`, 1-D bytes that begin their storage.

    Each is made by one call of torch: in each it lets go of the interpreter, and to get that back
    from a thread that computes may take long.
    """

    def __init__(self, data: Tensor) -> None:
        self._data = data
        self._views: dict[torch.dtype, Tensor] = {}

    def get(self, outline: TensorOutline) -> Tensor:
        """One of them; raises KeyError, RuntimeError or ValueError where it is not in there."""
        dtype = _DTYPES[outline.dtype]
        if dtype not in self._views:
            self._views[dtype] = self._data.view(dtype)
        start, rest = divmod(outline.start, dtype.itemsize)
        if rest:
            raise ValueError("no plan: a tensor between two places")
        strides = list(accumulate(reversed(outline.shape[1:]), mul, initial=1))[::-1]
        return self._views[dtype].as_strided(outline.shape, strides[: len(outline.shape)], start)


def _described(op: Operation, start: int) -> Iterator[Value]:
    for field in fields(op):
        value = getattr(op, field.name)
        if isinstance(value, Tensor):
            yield tensor_outline(value, start)
        elif isinstance(value, Mapping):
            yield {name: tensor_outline(tensor, start) for name, tensor in value.items()}
        else:
            yield value


def _restored(value: Value, tensors: OutlinedTensors) -> Tensor | dict[str, Tensor] | str:
    if isinstance(value, TensorOutline):
        return tensors.get(value)
    if isinstance(value, dict):
        return {name: tensors.get(tensor) for name, tensor in value.items()}
    return value
