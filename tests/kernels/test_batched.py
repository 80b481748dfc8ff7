import torch
from torch import Tensor

from weft.kernels.batched import stacked, widened
from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable

SEGMENTS = Segments.from_slots([-1, 0, 1, 1, 2, *[3] * 5])


def table() -> SlotTable[tuple[Tensor]]:
    """An entry of its own number for each slot, of another shape in slot 2."""
    result: SlotTable[tuple[Tensor]] = SlotTable()
    for slot in range(4):
        result.set(slot, (torch.full((3 + (slot == 2),), float(slot)),))
    return result


def test_entries_are_stacked_by_row_where_they_are_alike() -> None:
    found = [(rows, entry.tolist()) for rows, (entry,) in stacked(table(), SEGMENTS)]
    assert found == [
        (slice(1, 4), [[0.0] * 3, [1.0] * 3, [1.0] * 3]),
        (slice(4, 5), [[2.0] * 4]),
        (slice(5, 10), [3.0] * 3),
    ]


def test_what_was_made_of_widened_rows_is_taken_over() -> None:
    y = torch.ones(10, 2, dtype=torch.bfloat16)
    y[0] = torch.nan
    for run, wide in widened(y, table(), SEGMENTS):
        assert wide.dtype == torch.float32
        wide.add_(torch.arange(run.start, run.stop)[:, None])
    assert y[0].isnan().all()
    assert y[1:, 0].tolist() == [1.0 + row for row in range(1, 10)]


def test_rows_of_the_entries_dtype_are_changed_in_place() -> None:
    y = torch.ones(10, 2)
    (_, first), *_ = widened(y, table(), SEGMENTS)
    assert first.data_ptr() == y[1].data_ptr()
