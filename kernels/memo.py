"""What kernels derive from a step's description once and share between layers. Knows no tensors."""

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, Self, TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Memo:
    """Base of the frozen values that describe one step."""

    @cached_property
    def _derived(self) -> dict[Hashable, Any]:
        return {}

    def once(self, make: Callable[[Self, *Arguments], Result], *arguments: *Arguments) -> Result:
        """`make(self, *arguments)`, computed at the first call and kept as long as this value.

        The arguments must be hashable.
        """
        key = (make, arguments)
        try:
            result: Result = self._derived[key]
        except KeyError:
            result = self._derived[key] = make(self, *arguments)
        return result
