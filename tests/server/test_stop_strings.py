"""Stop strings against the plain definition: the text before the first occurrence of any."""

from hypothesis import given
from hypothesis import strategies as st

from weft.server.stop_strings import StopStrings

TEXT = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


@given(TEXT, STOPS, st.data())
def test_any_cutting_into_pieces_gives_the_text_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stopper = StopStrings(stops)
    shown = ""
    consumed = ""
    for piece in pieces:
        consumed += piece
        shown += stopper.push(piece)
        if stopper.matched:
            break
    else:
        shown += stopper.end()
    firsts = [consumed.find(stop) for stop in stops if stop in consumed]
    assert stopper.matched == bool(firsts)
    assert shown == (consumed[: min(firsts)] if firsts else text)


@given(TEXT, STOPS)
def test_no_more_is_held_back_than_could_begin_a_stop(text: str, stops: list[str]) -> None:
    stopper = StopStrings(stops)
    shown = "".join(stopper.push(character) for character in text)
    if not stopper.matched:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
