"""The bottleneck verb in plain torch, computed in the dtype of the networks."""

import torch
from torch import Tensor

from weft.kernels.batched import widened
from weft.kernels.bottleneck.network import ACTIVATIONS, Network
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def bottleneck_add_(
    y: Tensor, residual: Tensor, table: SlotTable[Network], segments: Segments
) -> None:
    """See `weft.kernels.bottleneck.bottleneck_add_`."""
    for run, wide in widened(y, table, segments):
        beside = run.split(residual[run.rows])
        for slot, part, other in zip(run.slots, run.split(wide), beside, strict=True):
            network = table[slot]
            x = _tapped(part, other, network)
            hidden = torch.addmm(network.down_bias, x, network.down.T)
            added = torch.addmm(
                network.up_bias, ACTIVATIONS[network.activation](hidden), network.up.T
            )
            part.add_(added)


def _tapped(y: Tensor, residual: Tensor, network: Network) -> Tensor:
    match network.tap:
        case "output":
            return y
        case "residual":
            return residual.to(y.dtype)
        case "sum":
            return y + residual
