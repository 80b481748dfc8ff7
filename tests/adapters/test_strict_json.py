import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.errors import AdapterInvalid
from weft.adapters.strict_json import parse_object

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), values, max_size=5))
def test_what_json_writes_is_read_back(value: dict[str, object]) -> None:
    assert parse_object(json.dumps(value).encode(), "file", max_depth=30) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "one JSON object"),
        (b"3", "one JSON object"),
        (b'{"a": 1, "a": 1}', "'a' occurs twice"),
        (b'{"x": {"a": 1, "a": 2}}', "'a' occurs twice"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": 1e400}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON in UTF-8"),
        (b'{"a\\udfff": 1}', "not valid JSON in UTF-8"),
        (b'{"a": "\xff"}', "not valid JSON in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON in UTF-8"),
        (b'{"a": ' + b"[" * 6 + b"]" * 6 + b"}", "more than 3 levels"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_other_json_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(AdapterInvalid) as caught:
        parse_object(text, "file", max_depth=3)
    assert caught.value.where == "file"
    assert reason in caught.value.reason


@given(st.binary())
def test_bytes_end_in_an_object_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(AdapterInvalid):
        assert isinstance(parse_object(data, "file", max_depth=3), dict)


def test_the_depth_allowed_is_exact() -> None:
    assert parse_object(b'{"a": [[1]]}', "file", max_depth=3) == {"a": [[1]]}
    with pytest.raises(AdapterInvalid):
        parse_object(b'{"a": [[[1]]]}', "file", max_depth=3)
