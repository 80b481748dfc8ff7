"""Attention to a few rows beside the sequence, for many adapters in one batch. Knows no names."""

from torch import Tensor

from weft.kernels.prompt_attention import reference
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

__all__ = ["Prompt", "attend_prompt_add_"]

Prompt = tuple[Tensor, Tensor]
"""Keys and values, `[count, kv_heads, dim]` each."""


def attend_prompt_add_(y: Tensor, q: Tensor, table: SlotTable[Prompt], segments: Segments) -> None:
    """`y[s] += softmax(q[s] keysᵀ / √dim) values` for the rows s of each segment, in each head.

    The softmax is over the slot's own keys alone, which have no positions.

    y: [rows, heads · dim], changed in place; rows of no segment keep their bits
    q: [rows, heads, dim], where kv_heads divides heads
    """
    reference.attend_prompt_add_(y, q, table, segments)
