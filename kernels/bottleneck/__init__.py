"""Small networks beside a sublayer, for many adapters in one batch. Knows no requests or names."""

from torch import Tensor

from weft.kernels.bottleneck import reference
from weft.kernels.bottleneck.network import ACTIVATIONS, TAPS, Network, Tap
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

__all__ = ["ACTIVATIONS", "TAPS", "Network", "Tap", "bottleneck_add_"]


def bottleneck_add_(
    y: Tensor, residual: Tensor, table: SlotTable[Network], segments: Segments
) -> None:
    """`y[s] += act(x[s] downᵀ + down_bias) upᵀ + up_bias` for the rows s of each segment.

    The network is that of the segment's slot; its `tap` says what x is: y itself as it was before,
    the residual, or the sum of both.

    y: [rows, width], a sublayer's output, changed in place; rows of no segment keep their bits
    residual: [rows, width], what is added to the sublayer's output after it
    """
    reference.bottleneck_add_(y, residual, table, segments)
