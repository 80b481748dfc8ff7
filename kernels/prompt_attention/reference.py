"""The prompt attention verb in plain torch, computed in the dtype of the keys."""

import torch
from torch import Tensor

from weft.kernels.batched import stacked
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def attend_prompt_add_(
    y: Tensor, q: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments
) -> None:
    """See `weft.kernels.prompt_attention.attend_prompt_add_`."""
    for rows, prompt in stacked(table, segments):
        # [..., kv_heads, count, dim], for each row or for all
        keys, values = (part.transpose(-3, -2) for part in prompt)
        kv_heads, dim = keys.shape[-3], keys.shape[-1]
        queries = q[rows].to(keys.dtype).view(-1, kv_heads, q.shape[1] // kv_heads, dim)
        scores = queries @ keys.mT * dim**-0.5
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
        y[rows].add_((weights @ values).flatten(1))
