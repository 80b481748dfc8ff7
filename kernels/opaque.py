"""What a compiled model calls without looking inside: functions of rows, as torch operators.

torch.compile passes operators tensors and numbers only, so that objects are passed as numbers.
"""

from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

LIBRARY: Any = torch.library.Library("weft", "DEF")  # type: ignore[no-untyped-call]
"""The namespace of weft's operators."""

_NUMBERS = count()
_OBJECTS: WeakValueDictionary[int, Any] = WeakValueDictionary()


def number_of(thing: Any) -> int:
    """A new number by which `numbered` finds the object, for as long as somebody else holds it."""
    number = next(_NUMBERS)
    _OBJECTS[number] = thing
    return number


def numbered(number: int) -> Any:
    """The object of this number."""
    return _OBJECTS[number]


class RowOperator:
    """A function of rows, [..., features] or ids [...], that gives new ones, [..., width].

    dtype: of what it gives; None: the rows' own
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype | None = None
    ) -> None:
        self.function = function
        self._width = width
        self._dtype = dtype
        self._number = number_of(self)

    def __call__(self, x: Tensor) -> Tensor:
        """As a compiled model calls it."""
        y: Tensor = torch.ops.weft.map_rows(x, self._number, self._width, self._dtype or x.dtype)
        return y


def _map_rows(x: Tensor, number: int, width: int, dtype: torch.dtype) -> Tensor:
    y: Tensor = numbered(number).function(x)
    return y.contiguous()


def _map_no_rows(x: Tensor, number: int, width: int, dtype: torch.dtype) -> Tensor:
    sizes = x.shape[:-1] if x.is_floating_point() else x.shape
    return x.new_empty((*sizes, width), dtype=dtype)


LIBRARY.define("map_rows(Tensor x, int number, int width, ScalarType dtype) -> Tensor")
LIBRARY.impl("map_rows", _map_rows, "CompositeExplicitAutograd")
torch.library.register_fake("weft::map_rows", _map_no_rows, lib=LIBRARY)
