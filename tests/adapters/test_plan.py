import pytest
import torch

from weft.adapters.operations import LowRank, OutputShift, Sparse
from weft.adapters.plan import AdapterPlan

PAIR = LowRank(torch.ones(2, 3), torch.ones(2, 4))
SHIFT = OutputShift(torch.ones(4))
SPARSE = Sparse(torch.zeros(5).int(), torch.zeros(1).int(), torch.ones(1))
PLAN = AdapterPlan("digest", "method", {"m": (PAIR, SHIFT), "n": (SPARSE,)})


def test_operations_by_kind() -> None:
    assert list(PLAN) == [("m", PAIR), ("m", SHIFT), ("n", SPARSE)]
    assert PLAN.of_kind(LowRank) == {"m": PAIR}
    assert PLAN.of_kind(Sparse) == {"n": SPARSE}


def test_bytes_in_an_arena() -> None:
    assert PLAN.nbytes(torch.float32) == 4 * (2 * 3 + 2 * 4 + 4 + 6 + 1)
    assert PLAN.nbytes(torch.bfloat16) == 2 * (2 * 3 + 2 * 4 + 4 + 1) + 4 * 6


def test_the_same_plan_with_other_tensors() -> None:
    tensors = [tensor.clone() for _, tensor, _ in PLAN.stored(torch.float32)]
    twin = PLAN.with_tensors(tensors)
    assert (twin.digest, twin.method) == ("digest", "method")
    assert [id(t) for _, op in twin for t in op.tensors] == [id(t) for t in tensors]


def test_one_operation_of_a_kind_in_a_module() -> None:
    with pytest.raises(ValueError, match="m has two operations of one kind"):
        AdapterPlan("digest", "method", {"m": (SHIFT, SHIFT)})
