"""The index finds what a search of the whole text finds."""

from hypothesis import given
from hypothesis import strategies as st

from weft.server.engine.ngrams import LONGEST, Match, NgramIndex

CANDIDATES = 16
TOKENS = st.lists(st.integers(0, 3) | st.sampled_from([150_000, (1 << 32) - 1]), max_size=80)


def searched(tokens: list[int]) -> Match | None:
    """The definition, by trying every place."""
    ends = [end for end in range(2, len(tokens)) if tokens[end - 2 : end] == tokens[-2:]]
    best: Match | None = None
    for end in reversed(ends[-CANDIDATES:]):
        length = 2
        while length < min(LONGEST, end) and tokens[end - length - 1] == tokens[-length - 1]:
            length += 1
        if best is None or length > best.length:
            best = Match(length, end)
    return best


@given(TOKENS, st.lists(st.integers(1, 9), min_size=1))
def test_it_finds_what_a_search_finds_however_the_tokens_came(
    tokens: list[int], strides: list[int]
) -> None:
    index = NgramIndex()
    known, turn = 0, 0
    while known < len(tokens):
        known = min(known + strides[turn % len(strides)], len(tokens))
        turn += 1
        assert index.follow(tokens[:known], most=100)
        assert index.find(tokens[:known]) == searched(tokens[:known])


@given(TOKENS, st.integers(1, 20))
def test_a_match_ends_as_the_sequence_does_and_goes_on_as_it_did(
    tokens: list[int], count: int
) -> None:
    index = NgramIndex()
    assert index.follow(tokens, most=100)
    match = index.find(tokens)
    if match is None:
        return
    assert tokens[match.end - match.length : match.end] == tokens[-match.length :]
    drafts = match.continuation(tokens, count)
    assert len(drafts) == count
    repeated = [*tokens, *drafts]
    for at, draft in enumerate(drafts):
        assert draft == repeated[match.end + at]


def test_a_long_text_is_taken_in_by_parts() -> None:
    tokens = [1, 2, 3, 4] * 25
    index = NgramIndex()
    assert [index.follow(tokens, most=40) for _ in range(4)] == [False, False, True, True]
    assert index.find(tokens) == Match(LONGEST, 96)


def test_the_longer_match_wins_and_of_equal_ones_the_later() -> None:
    def found(*tokens: int) -> Match | None:
        index = NgramIndex()
        index.follow(tokens, most=100)
        return index.find(tokens)

    assert found(7, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2) == Match(3, 3)
    assert found(8, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2) == Match(2, 7)
    assert found(5, 5, 5, 5) == Match(3, 3)
    assert found(1, 2, 3) is None
    assert found(1) is None
    assert found() is None
