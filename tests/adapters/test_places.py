"""Places for loads: how many a tenant may have, and who is next."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.places import Places
from weft.adapters.tenancy import TenantContext


def admitted(places: Places[str], *waiting: str) -> list[str]:
    """Who gets a place of those that begin to wait now: `a1` is a load of tenant a."""
    for load in waiting:
        places.wait(load, TenantContext(load[0]))
    return places.admit()


def test_one_tenant_alone_has_half_the_places() -> None:
    places: Places[str] = Places(8)
    assert admitted(places, *(f"a{number}" for number in range(9))) == ["a0", "a1", "a2", "a3"]
    places.leave("a1")
    assert places.admit() == ["a4"]
    assert places.taken == ("a0", "a2", "a3", "a4")


def test_others_find_free_places_however_long_that_ones_loads_take() -> None:
    places: Places[str] = Places(8)
    for name, count in (("a", 4), ("b", 2), ("c", 1), ("d", 1), ("e", 0)):
        assert len(admitted(places, *(f"{name}{number}" for number in range(9)))) == count


def test_a_free_place_is_for_who_has_fewest() -> None:
    places: Places[str] = Places(8)
    for waiting in (("a0", "a1", "a2", "a3"), ("b0", "b1"), ("c0",), ("d0",)):
        assert admitted(places, *waiting) == list(waiting)
    assert admitted(places, "a4", "e0", "f0") == []
    places.leave("a0")
    assert places.admit() == ["e0"]
    places.leave("a1")
    assert places.admit() == ["f0"]


def test_who_has_fewest_comes_before_who_waits_longest() -> None:
    places: Places[str] = Places(8)
    assert admitted(places, "a0", "a1") == ["a0", "a1"]
    assert admitted(places, "a2", "c0") == ["c0", "a2"]


def test_who_waits_no_more_gets_none() -> None:
    places: Places[str] = Places(2)
    assert admitted(places, "a0", "a1", "a2") == ["a0"]
    places.leave("a1")
    places.leave("a0")
    places.leave("never there")
    assert places.admit() == ["a2"]
    places.wait("b0", TenantContext("b"))
    places.leave("b0")
    places.leave("a2")
    assert admitted(places, "c0") == ["c0"]


@given(
    count=st.integers(1, 9),
    moves=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60),
)
def test_any_history(count: int, moves: list[tuple[str, bool]]) -> None:
    places: Places[str] = Places(count)
    waiting: list[str] = []
    for number, (name, comes) in enumerate(moves):
        before = len(places.taken)
        if comes:
            waiting.append(f"{name}{number}")
            places.wait(waiting[-1], TenantContext(name))
        elif places.taken:
            places.leave(places.taken[number % before])
        for load in places.admit():
            assert load == next(w for w in waiting if w[0] == load[0]), "a tenant's are in order"
            waiting.remove(load)
        has = Counter(load[0] for load in places.taken)
        free = count - len(places.taken)
        assert free >= 0
        # What waits could not have a place: its tenant has as many as are free.
        assert all(has[load[0]] >= free for load in waiting)
