"""Which cached keys each row of a step attends to. Knows no model, layer or request."""

from dataclasses import dataclass

from torch import Tensor

from weft.kernels.memo import Memo


@dataclass(frozen=True, eq=False)
class PagedBatch(Memo):
    """One step's rows over a paged cache; the queries of a sequence are its last positions.

    slot_mapping: int64 [T], `page * page_size + offset` where each row's key and value are written
    query_starts: S + 1 row numbers; sequence s owns rows `[query_starts[s], query_starts[s + 1])`
    kv_lens:      S token counts visible after this step, this step's included
    block_tables: int32 [S, max_pages], the pages of each sequence in order, padded with any page
    """

    slot_mapping: Tensor
    query_starts: tuple[int, ...]
    kv_lens: tuple[int, ...]
    block_tables: Tensor
    page_size: int
