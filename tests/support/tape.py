"""What a CUDA graph does, on a CPU: notes all that a step asks of the device, and asks it again.

A replay runs the noted operations and Triton launches on the very same memory, and no Python of
the model. Memory that the step takes for itself holds NaN when it is taken, as whatever another
graph of the pool left there; memory that it found is not held, so that a replay fails where nobody
else does. What a capture forbids raises CaptureForbidden, but for values that Python reads past
torch's operations (`tolist`, `numpy`): `valueless.py` finds these.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from weft.kernels import attention, low_rank
from weft.kernels.attention import triton as attention_triton
from weft.kernels.attention import triton_decode, triton_prefill, triton_write
from weft.kernels.low_rank import triton as low_rank_triton

KERNELS = (
    (low_rank_triton, ("shrink", "look_up", "expand")),
    (triton_decode, ("attend_part", "combine_parts")),
    (triton_prefill, ("attend_tile",)),
    (triton_write, ("write_rows",)),
)
WAITS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::allclose",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
}
"""Operations that a GPU is waited for, because the host or a shape depends on values."""
FROM_HOST = {"aten::lift_fresh", "aten::lift", "aten::scalar_tensor"}
"""Tensors made of the host's values, which would be copied to a GPU from memory that may change."""
UNFILLED = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
}


class CaptureForbidden(RuntimeError):
    """A step did what cannot be captured."""


@dataclass(frozen=True)
class _Outer:
    """A tensor that the step found and did not make: a graph knows only where it lies."""

    storage: StorageWeakRef
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Outer":
        ref = StorageWeakRef(tensor.untyped_storage())
        return cls(ref, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    @property
    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise AssertionError(f"memory that a replay needs was given back: {self.size}")
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


@dataclass
class _Notes:
    """What a step asked for, in order, and the memory that it took for itself."""

    again: list[Callable[[], None]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    own: set[int] = field(default_factory=set)

    def add(self, name: str, again: Callable[[], None]) -> None:
        self.names.append(name)
        self.again.append(again)

    def kept(self, arguments: Any) -> Any:
        """The arguments, without holding what the step found."""
        return tree_map_only(Tensor, self._kept, arguments)

    def take(self, results: list[Tensor], found: set[int]) -> None:
        """Notes which memory of an operation's results is new; found: that of its arguments."""
        self.own.update(_places(results) - found)

    def _kept(self, tensor: Tensor) -> Tensor | _Outer:
        is_own = _place(tensor) in self.own or not tensor.numel()
        return tensor if is_own else _Outer.of(tensor)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _places(values: Any) -> set[int]:
    return {_place(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


def _given(arguments: Any) -> Any:
    """What `_Notes.kept` was given."""
    return tree_map_only(_Outer, lambda outer: outer.tensor, arguments)


@dataclass
class Tape:
    """A recorder of steps, as `DecodeGraphs.capture` takes it; use it in `tape_kernels`.

    captures: how many steps were captured   replays: how many replays there were
    """

    captures: int = 0
    replays: int = 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        step()
        notes = _Notes()
        _noting.append(notes)
        try:
            with _Operations(notes):
                step()
        finally:
            _noting.pop()
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            with torch.inference_mode():
                for again in notes.again:
                    again()

        return replay


_noting: list[_Notes] = []


@contextmanager
def tape_kernels() -> Iterator[None]:
    """Kernels are Triton's meanwhile, interpreted; tapes hear of their launches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_backend", lambda tensor: attention_triton)
        patch.setattr(low_rank, "_backend", lambda tensor: low_rank_triton)
        for module, names in KERNELS:
            for name in names:
                patch.setattr(module, name, _Heard(name, getattr(module, name)))
        yield


class _Heard:
    """A kernel whose launches are noted where a step is captured."""

    def __init__(self, name: str, kernel: Any) -> None:
        self._name = name
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            with _disable_current_modes():
                self._kernel[grid](*args, **constants)
            if _noting:
                kept = _noting[-1].kept(args)
                kernel = self._kernel[grid]
                _noting[-1].add(self._name, lambda: kernel(*_given(kept), **constants))

        return launch


class _Operations(TorchDispatchMode):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self._notes = notes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name, arguments = func._schema.name, (tuple(args), kwargs or {})
        if name in WAITS | FROM_HOST or _counts_a_mask(name, args):
            raise CaptureForbidden(f"{name} cannot be captured")
        kept = self._notes.kept(arguments)
        result = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._notes.take(results, _places(arguments))
        again = (
            partial(_spoil, results)
            if name in UNFILLED
            else partial(_repeat, func, kept, self._notes.kept(results))
        )
        self._notes.add(name, again)
        return result


def _counts_a_mask(name: str, args: Sequence[Any]) -> bool:
    """Whether rows are chosen by a mask: a GPU would have to count them first."""
    is_index = name.startswith(("aten::index", "aten::_index", "aten::_unsafe_index"))
    leaves = tree_leaves(args[1:2]) if is_index else []
    return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in leaves)


def _spoil(results: list[Tensor]) -> None:
    for tensor in results:
        tensor.fill_(torch.nan if tensor.is_floating_point() else -1)


def _repeat(func: Any, kept: Any, results: list[Any]) -> None:
    """Runs the operation again, with its results where they were."""
    args, kwargs = _given(kept)
    found = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
    for old, new in zip(_given(results), found, strict=True):
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)
