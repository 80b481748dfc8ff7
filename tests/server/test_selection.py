"""The words for adapters, and which of them go together."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.adapters.version import NAME
from weft.server.errors import ApiError
from weft.server.selection import AdapterName, Member, Selected, check, parse

LORA = Member("a@1", "digest-a", 1.0, "lora", frozenset({"q_proj"}), frozenset(), 0, 100)
OTHER = replace(LORA, id="b@2", digest="digest-b")
IA3 = replace(
    LORA,
    id="scale@1",
    digest="digest-s",
    method="ia3",
    targets=frozenset({"k_proj"}),
    exclusive=frozenset({"k_proj"}),
)
PROMPT = replace(
    LORA, id="p@1", digest="digest-p", method="prefix_tuning", targets=frozenset(), virtual_tokens=5
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a", [("a", None, 1.0)]),
        ("a@3", [("a", 3, 1.0)]),
        ("a:0.7,b:0.3", [("a", None, 0.7), ("b", None, 0.3)]),
        ("a@2:1.5, b.c-d_e", [("a", 2, 1.5), ("b.c-d_e", None, 1.0)]),
        ("a:-0.25", [("a", None, -0.25)]),
        ("acme/a@2:0.5,b", [("acme/a", 2, 0.5), ("b", None, 1.0)]),
    ],
)
def test_words(words: str, expected: list[tuple[str, int | None, float]]) -> None:
    selected = parse(words)
    assert selected is not None
    assert [(str(one.adapter), one.version, one.weight) for one in selected] == expected


def test_a_slash_names_another_tenants() -> None:
    assert parse("acme/a") == [Selected(AdapterName("acme", "a"), None, 1.0)]
    assert parse("a") == [Selected(AdapterName(None, "a"), None, 1.0)]


NAMES = st.from_regex(NAME, fullmatch=True)
SELECTED = st.builds(
    Selected,
    st.builds(AdapterName, st.none() | NAMES, NAMES),
    st.none() | st.integers(1, 999_999_999),
    st.integers(1, 100_000).map(lambda thousandths: thousandths / 1000) | st.just(-0.5),
)


def written(selected: Selected) -> str:
    version = "" if selected.version is None else f"@{selected.version}"
    return f"{selected.adapter}{version}:{selected.weight:.9f}"


@given(st.lists(SELECTED, min_size=1, max_size=8))
def test_what_is_written_is_read(selected: list[Selected]) -> None:
    assert parse(",".join(map(written, selected))) == selected


@given(st.text() | st.text("ab1@:/.,- ", max_size=12))
def test_any_words_name_adapters_or_nothing(words: str) -> None:
    try:
        found = parse(words)
    except ApiError:
        return
    assert found is None or parse(",".join(map(written, found))) == found


@pytest.mark.parametrize(
    "words",
    [
        "",
        "a,",
        ",a",
        "a b",
        "a@0",
        "a@x",
        "a:",
        "a:x",
        "a:1e3",
        "a:.5",
        "a:nan",
        "/a",
        "a/",
        "a/b/c",
        "a;b",
    ],
)
def test_other_words_name_nothing(words: str) -> None:
    assert parse(words) is None


@pytest.mark.parametrize("words", ["a:0", "a:0.0", "a:101", "a:-500", ",".join("abcdefghi")])
def test_what_cannot_be_used_is_told(words: str) -> None:
    with pytest.raises(ApiError, match="invalid_parameter"):
        parse(words)


@pytest.mark.parametrize(
    "members",
    [
        [LORA],
        [replace(LORA, method="alora")],
        [IA3],
        [LORA, OTHER],
        [replace(LORA, weight=0.5), replace(OTHER, weight=-2.0)],
        [replace(LORA, weight=0.5), IA3, PROMPT],
    ],
)
def test_what_goes_together(members: list[Member]) -> None:
    check(members, room=1000)


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([replace(LORA, method="alora"), OTHER], ["a@1"]),
        ([replace(LORA, method="alora", weight=0.5)], ["a@1"]),
        ([replace(IA3, weight=0.5)], ["scale@1", "ia3"]),
        ([replace(PROMPT, weight=0.5), LORA], ["p@1"]),
        ([LORA, LORA], ["a@1"]),
        ([PROMPT, replace(PROMPT, id="q@1", digest="digest-q")], ["p@1", "q@1"]),
        ([IA3, replace(IA3, id="t@1", digest="t", exclusive=frozenset({"x"}))], ["scale@1", "t@1"]),
        ([replace(LORA, targets=frozenset({"k_proj"})), IA3], ["a@1", "scale@1", "k_proj"]),
        ([replace(LORA, bytes=600), replace(OTHER, bytes=500)], ["a@1", "b@2", "1100", "1000"]),
    ],
)
def test_what_does_not_is_named(members: list[Member], named: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        check(members, room=1000)
    message = caught.value.body_bytes("request").decode()
    assert all(word in message for word in named), message
