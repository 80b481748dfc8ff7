"""Aliases in a registry: where they may lead, what they keep, and that they survive."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stored_state import MINE, THEIRS, State

from weft.adapters.alias import Alias
from weft.adapters.aliases import Aliases
from weft.adapters.errors import (
    AdapterCorrupt,
    AdapterInUse,
    AdapterInvalid,
    AliasInvalid,
    StorageFull,
    UnknownAdapter,
    VersionConflict,
)
from weft.adapters.retention import Retention


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """A state with `a` in three versions and `b` in one."""
    state = State(tmp_path)
    for name, seed in (("a", 1), ("a", 2), ("a", 3), ("b", 4)):
        state.put(name, seed)
    yield state
    assert state.registry.check() == ()
    state.registry.close()


@pytest.fixture
def aliases(state: State) -> Aliases:
    return state.registry.aliases


def leased(state: State, name: str, key: str = "") -> str:
    with state.registry.lease(MINE, name, choice=key) as lease:
        return lease.id


def targets(alias: Alias) -> dict[str, float]:
    return {arm.target: arm.weight for arm in alias.arms}


# ---- leading


def test_an_alias_leads_to_a_version_or_to_whatever_is_current(
    state: State, aliases: Aliases
) -> None:
    aliases.put(MINE, "fixed", {"a@2": 1})
    aliases.put(MINE, "moving", {"a": 1})
    assert (leased(state, "fixed"), leased(state, "moving")) == ("a@2", "a@3")
    state.put("a", 5)
    assert (leased(state, "fixed"), leased(state, "moving")) == ("a@2", "a@4")


def test_a_split_is_sticky_and_goes_through_aliases(state: State, aliases: Aliases) -> None:
    aliases.put(MINE, "stable", {"a@1": 1})
    aliases.put(MINE, "canary", {"a@2": 1})
    aliases.put(MINE, "live", {"stable": 80, "canary": 20})
    keys = [f"user-{number}" for number in range(200)]
    found = [leased(state, "live", key) for key in keys]
    assert found == [leased(state, "live", key) for key in keys]
    assert 15 < found.count("a@2") < 70
    assert found.count("a@1") + found.count("a@2") == len(keys)
    assert {v.id for v in state.registry.ends(MINE, "live")} == {"a@1", "a@2"}


def test_an_alias_has_no_versions_of_its_own(state: State, aliases: Aliases) -> None:
    aliases.put(MINE, "live", {"a": 1})
    with pytest.raises(UnknownAdapter):
        state.registry.lease(MINE, "live", 1)
    for call in (state.registry.lookup, state.registry.rollback, state.registry.remove):
        with pytest.raises(UnknownAdapter):
            call(MINE, "live")


def test_a_failed_version_fails_the_alias_that_leads_there_and_no_other(
    state: State, aliases: Aliases
) -> None:
    aliases.put(MINE, "one", {"a@1": 1})
    aliases.put(MINE, "two", {"a@2": 1})
    with state.registry.lease(MINE, "a", 1) as lease:
        state.registry.withdraw(lease, "damaged")
    with pytest.raises(AdapterCorrupt):
        leased(state, "one")
    assert leased(state, "two") == "a@2"


# ---- changing


def test_promotion_and_rollback_are_one_call_each(state: State, aliases: Aliases) -> None:
    aliases.put(MINE, "live", {"a@1": 95, "a@2": 5})
    promoted = aliases.promote(MINE, "live", "a@2")
    assert targets(promoted) == {"a@2": 100}
    assert {leased(state, "live", str(key)) for key in range(50)} == {"a@2"}
    back = aliases.rollback(MINE, "live")
    assert targets(back) == {"a@1": 95, "a@2": 5}
    assert targets(aliases.rollback(MINE, "live")) == {"a@2": 100}


def test_setting_the_same_again_keeps_the_way_back(state: State, aliases: Aliases) -> None:
    aliases.put(MINE, "live", {"a@1": 1})
    aliases.put(MINE, "live", {"a@2": 1})
    again = aliases.put(MINE, "live", {"a@2": 1})
    assert targets(again) == {"a@2": 1}
    assert targets(aliases.rollback(MINE, "live")) == {"a@1": 1}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a: a.put(MINE, "live", {"nobody": 1}), AliasInvalid, "no adapter 'nobody'"),
        (lambda a: a.put(MINE, "live", {"a@9": 1}), AliasInvalid, "no adapter 'a@9'"),
        (lambda a: a.put(MINE, "b", {"a": 1}), AliasInvalid, "'b' is an adapter"),
        (lambda a: a.put(MINE, "live", {"live": 1}), AliasInvalid, "'live'"),
        (lambda a: a.put(MINE, "a b", {"a": 1}), AliasInvalid, "cannot be a name"),
        (lambda a: a.put(MINE, "deeper", {"deep": 1}), AliasInvalid, "aliases itself"),
        (lambda a: a.put(MINE, "inner", {"other": 1}), AliasInvalid, "'deep' leads to it"),
        (lambda a: a.promote(MINE, "inner", "b"), AliasInvalid, "none of a@1"),
        (lambda a: a.promote(MINE, "nobody", "b"), UnknownAdapter, "nobody"),
        (lambda a: a.rollback(MINE, "inner"), AliasInvalid, "nowhere else"),
        (lambda a: a.rollback(THEIRS, "inner"), UnknownAdapter, "inner"),
        (lambda a: a.remove(MINE, "nobody"), UnknownAdapter, "nobody"),
        (lambda a: a.remove(MINE, "inner"), AdapterInUse, "'deep' leads to 'inner'"),
    ],
)
def test_what_cannot_be_changes_nothing(
    aliases: Aliases, change: Callable[[Aliases], object], error: type[Exception], words: str
) -> None:
    aliases.put(MINE, "inner", {"a@1": 1})
    aliases.put(MINE, "other", {"b": 1})
    aliases.put(MINE, "deep", {"inner": 1, "a@2": 1})
    before = aliases.list(MINE)
    with pytest.raises(error, match=words):
        change(aliases)
    assert aliases.list(MINE) == before


def test_a_rollback_to_what_has_gone_is_refused(state: State, aliases: Aliases) -> None:
    aliases.put(MINE, "live", {"b": 1})
    aliases.put(MINE, "live", {"a": 1})
    state.registry.remove(MINE, "b")
    with pytest.raises(AliasInvalid, match="no adapter 'b'"):
        aliases.rollback(MINE, "live")
    assert leased(state, "live") == "a@3"


def test_an_expected_digest_guards_every_change(aliases: Aliases) -> None:
    with pytest.raises(VersionConflict):
        aliases.put(MINE, "live", {"a@1": 1}, expected="0" * 64)
    old = aliases.put(MINE, "live", {"a@1": 1}).digest
    new = aliases.put(MINE, "live", {"a@1": 1, "a@2": 1}, expected=old).digest
    for change in (
        lambda: aliases.put(MINE, "live", {"a@3": 1}, expected=old),
        lambda: aliases.promote(MINE, "live", "a@2", expected=old),
        lambda: aliases.rollback(MINE, "live", expected=old),
        lambda: aliases.remove(MINE, "live", expected=old),
    ):
        with pytest.raises(VersionConflict) as conflict:
            change()
        assert conflict.value.current == new
    aliases.remove(MINE, "live", expected=new)


def test_a_full_disk_changes_nothing(
    state: State, aliases: Aliases, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases.put(MINE, "live", {"a@1": 1})

    def full(*_: object) -> None:
        raise StorageFull(28, "full")

    monkeypatch.setattr("weft.adapters.catalogue.Catalogue.lead", full)
    with pytest.raises(StorageFull):
        aliases.put(MINE, "live", {"a@2": 1})
    assert leased(state, "live") == "a@1"


# ---- one space of names


def test_names_of_aliases_and_adapters_are_one_space(state: State, aliases: Aliases) -> None:
    aliases.put(MINE, "live", {"a": 1})
    with pytest.raises(AdapterInvalid, match="'live' is an alias"):
        state.put("live", 9)
    state.put("live", 9, THEIRS)
    assert aliases.list(THEIRS) == ()
    with pytest.raises(UnknownAdapter):
        aliases.get(THEIRS, "live")


def test_what_an_alias_leads_to_cannot_be_removed(state: State, aliases: Aliases) -> None:
    aliases.put(MINE, "live", {"a": 1, "b": 1})
    with pytest.raises(AdapterInUse, match="'live' leads to 'b'"):
        state.registry.remove(MINE, "b")
    aliases.put(MINE, "live", {"a": 1})
    state.registry.remove(MINE, "b")


def test_an_adapter_tells_which_aliases_lead_to_it(aliases: Aliases) -> None:
    aliases.put(MINE, "live", {"a@1": 95, "a@2": 5})
    aliases.put(MINE, "other", {"b": 1})
    told = [(alias.name, arm.target, arm.weight) for alias, arm in aliases.pointing(MINE, "a")]
    assert told == [("live", "a@1", 95), ("live", "a@2", 5)]
    aliases.put(MINE, "live", {"b": 1})
    assert aliases.pointing(MINE, "a") == ()
    assert [alias.name for alias, _ in aliases.pointing(MINE, "b")] == ["other", "live"]


def test_aliases_are_there_again_after_a_restart(state: State) -> None:
    state.registry.aliases.put(MINE, "live", {"a@1": 95, "a@2": 5})
    state.registry.aliases.promote(MINE, "live", "a@2")
    before = state.registry.aliases.list(MINE)
    state.restart()
    assert state.registry.aliases.list(MINE) == before
    assert targets(state.registry.aliases.rollback(MINE, "live")) == {"a@1": 95, "a@2": 5}


# ---- retention


def kept(state: State, count: int, seconds: float | None = None) -> list[int]:
    state.registry.prune(MINE, "a", Retention(count, seconds))
    return [version.version for version in state.registry.versions(MINE, "a")]


def test_old_versions_go_with_their_files(state: State) -> None:
    digests = [version.digest for version in state.registry.versions(MINE, "a")]
    assert state.registry.prune(MINE, "a", Retention(2)) == (digests[0],)
    assert digests[0] not in state.store.digests()
    assert set(digests[1:]) <= state.store.digests()
    with pytest.raises(UnknownAdapter):
        state.registry.lease(MINE, "a", 1)
    assert state.put("a", 9).version == 4


def test_who_listens_hears_of_each_version_that_went(state: State) -> None:
    before, told = state.registry.versions(MINE, "a"), []
    state.registry.on_prune = lambda ctx, version: told.append((ctx, version))
    for _ in range(2):
        state.registry.prune(MINE, "a", Retention(1))
    left = {version.version for version in state.registry.versions(MINE, "a")}
    gone = [version for version in before if version.version not in left]
    assert len(gone) == 2
    assert [(ctx, v.version, v.digest) for ctx, v in told] == [
        (MINE, v.version, v.digest) for v in gone
    ]


def test_files_stay_while_another_name_has_them_though_its_version_goes(state: State) -> None:
    state.put("same", 1, THEIRS)
    assert state.registry.prune(MINE, "a", Retention(1, 0.0)) != ()
    with state.registry.lease(THEIRS, "same") as lease:
        assert state.store.read(lease.digest)


def test_what_is_current_leased_pinned_or_led_to_stays(state: State, aliases: Aliases) -> None:
    for seed in (5, 6, 7):
        state.put("a", seed)
    state.registry.rollback(MINE, "a", 5)
    aliases.put(MINE, "live", {"a@1": 1})
    aliases.put(MINE, "live", {"a@2": 1})
    state.put("pinned", 3, THEIRS)
    state.registry.pin(THEIRS, "pinned", True)
    lease = state.registry.lease(MINE, "a", 4)
    assert kept(state, 1, 0.0) == [1, 2, 3, 4, 5]
    lease.release()
    assert kept(state, 1, 0.0) == [1, 2, 3, 5]
    state.registry.pin(THEIRS, "pinned", False)
    aliases.remove(MINE, "live")
    assert kept(state, 1, 0.0) == [5]
    with pytest.raises(UnknownAdapter):
        state.registry.prune(MINE, "nobody", Retention(1))


def test_a_version_is_young_again_once_it_was_current(state: State) -> None:
    state.registry.rollback(MINE, "a", 1)
    assert state.registry.versions(MINE, "a")[0].retired is None
    state.registry.rollback(MINE, "a", 3)
    first, second, third = state.registry.versions(MINE, "a")
    assert first.retired is not None
    assert second.retired is not None
    assert first.retired > second.retired
    assert third.retired is None


def test_there_is_an_end_to_the_aliases_of_a_tenant(
    state: State, aliases: Aliases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.adapters.aliases.MOST_ALIASES", 2)
    for name in "xy":
        aliases.put(MINE, name, {"a": 1})
    with pytest.raises(AliasInvalid, match="2 aliases"):
        aliases.put(MINE, "z", {"a": 1})
    aliases.put(MINE, "y", {"b": 1})
    aliases.remove(MINE, "x")
    aliases.put(MINE, "z", {"a": 1})
    assert [alias.name for alias in aliases.list(MINE)] == ["y", "z"]
