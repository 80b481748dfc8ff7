"""Checks of single answers."""

import pytest

from weft.server.evaluation import outcome
from weft.server.evaluation.outcome import (
    MAX_PATTERN,
    PatternInvalid,
    compile_pattern,
    is_json,
    is_same,
    matches,
)


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": [1, 2.5, null]}', True),
        (' "text" \n', True),
        ("7", True),
        ("", False),
        ('{"a": 1} and more', False),
        ("{'a': 1}", False),
        ("NaN", False),
        ("[" * 100_000, False),
    ],
)
def test_json(answer: str, valid: bool) -> None:
    assert is_json(answer) is valid


def test_white_space_around_an_answer_is_nothing() -> None:
    assert is_same(" yes\n", "yes")
    assert not is_same("yes, sir", "yes")


def test_a_pattern_is_found_anywhere_unless_it_is_anchored() -> None:
    assert matches("b+", "abbc")
    assert not matches("^b+$", "abbc")


@pytest.mark.parametrize("pattern", ["(", "a" * (MAX_PATTERN + 1), r"\p{L}", "(?R)"])
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(PatternInvalid):
        compile_pattern(pattern)


def test_a_match_that_explodes_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "_SECONDS", 0.05)
    with pytest.raises(PatternInvalid, match="too long"):
        matches("^(a|a)*$", "a" * 60 + "b")
