from dataclasses import fields, is_dataclass

import msgspec
import pytest
import torch

from weft.adapters.operations import (
    AttendedPrompt,
    AttentionPrefix,
    Bottleneck,
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
    VirtualTokens,
)
from weft.adapters.packed import Packed, pack
from weft.adapters.plan import AdapterPlan
from weft.adapters.plan_outline import OperationOutline, PlanOutline, TensorOutline


def values(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape) + 1


OPERATIONS = (
    InputRotation(values(2, 3, 3)),
    InputScale(values(6)),
    Override({"weight": values(4).bfloat16(), "bias": values(4).bfloat16()}),
    RowOverride(torch.tensor([1, 5]), values(2, 4)),
    OutputScale(values(4)),
    OutputShift(values(4)),
    LowRank(values(3, 6), values(3, 4)),
    Dense(values(4, 6)),
    Sparse(torch.tensor([0, 1, 2, 2, 2], dtype=torch.int32), torch.tensor([1, 2]).int(), values(2)),
    Kronecker(values(2, 3), values(2, 2)),
    PairRotation(values(2, 2), values(2, 2)),
    Bottleneck(values(2, 4), values(2), values(4, 2), values(4), "relu", "residual"),
    AttendedPrompt(values(2, 1, 4), values(2, 1, 4)),
    VirtualTokens(values(3, 4)),
    AttentionPrefix(values(3, 1, 4), values(3, 1, 2)),
)


def packed(*operations: Operation, dtype: torch.dtype = torch.bfloat16) -> Packed:
    ops = {f"module.{at}": (op,) for at, op in enumerate(operations)}
    plan = AdapterPlan("ab" * 32, "lora", ops, invocation=(1, 2))
    return pack(plan, dtype, 16, pin_memory=False)


def crossed(source: Packed) -> Packed:
    wire = msgspec.msgpack.encode(PlanOutline.of(source))
    return msgspec.msgpack.decode(wire, type=PlanOutline).packed(source.buffer.clone())


def test_every_kind_crosses_as_it_is() -> None:
    assert {type(op) for op in OPERATIONS} == set(Operation.__subclasses__())
    source = packed(*OPERATIONS)
    other = crossed(source)
    assert (other.sizes, other.nbytes) == (source.sizes, source.nbytes)
    assert (other.plan.digest, other.plan.method) == (source.plan.digest, source.plan.method)
    assert other.plan.invocation == (1, 2)
    for (module, mine), (name, theirs) in zip(other.plan, source.plan, strict=True):
        assert (module, type(mine)) == (name, type(theirs))
        assert is_dataclass(mine)
        words = [f.name for f in fields(mine) if isinstance(getattr(mine, f.name), str)]
        assert [getattr(mine, w) for w in words] == [getattr(theirs, w) for w in words]
        for tensor, expected in zip(mine.tensors, theirs.tensors, strict=True):
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)
            assert tensor.untyped_storage().data_ptr() == other.buffer.untyped_storage().data_ptr()


def test_a_plan_without_values_crosses() -> None:
    empty = packed(Sparse(torch.zeros(5).int(), torch.empty(0).int(), torch.empty(0)))
    assert crossed(empty).sizes == empty.sizes


LIES = {
    "beyond the end": TensorOutline(1 << 40, (4,), "float32"),
    "too long": TensorOutline(0, (1 << 20,), "float32"),
    "before the start": TensorOutline(-4, (4,), "float32"),
    "a negative side": TensorOutline(0, (-4, 2), "float32"),
    "between two places": TensorOutline(1, (2,), "float32"),
    "no dtype": TensorOutline(0, (4,), "Tensor"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_is_not_in_the_buffer_is_refused(lie: TensorOutline) -> None:
    source = packed(OutputShift(values(4)))
    outline = PlanOutline.of(source)
    ops = {"m": (OperationOutline("OutputShift", (lie,)),)}
    with pytest.raises(ValueError, match="no plan"):
        msgspec.structs.replace(outline, ops=ops).packed(source.buffer)


@pytest.mark.parametrize(
    "op",
    [
        OperationOutline("AdapterPlan", ()),
        OperationOutline("OutputShift", ()),
        OperationOutline("OutputShift", (TensorOutline(0, (4,), "bfloat16"),) * 2),
    ],
    ids=["kind", "too few", "too many"],
)
def test_what_is_no_operation_is_refused(op: OperationOutline) -> None:
    source = packed(OutputShift(values(4)))
    with pytest.raises(ValueError, match="no plan"):
        msgspec.structs.replace(PlanOutline.of(source), ops={"m": (op,)}).packed(source.buffer)


def test_sizes_that_are_not_the_buffers_are_refused() -> None:
    source = packed(OutputShift(values(4)))
    with pytest.raises(ValueError, match="sizes"):
        msgspec.structs.replace(PlanOutline.of(source), sizes=(1 << 30,)).packed(source.buffer)
