import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.kernels.runs import Run, runs_of
from weft.kernels.segments import Segments


def test_short_neighbours_run_together_and_long_segments_alone() -> None:
    slots = [-1, 0, 1, 1, *[2] * 4, 3, 5, -1, 0]
    assert runs_of(Segments.from_slots(slots), frozenset({0, 1, 2, 3})) == (
        Run(1, 4, (0, 1), (1, 2)),
        Run(4, 8, (2,), (4,)),
        Run(8, 9, (3,), (1,)),
        Run(11, 12, (0,), (1,)),
    )


@given(st.lists(st.integers(-1, 4), max_size=40), st.frozensets(st.integers(0, 4)))
def test_runs_are_the_rows_of_the_slots(slots: list[int], wanted: frozenset[int]) -> None:
    rows: dict[int, int] = {}
    for run in runs_of(Segments.from_slots(slots), wanted):
        numbers = torch.arange(run.start, run.stop)
        for slot, part in zip(run.slots, run.split(numbers), strict=True):
            rows |= dict.fromkeys(part.tolist(), slot)
        if len(run.slots) > 1:
            assert run.row_slots == tuple(slots[run.rows])
        else:
            assert run.row_slots == run.slots
    assert rows == {row: slot for row, slot in enumerate(slots) if slot in wanted}
