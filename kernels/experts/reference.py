"""A layer's maps, expert by expert, in plain torch: the definition of `expert_linear`."""

import torch
from torch import Tensor

from weft.kernels.experts.routing import Routing


def expert_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, *, transposed: bool
) -> Tensor:
    """See `weft.kernels.experts.expert_linear`."""
    by_input = weight if transposed else weight.mT
    y = torch.empty(len(x), by_input.shape[-1])
    for pair, expert in enumerate(routing.experts.tolist()):
        y[pair] = x[pair].float() @ by_input[expert].float()
        if bias is not None:
            y[pair] += bias[expert].float()
    return y.to(x.dtype)
