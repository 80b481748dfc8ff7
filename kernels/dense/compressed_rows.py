"""A sparse matrix as one adapter has it."""

import warnings

import torch
from torch import Tensor

with warnings.catch_warnings():  # torch says once that this format is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), check_invariants=False)


class CompressedRows:
    """A sparse `[out_features, in_features]`.

    starts: int32 [out_features + 1], where each row starts in the other two
    columns: int32, ascending within a row   values: as many
    """

    def __init__(self, starts: Tensor, columns: Tensor, values: Tensor) -> None:
        self.starts, self.columns, self.values = starts, columns, values
        self._matrix: Tensor | None = None

    def matrix(self, in_features: int) -> Tensor:
        """The same for torch's sparse products; made once, of the same memory."""
        if self._matrix is None:
            self._matrix = torch.sparse_csr_tensor(
                self.starts,
                self.columns,
                self.values,
                size=(len(self.starts) - 1, in_features),
                check_invariants=False,
            )
        return self._matrix
