"""Layers of experts: each row of a step is computed by the few that a router chose for it.

Knows no adapters: what those add to the same rows is `weft.kernels.low_rank`, by the segments
that a `Routing` tells.
"""

from torch import Tensor
from torch.nn.functional import grouped_mm

from weft.kernels.experts.routing import Routing

__all__ = ["Routing", "expert_linear"]


def expert_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, *, transposed: bool
) -> Tensor:
    """`y[p] = W[e] x[p] + b[e]` for each pair p, with the weight of its expert e.

    x: [pairs, in_features]   weight: [experts, out_features, in_features], or if `transposed`
    [experts, in_features, out_features]; its rows must be multiples of 16 bytes
    bias: [experts, out_features]   returns [pairs, out_features]
    """
    by_input = weight if transposed else weight.mT
    y: Tensor = grouped_mm(x, by_input, offs=routing.ends)
    return y if bias is None else y + bias[routing.experts]
