"""The prompt attention verb in plain torch, computed in the dtype of the keys."""

import torch
from torch import Tensor

from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def attend_prompt_add_(
    y: Tensor, q: Tensor, table: SlotTable[tuple[Tensor, Tensor]], segments: Segments
) -> None:
    """See `weft.kernels.prompt_attention.attend_prompt_add_`."""
    for rows, prompt in table.rows(segments):
        groups = q.shape[1] // prompt[0].shape[1]
        keys, values = (part.repeat_interleave(groups, dim=1) for part in prompt)
        scores = torch.einsum("qhd,khd->hqk", q[rows].to(keys.dtype), keys) * q.shape[2] ** -0.5
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
        y[rows].add_(torch.einsum("hqk,khd->qhd", weights, values).flatten(1))
