from hypothesis import given
from hypothesis import strategies as st

from weft.kernels.segments import Segment, Segments


@given(st.lists(st.integers(-1, 3), max_size=30))
def test_segments_name_the_slot_of_every_row(slots: list[int]) -> None:
    segments = Segments.from_slots(slots)
    rebuilt = [-1] * segments.rows
    for segment in segments:
        assert segment.start < segment.stop
        rebuilt[segment.start : segment.stop] = [segment.slot] * (segment.stop - segment.start)
    assert rebuilt == slots
    assert segments.slots == set(slots) - {-1}


def test_neighbouring_rows_of_one_slot_are_one_segment() -> None:
    segments = Segments.from_slots([-1, 2, 2, 0, -1, 0])
    assert segments.items == (Segment(2, 1, 3), Segment(0, 3, 4), Segment(0, 5, 6))
    assert segments
    assert not Segments.from_slots([-1, -1])


def test_steps_of_the_same_slots_share_what_is_derived_from_them() -> None:
    first, second, other = (Segments.from_slots(slots) for slots in ([0, 1], [0, 1], [1, 0]))
    made: list[Segments] = []
    for segments in (first, second, other):
        segments.once(made.append)
    assert made == [first, other]
