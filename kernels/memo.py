"""What kernels derive from a step's description once and share between layers. Knows no tensors."""

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Memo:
    """Base of the frozen values that describe one step."""

    @cached_property
    def _derived(self) -> dict[Hashable, Any]:
        return {}

    def once(self, make: Callable[Concatenate[Self, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`make(self, *args)`, computed at the first call and kept as long as this value.

        Arguments must be hashable and positional.
        """
        key = (make, args)
        try:
            result: R = self._derived[key]
        except KeyError:
            result = self._derived[key] = make(self, *args, **kwargs)
        return result
