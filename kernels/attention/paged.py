"""Which cached keys each row of a step attends to. Knows no model, layer or request."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weft.kernels.memo import Memo


@dataclass(frozen=True, eq=False)
class PagedBatch(Memo):
    """One step's rows over a paged cache; the queries of a sequence are its last positions.

    slot_mapping: int64 [T], `page * page_size + offset` where each row's key and value are written
    query_starts: S + 1 row numbers; sequence s owns rows `[query_starts[s], query_starts[s + 1])`
    kv_lens:      S token counts visible after this step, this step's included
    block_tables: int32 [S, max_pages], the pages of each sequence in order, padded with any page

    A GPU's decode kernels read `starts`, `lengths`, `block_tables` and `slot_mapping` when they
    run, and of the tuples only which sequences have one query. So a captured step of decodes keeps
    one batch, whose `lengths`, `block_tables` and `slot_mapping` are overwritten between replays;
    the width of the tables bounds the lengths. A row of length 0 attends to nothing and gets zeros.
    """

    slot_mapping: Tensor
    query_starts: tuple[int, ...]
    kv_lens: tuple[int, ...]
    block_tables: Tensor
    page_size: int

    @cached_property
    def starts(self) -> Tensor:
        """`query_starts` on the device, int32 [S + 1]."""
        return self._on_device(self.query_starts)

    @cached_property
    def lengths(self) -> Tensor:
        """`kv_lens` on the device, int32 [S]."""
        return self._on_device(self.kv_lens)

    def _on_device(self, values: Sequence[int]) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.int32)
        return tensor.to(self.block_tables.device, non_blocking=True)
