"""What a residency says of how long versions would take to come back."""

import math
from collections.abc import Iterator

import pytest
from residency_bench import Bench

from weft.adapters.residency import Residency


@pytest.fixture
def bench() -> Iterator[Bench]:
    """One whose installations take 0.5 and then 1 second."""
    bench = Bench(room=4)
    times = iter([0.0, 0.5, 1.0, 2.0])
    bench.residency = Residency(bench.pool, bench.arena, bench.desk, lambda: next(times))
    yield bench
    bench.desk.close()


def test_nothing_takes_no_time_and_what_was_never_done_may_take_for_ever(bench: Bench) -> None:
    assert bench.residency.return_seconds([]) == 0
    assert bench.residency.return_seconds(["a"]) == math.inf


def test_the_last_ones_that_came_count_most(bench: Bench) -> None:
    bench.bring("a")
    assert bench.residency.return_seconds(["a", "a"]) == 2 * 0.5
    bench.bring("b")
    assert bench.residency.return_seconds(["b"]) == 0.5 + (1.0 - 0.5) / 4


def test_what_the_host_does_not_keep_has_to_be_read_as_well(bench: Bench) -> None:
    bench.bring("a")
    assert bench.desk.load_seconds > 0
    assert bench.residency.return_seconds(["elsewhere"]) == 0.5 + bench.desk.load_seconds
