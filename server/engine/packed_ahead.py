"""Packs a base's weights from its files while the engine that will serve it still imports.

There is no model yet, so what is packed is a guess at what its linear layers hold. A layer takes
what was packed of the values that it has; what no layer takes is dropped.
"""

import re
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from safetensors import safe_open
from torch import Tensor

from weft.server.engine import hardware
from weft.server.engine.half_weight import HalfWeight
from weft.server.engine.loader.samples import sampled
from weft.server.engine.widening import SMALLEST, widened_blocks

_TIMES_MEMORY = 3
_HALVES = (torch.bfloat16, torch.float16)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_Key = tuple[torch.Size, bytes]


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight [out, in] in the 16 bits of its file, and its bias in float32."""

    values: Tensor
    bias: Tensor | None

    @property
    def key(self) -> _Key:
        """Where it is looked for."""
        return self.values.shape, sampled(self.values)

    def is_same(self, other: "Weight") -> bool:
        """Whether both compute the same products."""
        biases = [one.bias for one in (self, other) if one.bias is not None]
        return len(biases) != 1 and _have_same_bits(self.values, other.values, *biases)


class PackedAhead:
    """What was packed before its model was there."""

    def __init__(self, weights: Iterable[Weight] = ()) -> None:
        """weights: to be packed in this order; see `likely_weights`"""
        self._weights = {weight.key: weight for weight in weights}
        self._packed: dict[_Key, Future[HalfWeight]] = {}
        self._own: ThreadPoolExecutor | None = None
        self._is_paused = Event()

    def begin(self) -> None:
        """Packs in a thread of its own, until `pause`."""
        if self._weights:
            self._own = ThreadPoolExecutor(1, "ahead", torch.set_num_threads, (1,))
            self._submit(self._own)

    def pause(self) -> None:
        """Ends the thread; what it has not finished is left to `go_on`."""
        if self._own is not None:
            self._is_paused.set()
            self._own.shutdown(wait=True, cancel_futures=True)
            self._own = None

    def go_on(self, threads: Executor) -> None:
        """Packs what is left in `threads`."""
        self._is_paused.clear()
        self._submit(threads)

    def take(self, weight: Weight) -> HalfWeight | None:
        """What was or is being packed of it; None: nothing, and nobody else will pack it."""
        key = weight.key
        packed = self._packed.pop(key, None)
        if packed is None or packed.cancel() or packed.exception() is not None:
            return None
        return packed.result() if self._weights[key].is_same(weight) else None

    def drop(self) -> None:
        """Packs no more, and gives back the memory of what nobody took."""
        for packed in self._packed.values():
            packed.cancel()
        self._packed.clear()
        self._weights.clear()

    def _submit(self, threads: Executor) -> None:
        for key, weight in self._weights.items():
            packed = self._packed.get(key)
            if packed is None or packed.cancelled() or packed.exception() is not None:
                self._packed[key] = threads.submit(self._pack, weight)

    def _pack(self, weight: Weight) -> HalfWeight:
        return HalfWeight(weight.values, self._blocks(weight.values), weight.bias)

    def _blocks(self, values: Tensor) -> Iterable[Tensor]:
        for _, block in widened_blocks(values, torch.float32):
            if self._is_paused.is_set():
                raise RuntimeError("paused")
            yield block


def likely_weights(folder: Path, device: str, dtype: str) -> list[Weight]:
    """The weights in a folder's files that linear layers would have packed, as far as names tell.

    device, dtype: as they are asked for   Empty where the layers would not be packed in 16 bits,
    and where memory is short. What is numbered once is a layer's, what is numbered twice an
    expert's; a table without a number is the output head's if it is the only one.
    """
    try:
        tensors = _tensors(folder)
        parameters = sum(values.numel() for values in tensors.values())
        chosen = hardware.choose_dtype(dtype, torch.device("cpu"), parameters)
    except Exception:  # noqa: BLE001 - whatever it is, loading the model tells of it
        return []
    is_on_cpu = device == "cpu" or (device == "auto" and not torch.version.cuda)
    dtypes = {values.dtype for values in tensors.values()}
    if not is_on_cpu or chosen != torch.float32 or len(dtypes) != 1 or not dtypes <= {*_HALVES}:
        return []
    large = [name for name, values in tensors.items() if _is_large(values)]
    tables = [name for name in large if not _NUMBER.findall(name)]
    names = [name for name in large if len(_NUMBER.findall(name)) == 1]
    names += tables if len(tables) == 1 else []
    needed = _TIMES_MEMORY * sum(tensors[name].nbytes for name in names)
    if needed > hardware.free_memory(torch.device("cpu")):
        return []
    return [Weight(tensors[name], _bias(name, tensors)) for name in names]


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Those of all files by name, left where they are."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def _is_large(values: Tensor) -> bool:
    return values.dim() == 2 and values.numel() >= SMALLEST


def _bias(name: str, tensors: dict[str, Tensor]) -> Tensor | None:
    bias = tensors.get(f"{name.removesuffix('.weight')}.bias")
    return None if bias is None else bias.float()


def _have_same_bits(values: Tensor, others: Tensor, *biases: Tensor) -> bool:
    has_same_bias = len(biases) < 2 or torch.equal(*biases)
    same_kind = values.dtype == others.dtype and values.shape == others.shape
    bits = torch.int16
    return has_same_bias and same_kind and torch.equal(values.view(bits), others.view(bits))
