"""The prompt attention verb: its formula, and that rows of others keep their bits."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from weft.kernels.prompt_attention import attend_prompt_add_
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable
from weft.kernels.testing import assert_close


def test_each_segment_attends_to_its_own_prompt() -> None:
    generator = torch.Generator().manual_seed(0)
    table: SlotTable[tuple[torch.Tensor, torch.Tensor]] = SlotTable()
    prompts = {}
    for slot, count in ((0, 5), (2, 1)):
        keys, values = torch.randn(2, count, 2, 8, generator=generator)
        prompts[slot] = keys, values
        table.set(slot, (keys, values))
    q = torch.randn(6, 4, 8, generator=generator)
    q[1] = torch.nan  # of a slot without a prompt
    y = torch.randn(6, 32, generator=generator)
    slots = [-1, 1, 0, 0, 2, -1]
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot in prompts:
            keys, values = (x.repeat_interleave(2, dim=1).transpose(0, 1) for x in prompts[slot])
            attended = scaled_dot_product_attention(q[row, :, None], keys, values)
            expected[row] += attended.flatten()
    before = y.clone()
    attend_prompt_add_(y, q, table, Segments.from_slots(slots))
    assert_close(y, expected, torch.float32)
    assert torch.equal(y[[0, 1, 5]], before[[0, 1, 5]])
