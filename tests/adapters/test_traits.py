"""What several versions ask of one sequence."""

import pytest

from weft.adapters.traits import PLAIN, Traits, combined

ALORA, SCALE = Traits(invocation=(7,)), Traits(additive=False)
SOFT, PREFIX = Traits(embeddings=3), Traits(prefix=5)


@pytest.mark.parametrize("traits", [PLAIN, ALORA, SCALE, SOFT, PREFIX])
def test_one_version_asks_for_itself(traits: Traits) -> None:
    assert combined([(traits, 1.0)]) == traits


def test_several_ask_for_what_any_of_them_does() -> None:
    assert combined([(PLAIN, 0.5), (PLAIN, -2.0)]) == PLAIN
    assert combined([(PLAIN, 0.5), (SOFT, 1.0), (PLAIN, 1.0)]) == SOFT
    assert combined([(PREFIX, 1.0), (SCALE, 1.0)]) == Traits(prefix=5, additive=False)


@pytest.mark.parametrize(
    "parts",
    [
        [(ALORA, 1.0), (PLAIN, 1.0)],
        [(ALORA, 0.5)],
        [(SCALE, 0.5)],
        [(SOFT, 2.0), (PLAIN, 1.0)],
        [(SOFT, 1.0), (PREFIX, 1.0)],
        [(SCALE, 1.0), (SCALE, 1.0)],
    ],
)
def test_what_no_sequence_can_do(parts: list[tuple[Traits, float]]) -> None:
    with pytest.raises(ValueError, match=" "):
        combined(parts)


def test_a_version_has_one_way_to_stand_before_a_prompt() -> None:
    with pytest.raises(ValueError, match="either"):
        Traits(embeddings=1, prefix=1)
