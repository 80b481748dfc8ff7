import pickle

from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.errors import AdapterInvalid


@given(st.text(), st.text())
def test_a_refusal_can_be_logged_and_sent_whatever_it_quotes(where: str, reason: str) -> None:
    error = AdapterInvalid(where, reason)
    assert str(error).isprintable()
    str(error).encode()
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - a refusal crosses test processes
    assert (copy.where, copy.reason) == (error.where, error.reason)


def test_a_refusal_is_of_bounded_length() -> None:
    assert len(str(AdapterInvalid("w" * 10_000, "r" * 10_000))) < 2000
