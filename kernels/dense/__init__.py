"""Additions to a module's weight of full rank, for many adapters in one batch.

Knows no requests or names. Their memory and time are those of a whole layer for each adapter
(of its values that are not zero, of its Kronecker factors).
"""

from torch import Tensor

from weft.kernels.dense import reference
from weft.kernels.dense.compressed_rows import CompressedRows
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

__all__ = ["CompressedRows", "Factors", "Matrix", "dense_add_", "kronecker_add_", "sparse_add_"]

Matrix = tuple[Tensor]
"""`[out_features, in_features]`."""

Factors = tuple[Tensor, Tensor]
"""`[a, c]` and `[b, d]` with a · b = out_features and c · d = in_features."""


def dense_add_(y: Tensor, x: Tensor, table: SlotTable[Matrix], segments: Segments) -> None:
    """`y[s] += x[s] Dᵀ` for the rows s of each segment, with the matrix D of its slot.

    y: [rows, out_features], changed in place; rows of no segment keep their bits
    x: [rows, in_features]
    """
    reference.dense_add_(y, x, table, segments)


def sparse_add_(y: Tensor, x: Tensor, table: SlotTable[CompressedRows], segments: Segments) -> None:
    """`y[s] += x[s] Sᵀ` for the rows s of each segment, with the sparse matrix S of its slot.

    y: [rows, out_features], changed in place; rows of no segment keep their bits
    x: [rows, in_features]
    """
    reference.sparse_add_(y, x, table, segments)


def kronecker_add_(y: Tensor, x: Tensor, table: SlotTable[Factors], segments: Segments) -> None:
    """`y[s] += x[s] (F ⊗ G)ᵀ` for the rows s of each segment, with (F, G) of its slot.

    y: [rows, out_features], changed in place; rows of no segment keep their bits
    x: [rows, in_features]
    """
    reference.kronecker_add_(y, x, table, segments)
