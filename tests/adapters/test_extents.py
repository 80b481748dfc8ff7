from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.extents import Extents

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def test_a_hole_that_fits_all_is_preferred_over_larger_ones() -> None:
    space = Extents(100)
    first = space.take([20])
    wall = space.take([5])
    assert first is not None
    assert wall is not None
    space.give(first.extents)
    room = space.take([8, 10])
    assert room is not None
    assert room.offsets == (0, 8)
    assert room.extents == ((0, 18),)


def test_tensors_spread_over_holes_where_no_hole_fits_all() -> None:
    space = Extents(60)
    taken = [space.take([10]) for _ in range(6)]
    for room in taken[::2]:
        assert room is not None
        space.give(room.extents)
    room = space.take([5, 5, 7, 3, 4])
    assert room is not None
    assert room.offsets == (0, 5, 20, 27, 40)
    assert room.extents == ((0, 10), (20, 30), (40, 44))
    assert space.free == 6


def test_a_tensor_is_never_split() -> None:
    space = Extents(30)
    taken = [space.take([10]) for _ in range(3)]
    for room in (taken[0], taken[2]):
        assert room is not None
        space.give(room.extents)
    assert space.take([11]) is None
    assert space.free == 20


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=30))
def test_ranges_never_overlap_and_all_bytes_come_back(rounds: list[tuple[list[int], bool]]) -> None:
    space = Extents(256)
    owned: list[tuple[tuple[int, int], ...]] = []
    for sizes, give_back in rounds:
        before = space.free
        room = space.take(sizes)
        if room is None:
            assert space.free == before
        else:
            owned.append(room.extents)
            inside = [(at, at + size) for at, size in zip(room.offsets, sizes, strict=True)]
            assert all(
                any(start <= a and b <= stop for start, stop in room.extents) for a, b in inside
            )
            assert before - space.free == sum(sizes)
        if give_back and owned:
            space.give(owned.pop(0))
        ranges = sorted([*space.holes, *(e for extents in owned for e in extents)])
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges)][:-1]
        assert ranges[-1][1] == 256
    for extents in owned:
        space.give(extents)
    assert space.holes == ((0, 256),)
