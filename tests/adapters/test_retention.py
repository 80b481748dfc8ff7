from weft.adapters.retention import Retention
from weft.adapters.version import Entry, Version

DAY = 86_400.0
NOW = 100 * DAY


def entry(current: int, **retired: float | None) -> Entry:
    """Versions by `v<number>`, with how many days ago another one took their place."""
    versions = {
        int(name[1:]): Version(
            "a",
            int(name[1:]),
            name * 32,
            8,
            0.0,
            "{}",
            retired=None if days is None else NOW - days * DAY,
        )
        for name, days in retired.items()
    }
    return Entry(current, False, versions)


def surplus(rule: Retention, name: Entry) -> list[int]:
    return [version.version for version in rule.surplus(name, NOW)]


def test_the_newest_stay_by_count() -> None:
    name = entry(4, v1=30, v2=20, v3=10, v4=None)
    assert surplus(Retention(2), name) == [1, 2]
    assert surplus(Retention(1), name) == [1, 2, 3]
    assert surplus(Retention(9), name) == []


def test_the_current_one_stays_however_old() -> None:
    name = entry(1, v1=None, v2=20, v3=10)
    assert surplus(Retention(1), name) == [2]
    assert surplus(Retention(1, 0.0), name) == [2, 3]


def test_age_counts_from_when_another_took_the_place() -> None:
    name = entry(4, v1=30, v2=20, v3=10, v4=None)
    assert surplus(Retention(9, 15 * DAY), name) == [1, 2]
    assert surplus(Retention(9, 20 * DAY), name) == [1]
