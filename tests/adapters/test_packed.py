import pytest
import torch
from plans import plan, plan_bytes

from weft.adapters.errors import AdapterInvalid
from weft.adapters.operations import LowRank
from weft.adapters.packed import pack
from weft.adapters.plan import AdapterPlan


def test_tensors_are_views_of_one_buffer_in_the_order_of_the_operations() -> None:
    packed = pack(plan("a"), torch.float32, 16, pin_memory=False)
    tensors = [t for _, op in packed.plan for t in op.tensors]
    assert packed.nbytes == sum(packed.sizes) == plan_bytes()
    starts = [t.data_ptr() - packed.buffer.data_ptr() for t in tensors]
    assert starts == [sum(packed.sizes[:i]) for i in range(len(starts))]
    for found, op in zip(packed.plan, plan("a"), strict=True):
        assert found[0] == op[0]
        assert all(map(torch.equal, found[1].tensors, op[1].tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_odd_shapes_are_padded_to_the_alignment(dtype: torch.dtype) -> None:
    odd = AdapterPlan("odd", "lora", {"m": (LowRank(torch.ones(3, 5), torch.ones(3, 7)),)})
    packed = pack(odd, dtype, 16, pin_memory=False)
    assert all(size % 16 == 0 for size in packed.sizes)
    assert packed.buffer.dtype == dtype
    assert packed.buffer.sum() == 3 * (5 + 7)


def test_a_value_that_the_arena_cannot_hold_is_refused_by_module() -> None:
    pair = LowRank(torch.ones(1, 2), torch.full((1, 2), 1e6))
    large = AdapterPlan("large", "lora", {"m": (pair,)})
    with pytest.raises(AdapterInvalid, match=r"m: has values that torch\.float16 cannot hold"):
        pack(large, torch.float16, 16, pin_memory=False)
