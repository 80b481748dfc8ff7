"""Modules that are no linear layers and no embeddings, wrapped for rows with other parameters.

Knows no files and no requests; which rows belong to which slot is told by the step.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weft.adapters.module_tables import ModuleTables
from weft.adapters.operations import Operation, Override
from weft.adapters.step_state import StepState, check_rows


@dataclass(frozen=True)
class RowLayout:
    """Which dimension of a module's arguments, and of its results, counts the step's rows.

    All arguments are tensors and passed by position; `results` has one entry where the module
    returns one tensor, or as many as the tuple that it returns.
    """

    arguments: tuple[int, ...]
    results: tuple[int, ...]


class Overridable:
    """A module whose rows get the parameters that their slots override.

    The module stays where it is; its forward is replaced for as long as a slot changes it, so
    that it costs nothing until then.

    tables: what slots do to it, by the name of the module or of a part that is changed apart
    """

    def __init__(
        self,
        name: str,
        base: nn.Module,
        layout: RowLayout,
        state: StepState,
        arena: Tensor,
        slots: int,
    ) -> None:
        own = ModuleTables(base, arena, slots, in_use=self._attach)
        self.tables: dict[str, ModuleTables] = {name: own}
        self.base = base
        self.state = state
        self._forward = base.forward
        self._layout = layout
        self._overrides = own.table(Override)

    def forward(self, *args: Tensor) -> Any:
        """As the base computes it, but for the rows of slots that change it."""
        segments = self.state.segments
        if not self._overrides.any_in(segments.slots):
            return self.computed(*args)
        check_rows(args[0].shape[self._layout.arguments[0]], segments)
        (first, *others) = segments
        if not others and first.stop - first.start == segments.rows:
            return self.overridden(self._overrides[first.slot], first.slot, *args)
        result = self.computed(*args)
        results = result if isinstance(result, tuple) else (result,)
        for segment in segments:
            module = self._overrides.get(segment.slot)
            if module is None:
                continue
            rows = slice(segment.start, segment.stop)
            changed = self.overridden(
                module, segment.slot, *_narrowed(args, self._layout.arguments, rows)
            )
            changed = changed if isinstance(changed, tuple) else (changed,)
            for whole, part in zip(
                _narrowed(results, self._layout.results, rows), changed, strict=True
            ):
                whole.copy_(part)
        return result

    def computed(self, *args: Tensor) -> Any:
        """All rows with the base's parameters."""
        return self._forward(*args)

    def overridden(self, module: nn.Module, slot: int, *args: Tensor) -> Any:
        """Rows of one slot by its own `module`."""
        return module(*args)

    def _attach(self, kinds: Collection[type[Operation]]) -> None:
        """Told which operations slots have in one of the tables."""
        if any(tables.in_use for tables in self.tables.values()):
            self.base.__dict__["forward"] = self.forward
        else:
            self.base.__dict__.pop("forward", None)


def _narrowed(tensors: Sequence[Tensor], dims: Sequence[int], rows: slice) -> list[Tensor]:
    count = rows.stop - rows.start
    return [
        tensor.narrow(dim, rows.start, count) for tensor, dim in zip(tensors, dims, strict=True)
    ]
