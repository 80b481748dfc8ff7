"""The bottleneck verb in plain torch, computed in the dtype of the networks."""

from torch import Tensor
from torch.nn.functional import linear

from weft.kernels.bottleneck.network import ACTIVATIONS, Network
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def bottleneck_add_(
    y: Tensor, residual: Tensor, table: SlotTable[Network], segments: Segments
) -> None:
    """See `weft.kernels.bottleneck.bottleneck_add_`."""
    for rows, network in table.rows(segments):
        x = _tapped(y[rows], residual[rows], network)
        hidden = ACTIVATIONS[network.activation](linear(x, network.down, network.down_bias))
        y[rows].add_(linear(hidden, network.up, network.up_bias))


def _tapped(y: Tensor, residual: Tensor, network: Network) -> Tensor:
    dtype = network.down.dtype
    match network.tap:
        case "output":
            return y.to(dtype)
        case "residual":
            return residual.to(dtype)
        case "sum":
            return y.to(dtype) + residual.to(dtype)
