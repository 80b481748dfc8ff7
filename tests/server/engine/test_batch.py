"""A plan's tensors, held against what each row means."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.pool import SlotRef
from weft.adapters.step_state import VirtualRows
from weft.adapters.tenancy import TenantContext
from weft.adapters.traits import Traits
from weft.kernels.segments import Segment
from weft.server.engine.batch import StepBatch, build
from weft.server.engine.messages import Generate, Sampling
from weft.server.engine.sequence import Sequence, Share
from weft.server.engine.step_plan import Scheduled, StepPlan

PAGE_SIZE = 4
CPU = torch.device("cpu")


def scheduled(
    *,
    tokens: int,
    start: int,
    count: int,
    prompt: int | None = None,
    slot: int | None = None,
    samples: bool | None = None,
    first_page: int = 1,
    prompt_logprobs: int | None = None,
) -> Scheduled:
    """A sequence of token ids 100, 101, … on descending pages, with rows of it."""
    ids = tuple(range(100, 100 + tokens))
    request = Generate(
        id="r",
        tenant=TenantContext("t"),
        prompt=ids[: tokens if prompt is None else prompt],
        sampling=Sampling(max_tokens=9, prompt_logprobs=prompt_logprobs),
    )
    pages = list(range(first_page, first_page + -(-tokens // PAGE_SIZE)))[::-1]
    seq = Sequence(request, 0, 0, list(ids), computed=start, pages=pages)
    seq.shares = () if slot is None else (Share(SlotRef(slot, 1)),)
    sampled = start + count == tokens if samples is None else samples
    return Scheduled(seq, start, count, sampled)


def batch_of(*items: Scheduled) -> StepBatch:
    return build(StepPlan(items), PAGE_SIZE, CPU)


def test_a_mixed_step() -> None:
    batch = batch_of(
        scheduled(tokens=6, start=5, count=1, prompt=4, first_page=1),
        scheduled(tokens=9, start=2, count=5, slot=3, first_page=3),
        scheduled(tokens=3, start=0, count=3, slot=3, first_page=6),
        scheduled(tokens=1, start=0, count=1, slot=8, first_page=7),
    )
    assert batch.input_ids.tolist() == [[105, 102, 103, 104, 105, 106, 100, 101, 102, 100]]
    assert batch.position_ids.tolist() == [[5, 2, 3, 4, 5, 6, 0, 1, 2, 0]]
    assert batch.paged.slot_mapping.tolist() == [5, 22, 23, 16, 17, 18, 24, 25, 26, 28]
    assert batch.paged.query_starts == (0, 1, 6, 9, 10)
    assert batch.paged.kv_lens == (6, 7, 3, 1)
    assert batch.paged.block_tables.tolist() == [[2, 1], [5, 4], [6, 0], [7, 0]]
    assert batch.segments.items == (Segment(3, 1, 9), Segment(8, 9, 10))
    assert batch.kept.tolist() == [0, 8, 9]
    assert batch.kept_segments.items == (Segment(3, 1, 2), Segment(8, 2, 3))
    assert (batch.segments.rows, batch.kept_segments.rows) == (10, 3)
    assert batch.sampling == (0, 1, 2)
    assert batch.prompts == ()


def test_versions_of_one_size_follow_each_other_as_they_lie_in_the_arena() -> None:
    places = {5: (64, 32), 2: (32, 96), 7: (32, 0)}
    items = [scheduled(tokens=1, start=0, count=1)]
    for slot, place in places.items():
        item = scheduled(tokens=1, start=0, count=1)
        item.seq.shares = (Share(SlotRef(slot, 1, place)),)
        items.append(item)
    ordered = sorted(items, key=lambda item: item.order)
    assert [item.slots for item in ordered] == [[-1], [7], [2], [5]]


def test_a_step_that_samples_nothing_keeps_nothing() -> None:
    batch = batch_of(scheduled(tokens=9, start=0, count=4))
    assert batch.kept.tolist() == []
    assert batch.kept_segments.rows == 0
    assert batch.sampling == ()


def test_prompt_logprobs_keep_each_row_that_predicts_a_prompt_token() -> None:
    first = scheduled(tokens=6, start=0, count=4, prompt_logprobs=1, slot=2)
    last = scheduled(tokens=6, start=4, count=2, prompt_logprobs=1, slot=2)
    other = scheduled(tokens=3, start=2, count=1)
    batch = batch_of(other, first)
    assert batch.kept.tolist() == [0, 1, 2, 3, 4]
    assert [(p.position, p.rows) for p in batch.prompts] == [(1, slice(1, 5))]
    assert batch.sampling == (0,)
    batch = batch_of(other, last)
    assert batch.kept.tolist() == [0, 1, 2]
    assert [(p.position, p.rows) for p in batch.prompts] == [(5, slice(1, 2))]
    assert batch.sampling == (0, 2)
    assert batch.kept_segments.items == (Segment(2, 1, 3),)


def test_prompt_logprobs_are_not_computed_again_after_a_preemption() -> None:
    item = scheduled(tokens=7, start=0, count=7, prompt=6, prompt_logprobs=1)
    assert batch_of(item).kept.tolist() == [6]


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.floats(0, 1), st.floats(0, 1), st.integers(-1, 2)),
        min_size=1,
        max_size=6,
    )
)
def test_rows_of_any_plan(shapes: list[tuple[int, float, float, int]]) -> None:
    items: list[Scheduled] = []
    page = 1
    for tokens, where, much, slot in sorted(shapes, key=lambda shape: shape[3]):
        start = int(where * (tokens - 1))
        count = 1 + int(much * (tokens - start - 1))
        item = scheduled(tokens=tokens, start=start, count=count, first_page=page)
        item.seq.shares = () if slot < 0 else (Share(SlotRef(slot, 1)),)
        items.append(item)
        page += len(item.seq.pages)
    batch = batch_of(*items)
    row = 0
    slots = [-1] * batch.segments.rows
    for segment in batch.segments:
        slots[segment.start : segment.stop] = [segment.slot] * (segment.stop - segment.start)
    for index, item in enumerate(items):
        assert batch.paged.query_starts[index] == row
        table = batch.paged.block_tables[index].tolist()
        for position in range(item.start, item.start + item.count):
            page, offset = divmod(batch.paged.slot_mapping[row].item(), PAGE_SIZE)
            assert batch.input_ids[0, row] == item.seq.tokens[position]
            assert batch.position_ids[0, row] == position
            assert (page, offset) == (table[position // PAGE_SIZE], position % PAGE_SIZE)
            assert slots[row] == item.slots[-1]
            row += 1
        assert batch.paged.kv_lens[index] == item.start + item.count
    assert batch.paged.query_starts[-1] == row == batch.input_ids.shape[1]
    assert len(set(batch.paged.slot_mapping.tolist())) == row


def test_scheduled_rows_are_not_changed_by_building() -> None:
    item = scheduled(tokens=5, start=0, count=5)
    before = replace(item)
    batch_of(item)
    assert item == before


def test_positions_of_an_adapter_before_the_prompt() -> None:
    item = scheduled(tokens=6, start=2, count=6, prompt=5, slot=3, samples=True, prompt_logprobs=0)
    item.seq.traits = Traits(embeddings=4)
    item.seq.pages = [3, 2, 1]
    batch = batch_of(scheduled(tokens=3, start=0, count=3, first_page=5), item)
    assert batch.input_ids.tolist() == [[100, 101, 102, 0, 0, 100, 101, 102, 103]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3, 4, 5, 6, 7]]
    assert batch.paged.slot_mapping.tolist() == [20, 21, 22, 14, 15, 8, 9, 10, 11]
    assert batch.virtual == (VirtualRows((3,), slice(3, 5), 2),)


def test_prompt_logprobs_behind_an_adapters_positions() -> None:
    item = scheduled(tokens=5, start=2, count=7, slot=3, prompt_logprobs=0)
    item.seq.traits = Traits(embeddings=4)
    item.seq.pages = [3, 2, 1]
    batch = batch_of(item)
    (prompt,) = batch.prompts
    assert (prompt.position, prompt.rows) == (1, slice(0, 4))
    assert batch.kept.tolist() == [2, 3, 4, 5]


def test_rows_before_an_invocation_are_the_bases() -> None:
    item = scheduled(tokens=6, start=1, count=5, slot=3, prompt_logprobs=0)
    item.seq.base_until = 4
    batch = batch_of(item)
    assert batch.segments.items == (Segment(3, 3, 5),)
    assert batch.kept_segments.items == (Segment(3, 3, 5),)
    item.seq.base_until = 100
    assert not batch_of(item).segments
    assert item.shares == ()
