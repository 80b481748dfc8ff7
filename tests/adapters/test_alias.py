"""How an alias splits, without any storage."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.alias import Alias, Arm, arms_of, read_arms, text_of
from weft.adapters.errors import AliasInvalid

KEYS = [f"user-{number}" for number in range(4000)]
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}(@[1-9][0-9]{0,3})?", fullmatch=True)
WEIGHTS = st.floats(0.001, 1e6) | st.integers(1, 100)


def alias(**weights: float) -> Alias:
    return Alias("live", arms_of(weights), (), 0.0)


def shares(split: Alias) -> Counter[str]:
    return Counter(split.arm(key).target for key in KEYS)


def test_each_target_gets_its_share_and_each_key_its_target() -> None:
    split = alias(stable=95, canary=5)
    found = shares(split)
    assert abs(found["canary"] / len(KEYS) - 0.05) < 0.012
    assert [split.arm(key) for key in KEYS] == [split.arm(key) for key in KEYS]


def test_weights_are_relative() -> None:
    assert shares(alias(a=1, b=3)) == shares(alias(a=25, b=75))


def test_the_order_of_targets_is_nothing() -> None:
    one, other = alias(a=10, b=30, c=60), alias(c=60, a=10, b=30)
    assert all(one.arm(key).target == other.arm(key).target for key in KEYS)


def test_a_larger_canary_only_takes_from_the_stable_one() -> None:
    before, after = alias(stable=95, canary=5), alias(stable=80, canary=20)
    moved = {
        (before.arm(key).target, after.arm(key).target)
        for key in KEYS
        if before.arm(key).target != after.arm(key).target
    }
    assert moved == {("stable", "canary")}


def test_two_aliases_do_not_choose_the_same_keys() -> None:
    one = Alias("one", arms_of({"a": 50, "b": 50}), (), 0.0)
    other = Alias("other", arms_of({"a": 50, "b": 50}), (), 0.0)
    same = sum(one.arm(key) == other.arm(key) for key in KEYS)
    assert 0.4 < same / len(KEYS) < 0.6


@given(st.text())
def test_any_text_is_a_key(key: str) -> None:
    assert alias(a=1, b=2).arm(key).target in {"a", "b"}


@given(st.dictionaries(NAMES, WEIGHTS, min_size=1, max_size=16))
def test_what_was_written_is_read(targets: dict[str, float]) -> None:
    arms = arms_of(targets)
    assert read_arms(text_of(arms)) == arms
    assert {arm.target: arm.weight for arm in arms} == targets
    assert text_of(()) == ""
    assert read_arms("") == ()


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({}, "1 to 16"),
        ({f"n{number}": 1.0 for number in range(17)}, "1 to 16"),
        ({"a b": 1.0}, "neither a name nor"),
        ({"a@0": 1.0}, "neither a name nor"),
        ({"a": 0.0}, "weight of a"),
        ({"a": -1.0}, "weight of a"),
        ({"a": float("nan")}, "weight of a"),
        ({"a": float("inf")}, "weight of a"),
    ],
)
def test_what_cannot_be_a_target(targets: dict[str, float], words: str) -> None:
    with pytest.raises(AliasInvalid, match=words):
        arms_of(targets)


def test_the_digest_is_of_where_it_leads() -> None:
    one = alias(a=1, b=2)
    assert one.digest == Alias("other", one.arms, (Arm("c", 1, 1.0),), 9.0).digest
    assert one.digest != alias(a=1, b=3).digest
