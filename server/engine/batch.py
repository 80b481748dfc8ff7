"""A step's plan as the tensors that one forward takes. Knows no model and decides nothing."""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.adapters.step_state import Layer, VirtualRows
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

    input_ids, position_ids: int64 [1, T], all sequences' rows one after the other; the id of a
        virtual token is 0
    kept: int64 [K], the rows whose logits are wanted, ascending
    segments, kept_segments: adapter rows among all T, and among the K kept
    virtual: the rows of adapters' virtual tokens
    layers: the further adapters of rows that have several, or weights other than 1
    sampling: index among the K of each sampling item's row and of those of its drafts, in the
        plan's order
    prompts: the other kept rows, for requests that want their prompt's log-probabilities
    """

    input_ids: Tensor
    position_ids: Tensor
    paged: PagedBatch
    segments: Segments
    kept: Tensor
    kept_segments: Segments
    virtual: tuple[VirtualRows, ...]
    layers: tuple[Layer, ...]
    sampling: tuple[int, ...]
    prompts: tuple[PromptRows, ...]


def build(
    plan: StepPlan, page_size: int, device: torch.device, ids: Tensor | None = None
) -> StepBatch:
    """Builds the tensors of a plan that is not empty; its sequences' pages cover their rows.

    ids: int64 [T], of the rows, where the host does not know them
    """
    items = plan.items
    if ids is None:
        ids = _rows([_tokens(item) for item in items], device)
    positions = [p for item in items for p in range(item.start, item.start + item.count)]
    kept = _Kept(items)
    return StepBatch(
        input_ids=ids[None],
        position_ids=_tensor(positions, torch.int64, device)[None],
        paged=_paged(items, page_size, device),
        segments=Segments.from_slots([slot for item in items for slot in item.slots]),
        kept=_tensor(kept.rows, torch.int64, device),
        kept_segments=Segments.from_slots(kept.slots),
        virtual=tuple(_virtual(items)),
        layers=tuple(_layers(items, kept.rows, device)),
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
        before, seq = len(self.rows), item.seq
        wanted = _prompt_positions(item)
        if wanted:
            self.rows += (first + position - item.start for position in wanted)
            rows = slice(before, before + len(wanted))
            self.prompts.append(PromptRows(seq, wanted.start + 1 - seq.lead, rows))
        if item.samples:
            chosen = 1 + len(item.drafts)
            self.sampling += range(len(self.rows), len(self.rows) + chosen)
            self.rows += range(first + item.count - chosen, first + item.count)
        slots = item.slots
        self.slots += (slots[row - first] for row in self.rows[before:])


def _prompt_positions(item: Scheduled) -> range:
    """The item's positions that predict prompt tokens whose log-probability is wanted."""
    seq = item.seq
    if seq.sampling.prompt_logprobs is None or seq.generated:
        return range(0)
    last = seq.lead + seq.prompt_len - 1
    return range(max(item.start, seq.lead), min(item.stop, last))


def _tokens(item: Scheduled) -> list[int]:
    seq = item.seq
    if item.start >= seq.lead:
        return [*seq.tokens[item.start - seq.lead : item.stop - seq.lead], *item.drafts]
    return [max(identity, 0) for identity in seq.identities(item.start, item.stop)]


def _virtual(items: Items[Scheduled]) -> Iterator[VirtualRows]:
    first = 0
    for item in items:
        count = min(item.stop, item.seq.traits.embeddings) - item.start
        if count > 0:
            slots = tuple(share.ref.slot for share in item.shares)
            yield VirtualRows(slots, slice(first, first + count), item.start)
        first += item.count


def _layers(items: Items[Scheduled], kept: list[int], device: torch.device) -> Iterator[Layer]:
    """Each row's further shares, the first ones in one layer, the second ones in the next."""
    further = [item.further for item in items]
    for depth in range(max(map(len, further))):
        slots: list[int] = []
        weights: list[float] = []
        for item, shares in zip(items, further, strict=True):
            share = shares[depth] if depth < len(shares) else None
            slots += [share.ref.slot if share else -1] * item.count
            weights += [share.weight if share else 0.0] * item.count
        yield Layer(
            Segments.from_slots(slots),
            _tensor(weights, torch.float32, device),
            Segments.from_slots([slots[row] for row in kept]),
            _tensor([weights[row] for row in kept], torch.float32, device),
        )


def _paged(items: Items[Scheduled], page_size: int, device: torch.device) -> PagedBatch:
    starts = [0]
    for item in items:
        starts.append(starts[-1] + item.count)
    kv_lens = tuple(item.stop for item in items)
    width = -(-max(kv_lens) // page_size)
    tables = [item.seq.pages[:width] for item in items]
    padded = [table + [0] * (width - len(table)) for table in tables]
    return PagedBatch(
        slot_mapping=_rows(
            [places(item.seq, item.start, item.stop, page_size) for item in items], device
        ),
        query_starts=tuple(starts),
        kv_lens=kv_lens,
        block_tables=_tensor(padded, torch.int32, device),
        page_size=page_size,
    )


def places(seq: Sequence, start: int, stop: int, page_size: int) -> list[int]:
    """Where the KV of the positions `[start, stop)` of `seq` lies in the flattened pools."""
    pages = seq.pages
    return [
        pages[position // page_size] * page_size + position % page_size
        for position in range(start, stop)
    ]


def _rows(lists: Items[list[int]], device: torch.device) -> Tensor:
    return _tensor([value for values in lists for value in values], torch.int64, device)


def _tensor(
    values: list[int] | list[float] | list[list[int]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
