"""Modules that are no linear layers and no embeddings, wrapped for rows with other parameters.

Knows no files and no requests; which rows belong to which slot is told by the step.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from weft.adapters.module_tables import ModuleTables
from weft.adapters.operations import Operation, Override
from weft.adapters.row_parameters import by_row, takes_rows
from weft.adapters.step_state import StepState, check_rows
from weft.kernels.runs import Run
from weft.kernels.segments import Segments


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

    The module stays where it is; its forward is replaced in steps in which a slot changes it, so
    that others cost nothing.

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
        own = ModuleTables(base, arena, slots, in_use=self._follow)
        self.tables: dict[str, ModuleTables] = {name: own}
        self.base = base
        self.state = state
        self._forward = base.forward
        self._attached = self.forward
        self._layout = layout
        self._overrides = own.table(Override)

    def forward(self, *args: Tensor) -> Any:
        """As the base computes it, but for the rows of slots that change it."""
        segments = self.state.segments
        if not self._overrides.any_in(segments.slots):
            return self.computed(*args)
        check_rows(args[0].shape[self._layout.arguments[0]], segments)
        runs = list(self._runs(segments))
        if runs[0].stop - runs[0].start == segments.rows:
            return self._changed(runs[0], *args)
        result = self.computed(*args)
        results = result if isinstance(result, tuple) else (result,)
        for run in runs:
            rows = run.rows
            changed = self._changed(run, *_narrowed(args, self._layout.arguments, rows))
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

    def _runs(self, segments: Segments) -> Iterator[Run]:
        """The rows that are changed, those together that one call can compute."""
        for run in self._overrides.runs(segments):
            if len(run.slots) == 1 or self._takes_rows:
                yield run
            else:
                yield from run.apart()

    def _changed(self, run: Run, *args: Tensor) -> Any:
        """The rows of a run, each by its slot's own module."""
        if len(run.slots) == 1:
            (slot,) = run.slots
            return self.overridden(self._overrides[slot], slot, *args)
        modules = [self._overrides[slot] for slot in run.row_slots]
        return by_row(modules, args[0].dim() - self._layout.arguments[0])(*args)

    @cached_property
    def _takes_rows(self) -> bool:
        """Whether rows of several slots can be computed by one call."""
        dims = self._layout.arguments
        return len(dims) == len(self._layout.results) == 1 and takes_rows(self.base, dims[0])

    def _follow(self, kinds: Collection[type[Operation]]) -> None:
        """Told which operations slots have in one of the tables."""
        in_use = any(tables.in_use for tables in self.tables.values())
        self.state.follow(self._attach, follows=in_use)

    def _attach(self, slots: frozenset[int]) -> None:
        """Told which slots the next step uses."""
        if any(tables.any_in(slots) for tables in self.tables.values()):
            self.base.__dict__["forward"] = self._attached
        else:
            self.base.__dict__.pop("forward", None)


def _narrowed(tensors: Sequence[Tensor], dims: Sequence[int], rows: slice) -> list[Tensor]:
    count = rows.stop - rows.start
    return [
        tensor.narrow(dim, rows.start, count) for tensor, dim in zip(tensors, dims, strict=True)
    ]
