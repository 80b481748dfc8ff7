"""A step's plan as the tensors that one forward takes. Knows no model and decides nothing."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.kernels.attention import PagedBatch
from weft.kernels.segments import Segments
from weft.server.engine.sequence import Sequence
from weft.server.engine.step_plan import Scheduled, StepPlan


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Logits `rows` of a step that predict `seq`'s prompt tokens from position `position` on."""

    seq: Sequence
    position: int
    rows: slice


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One step, built once and never changed.

    input_ids, position_ids: int64 [1, T], all sequences' rows one after the other
    kept: int64 [K], the rows whose logits are wanted, ascending
    segments, kept_segments: adapter rows among all T, and among the K kept
    sampling: index among the K of each sampling item's row, in the plan's order
    prompts: the other kept rows, for requests that want their prompt's log-probabilities
    """

    input_ids: Tensor
    position_ids: Tensor
    paged: PagedBatch
    segments: Segments
    kept: Tensor
    kept_segments: Segments
    sampling: tuple[int, ...]
    prompts: tuple[PromptRows, ...]


def build(plan: StepPlan, page_size: int, device: torch.device) -> StepBatch:
    """Builds the tensors of a plan that is not empty; its sequences' pages cover their rows."""
    items = plan.items
    positions = [p for item in items for p in range(item.start, item.start + item.count)]
    kept = _Kept(items)
    return StepBatch(
        input_ids=_rows([_tokens(item) for item in items], device)[None],
        position_ids=_tensor(positions, torch.int64, device)[None],
        paged=_paged(items, page_size, device),
        segments=Segments.from_slots([item.slot for item in items for _ in range(item.count)]),
        kept=_tensor(kept.rows, torch.int64, device),
        kept_segments=Segments.from_slots(kept.slots),
        sampling=tuple(kept.sampling),
        prompts=tuple(kept.prompts),
    )


class _Kept:
    """Which rows' logits are wanted, and what for."""

    def __init__(self, items: Items[Scheduled]) -> None:
        self.rows: list[int] = []
        self.slots: list[int] = []
        self.sampling: list[int] = []
        self.prompts: list[PromptRows] = []
        first = 0
        for item in items:
            self._add(item, first)
            first += item.count

    def _add(self, item: Scheduled, first: int) -> None:
        before = len(self.rows)
        wanted = _prompt_rows(item)
        if wanted:
            self.rows += range(first, first + wanted)
            rows = slice(before, before + wanted)
            self.prompts.append(PromptRows(item.seq, item.start + 1, rows))
        if item.samples:
            self.sampling.append(len(self.rows))
            self.rows.append(first + item.count - 1)
        self.slots += [item.slot] * (len(self.rows) - before)


def _prompt_rows(item: Scheduled) -> int:
    """How many of the item's first rows predict prompt tokens whose log-probability is wanted."""
    if item.seq.sampling.prompt_logprobs is None or item.seq.generated:
        return 0
    return max(0, min(item.count, item.seq.prompt_len - 1 - item.start))


def _tokens(item: Scheduled) -> list[int]:
    return item.seq.tokens[item.start : item.start + item.count]


def _paged(items: Items[Scheduled], page_size: int, device: torch.device) -> PagedBatch:
    starts = [0]
    for item in items:
        starts.append(starts[-1] + item.count)
    kv_lens = tuple(item.start + item.count for item in items)
    width = -(-max(kv_lens) // page_size)
    tables = [item.seq.pages[:width] for item in items]
    padded = [table + [0] * (width - len(table)) for table in tables]
    return PagedBatch(
        slot_mapping=_rows([_slots(item, page_size) for item in items], device),
        query_starts=tuple(starts),
        kv_lens=kv_lens,
        block_tables=_tensor(padded, torch.int32, device),
        page_size=page_size,
    )


def _slots(item: Scheduled, page_size: int) -> list[int]:
    pages = item.seq.pages
    return [
        pages[position // page_size] * page_size + position % page_size
        for position in range(item.start, item.start + item.count)
    ]


def _rows(lists: Items[list[int]], device: torch.device) -> Tensor:
    return _tensor([value for values in lists for value in values], torch.int64, device)


def _tensor(
    values: list[int] | list[list[int]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
