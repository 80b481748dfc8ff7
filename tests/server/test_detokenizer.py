"""Incremental detokenising against the tokenizers library's decoding of the whole sequence."""

import pytest
from api_server import tiny_text
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import VOCAB_SIZE, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from weft.server.detokenizer import Detokenizer, TokenBytes, TokenizerUnusable

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_like() -> Tokenizer:
    """BPE with a leading-space sign and byte fallback, as Llama 2, Mistral and Gemma have."""
    words = ["▁", "a", "b", "▁a", "▁b", "日", "▁日本"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", *BYTES, *words])}
    merges = [("▁", "a"), ("▁", "b")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def word_pieces() -> Tokenizer:
    vocab = {token: i for i, token in enumerate(["[UNK]", "a", "##b", "##日", "c"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = tiny_tokenizer().backend_tokenizer
    tokenizer.add_tokens([AddedToken("naïve 日本"), AddedToken("  ")])
    return tokenizer


BYTE_LEVEL = byte_level()
SENTENCEPIECE = sentencepiece_like()
WORD_PIECES = word_pieces()


def deltas(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(TokenBytes(tokenizer))
    return [*(detokenizer.push((token,)) for token in tokens), detokenizer.end()]


def continuation(tokenizer: Tokenizer, tokens: list[int]) -> str:
    """What the tokens add to a text that they continue."""
    (begun,) = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
    return tokenizer.decode([begun, *tokens]).removeprefix(tokenizer.decode([begun]))


@given(st.lists(st.integers(0, VOCAB_SIZE + 1), max_size=40))
def test_byte_level_equals_the_whole_for_any_tokens(tokens: list[int]) -> None:
    assert "".join(deltas(BYTE_LEVEL, tokens)) == BYTE_LEVEL.decode(tokens)


@given(st.text(max_size=40))
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["bytes", "fallback"])
def test_any_text_survives_token_by_token(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(deltas(tokenizer, tokens)) == continuation(tokenizer, tokens)


@given(st.lists(st.sampled_from([0, 1, *range(258, 265)]), max_size=30))
def test_byte_fallback_equals_the_whole_for_any_words(tokens: list[int]) -> None:
    assert "".join(deltas(SENTENCEPIECE, tokens)) == continuation(SENTENCEPIECE, tokens)


@given(st.binary(max_size=30))
def test_byte_tokens_decode_as_their_bytes(data: bytes) -> None:
    assert "".join(deltas(SENTENCEPIECE, [2 + byte for byte in data])) == data.decode(
        errors="replace"
    )


@given(st.lists(st.integers(0, 4), max_size=20))
def test_word_pieces_equal_the_whole(tokens: list[int]) -> None:
    assert "".join(deltas(WORD_PIECES, tokens)) == continuation(WORD_PIECES, tokens)


@given(st.text(st.characters(min_codepoint=0x80), min_size=1, max_size=20))
def test_no_delta_holds_half_a_character(text: str) -> None:
    tokens = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    assert all("\ufffd" not in delta for delta in deltas(BYTE_LEVEL, tokens)) or "\ufffd" in text


def test_special_tokens_are_silent_but_can_be_shown() -> None:
    pieces = TokenBytes(BYTE_LEVEL)
    assert pieces[2] == b""
    assert pieces.shown(2) == b"<eos>"


def test_ids_beyond_the_vocabulary_are_silent() -> None:
    assert deltas(BYTE_LEVEL, [10_000]) == ["", ""]


def test_a_decoder_that_needs_neighbours_is_refused() -> None:
    vocab = {"A": 0, "a": 1, "[UNK]": 2}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.CTC()
    with pytest.raises(TokenizerUnusable, match="CTC"):
        TokenBytes(tokenizer)


def test_many_tokens_cost_the_same_each() -> None:
    """An answer of invalid bytes only is not decoded over and over."""
    detokenizer = tiny_text().detokenizer()
    byte = next(t for t in range(VOCAB_SIZE) if tiny_text().token_bytes[t] == b"\xff")
    assert "".join(detokenizer.push((byte,)) for _ in range(5000)) == "\ufffd" * 5000
