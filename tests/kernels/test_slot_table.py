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
    assert (table.get(1), table.get(3)) == ("another", None)
