from collections.abc import Collection

import pytest
import torch
from torch import nn

from weft.adapters.module_tables import ModuleTables, twin
from weft.adapters.operations import (
    InputScale,
    LowRank,
    Operation,
    OutputScale,
    OutputShift,
    Override,
    RowOverride,
)
from weft.kernels.segments import Segments

ARENA = torch.arange(256.0)


def pair(offset: int = 0) -> LowRank:
    return LowRank(
        ARENA[offset : offset + 8].view(2, 4), ARENA[offset + 8 : offset + 20].view(2, 6)
    )


def linear() -> ModuleTables:
    return ModuleTables(nn.Linear(4, 6), ARENA, 4)


def kinds(tables: ModuleTables) -> tuple[int, int]:
    return len(tables.inputs), len(tables.outputs)


def test_only_tables_in_use_are_looked_at() -> None:
    tables = linear()
    assert kinds(tables) == (0, 0)
    tables.set(0, [pair()])
    tables.set(2, [OutputShift(torch.ones(6)), InputScale(torch.ones(4))])
    tables.set(3, [pair(32), OutputScale(torch.ones(6))])
    assert kinds(tables) == (1, 3)
    tables.clear(2)
    assert kinds(tables) == (0, 2)
    tables.set(3, [OutputScale(torch.ones(6))])
    tables.clear(0)
    assert kinds(tables) == (0, 1)
    assert tables.any_in([1, 3])
    assert not tables.any_in([0, 1, 2])


def test_a_step_is_told_what_its_slots_do() -> None:
    tables, step = linear(), Segments.from_slots([0, 2])
    assert tables.active(step) is None
    tables.set(2, [pair(), InputScale(torch.ones(4))])
    tables.set(3, [OutputShift(torch.ones(6))])
    active = tables.active(step)
    assert active is not None
    assert [table for _, table in active.inputs] == [tables.table(InputScale)]
    assert [table for _, table in active.outputs] == [tables.low_rank]
    assert tables.active(step) is active
    tables.set(0, [OutputShift(torch.ones(6))])
    active = tables.active(step)
    assert active is not None
    assert [table for _, table in active.outputs] == [tables.table(OutputShift), tables.low_rank]
    tables.clear(0)
    tables.clear(2)
    assert tables.active(step) is None


def test_outputs_are_changed_in_the_order_of_the_stages() -> None:
    tables = linear()
    tables.set(1, [pair(), OutputShift(torch.ones(6)), OutputScale(torch.ones(6))])
    shift, scale = tables.table(OutputShift), tables.table(OutputScale)
    assert [table for _, table in tables.outputs] == [scale, shift, tables.low_rank]


def test_a_low_rank_pair_is_found_in_the_arena() -> None:
    tables = linear()
    tables.set(1, [pair(32)])
    assert tables.low_rank is not None
    assert tables.low_rank.offsets_a.tolist() == [0, 32, 0, 0]
    assert tables.low_rank.offsets_b.tolist() == [0, 40, 0, 0]
    found = tables.low_rank.pair(1)
    assert found is not None
    assert torch.equal(found[1], pair(32).b)


ROWS = RowOverride(torch.tensor([1]), torch.ones(1, 4))
OVERRIDE = Override({"weight": torch.ones(4)})


@pytest.mark.parametrize(
    ("module", "op", "accepted"),
    [
        (nn.Linear(4, 6), pair(), True),
        (nn.Embedding(4, 6), pair(), True),
        (nn.Embedding(4, 6), ROWS, True),
        (nn.Embedding(4, 6), InputScale(torch.ones(4)), False),
        (nn.LayerNorm(4), OVERRIDE, True),
        (nn.LayerNorm(4), pair(), False),
    ],
)
def test_what_a_module_can_take(module: nn.Module, op: Operation, accepted: bool) -> None:
    assert ModuleTables(module, ARENA, 1).accepts(op) == accepted


def test_users_come_and_go() -> None:
    told: list[Collection[type[Operation]]] = []
    tables = ModuleTables(nn.LayerNorm(4), ARENA, 4, in_use=told.append)
    tables.set(0, [OVERRIDE])
    tables.set(1, [OVERRIDE])
    tables.clear(0)
    tables.clear(1)
    tables.clear(1)
    assert told == [{Override}, set()]


def test_a_twin_has_its_own_parameters_only() -> None:
    module = nn.LayerNorm(4)
    other = twin(module, {"bias": torch.ones(4)})
    x = torch.rand(2, 4)
    assert torch.equal(other(x), module(x) + 1)
    assert not module.bias.any()
    assert other.weight is module.weight
