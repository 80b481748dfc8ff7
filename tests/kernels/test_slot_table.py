from weft.kernels.segments import Segments
from weft.kernels.slot_table import SlotTable


def test_rows_of_slots_with_an_entry() -> None:
    table: SlotTable[str] = SlotTable()
    assert not table.any_in([0, 1])
    table.set(1, "one")
    table.set(3, "three")
    segments = Segments.from_slots([-1, 0, 1, 1, 2, 3])
    assert list(table.rows(segments)) == [(slice(2, 4), "one"), (slice(5, 6), "three")]
    assert table.any_in(segments.slots)
    table.set(1, "another")
    table.clear(3)
    table.clear(7)
    assert list(table.rows(segments)) == [(slice(2, 4), "another")]
    assert (table.get(1), table.get(3), table[1]) == ("another", None, "another")


def test_runs_are_those_of_the_slots_that_have_an_entry_now() -> None:
    table: SlotTable[str] = SlotTable()

    def runs() -> list[tuple[int, int, tuple[int, ...]]]:
        segments = Segments.from_slots([-1, 0, 1, 1, 2, 3])
        return [(run.start, run.stop, run.slots) for run in table.runs(segments)]

    assert runs() == []
    for slot in (1, 2, 0):
        table.set(slot, "entry")
    assert runs() == [(1, 5, (0, 1, 2))]
    table.clear(1)
    assert runs() == [(1, 2, (0,)), (4, 5, (2,))]
