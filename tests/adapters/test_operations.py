import pytest
import torch
from torch import Tensor

from weft.adapters.operations import (
    Dense,
    InputRotation,
    InputScale,
    Kronecker,
    LowRank,
    Operation,
    OutputScale,
    OutputShift,
    Override,
    PairRotation,
    RowOverride,
    Sparse,
)

INDICES = torch.tensor([0, 2])
EFFECTIVE: dict[str, Operation] = {
    "InputRotation": InputRotation(torch.tensor([[[0.0, 1], [-1, 0]]])),
    "InputScale": InputScale(torch.tensor([1.0, 2])),
    "Override": Override({"weight": torch.ones(2), "bias": torch.zeros(2)}),
    "RowOverride": RowOverride(INDICES, torch.ones(2, 3)),
    "OutputScale": OutputScale(torch.tensor([1.0, 0])),
    "OutputShift": OutputShift(torch.tensor([0.0, 1e-3])),
    "LowRank": LowRank(torch.ones(1, 3), torch.ones(1, 2)),
    "Dense": Dense(torch.eye(2)),
    "Sparse": Sparse(INDICES.int(), INDICES.int(), torch.ones(2)),
    "Kronecker": Kronecker(torch.ones(1, 2), torch.ones(2, 1)),
    "PairRotation": PairRotation(torch.ones(1, 2), torch.ones(1, 2)),
}
WITHOUT_EFFECT: dict[str, Operation] = {
    "InputRotation": InputRotation(torch.eye(2)[None]),
    "InputScale": InputScale(torch.ones(2)),
    "OutputScale": OutputScale(torch.ones(2)),
    "OutputShift": OutputShift(torch.zeros(2)),
    "LowRank": LowRank(torch.ones(2, 3), torch.tensor([[1.0, 2], [-1, -2]])),
    "Dense": Dense(torch.zeros(2, 2)),
    "Sparse": Sparse(INDICES.int(), INDICES.int(), torch.zeros(2)),
    "Kronecker": Kronecker(torch.zeros(1, 2), torch.ones(2, 1)),
    "PairRotation": PairRotation(torch.ones(1, 2), torch.zeros(1, 2)),
}


@pytest.mark.parametrize("kind", EFFECTIVE)
def test_the_same_operation_with_other_tensors(kind: str) -> None:
    op = EFFECTIVE[kind]
    copies = [tensor.clone() for tensor in op.tensors]
    twin = op.with_tensors(copies)
    assert type(twin) is type(op)
    assert [id(tensor) for tensor in twin.tensors] == [id(tensor) for tensor in copies]
    assert all(map(torch.equal, op.tensors, twin.tensors))


@pytest.mark.parametrize("kind", EFFECTIVE)
def test_what_changes_something(kind: str) -> None:
    assert EFFECTIVE[kind].has_effect()


@pytest.mark.parametrize("kind", WITHOUT_EFFECT)
def test_what_changes_nothing(kind: str) -> None:
    assert not WITHOUT_EFFECT[kind].has_effect()


def stored(op: Operation) -> list[torch.dtype]:
    return [op.stored_dtype(tensor, torch.bfloat16) for tensor in op.tensors]


def test_dtypes_in_the_arena() -> None:
    assert stored(EFFECTIVE["LowRank"]) == [torch.bfloat16] * 2
    assert stored(EFFECTIVE["Sparse"]) == [torch.int32, torch.int32, torch.bfloat16]
    assert stored(EFFECTIVE["RowOverride"]) == [torch.int64, torch.bfloat16]
    assert stored(EFFECTIVE["Override"]) == [torch.float32] * 2


def test_parameters_keep_their_names() -> None:
    op = Override({"weight": torch.ones(2), "bias": torch.zeros(2)})
    others: list[Tensor] = [torch.full((2,), 3.0), torch.full((2,), 4.0)]
    assert op.with_tensors(others).parameters == {"weight": others[0], "bias": others[1]}
