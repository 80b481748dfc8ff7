"""Rows of several slots and of the base, and random entries for the slots' tables."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable
from weft.kernels.testing import assert_close

SLOTS = (-1, -1, 0, 0, 0, 1, 2, 2, 4)
"""Of each row; slot 2 has no entry."""
SEGMENTS = Segments.from_slots(list(SLOTS))
WITH_ENTRY = (0, 1, 4)

Row = Callable[[Tensor, Tensor, tuple[Tensor, ...]], Tensor]
"""A verb's formula for one row: what becomes of y, given x and the slot's entry, in float64."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table_of(make: Callable[[int], Any]) -> SlotTable[Any]:
    """A table whose entries are `make(slot)`."""
    table: SlotTable[Any] = SlotTable()
    for slot in WITH_ENTRY:
        table.set(slot, make(slot))
    return table


def assert_rows(
    verb: Callable[[Tensor, Tensor, SlotTable[Any], Segments], None],
    row: Row,
    table: SlotTable[Any],
    y: Tensor,
    x: Tensor,
) -> None:
    """Each row with an entry is the formula's; every other one keeps its bits, NaN beside or not.

    y: [rows, features] and x: [rows, ...]; the first base row of both is made NaN.
    """
    y[0] = torch.nan
    if x.is_floating_point():
        x[0] = torch.nan
    before = y.clone()
    verb(y, x, table, SEGMENTS)
    for index, slot in enumerate(SLOTS):
        entry: Sequence[Tensor] | None = table.get(slot)
        if entry is None:
            assert torch.equal(y[index].nan_to_num(7), before[index].nan_to_num(7))
        else:
            wide = tuple(t.double() if t.is_floating_point() else t for t in entry)
            arguments = before[index].double(), x[index].double(), wide
            assert_close(y[index], row(*arguments), y.dtype)
