"""Token ids to text, a token at a time, never half a character. Knows no requests.

Each token stands for bytes, whatever its neighbours are; text is their UTF-8 decoding.
"""

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SAMPLE = "A line, 2 more: naïve — 日本語 🙂\n\tdef f(x):  return x"


class TokenizerUnusable(Exception):
    """A model folder whose tokenizer cannot serve; the message says what is missing."""


class TokenBytes(dict[int, bytes]):
    """What each token adds to a text that has begun; special tokens add nothing.

    Computed when first asked for. Raises TokenizerUnusable where the tokenizer's decoder makes a
    token's text depend on more than the token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer)
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._special = {
            token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special
        }
        sample = tokenizer.encode(_SAMPLE, add_special_tokens=False).ids
        self._context = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._context_length = len(tokenizer.decode(self._context))
        expected = self._in_context(sample)
        if b"".join(self[token] for token in sample).decode(errors="replace") != expected:
            raise TokenizerUnusable(f"its decoder ({', '.join(kinds) or 'none'}) is not supported")

    def __missing__(self, token: int) -> bytes:
        self[token] = piece = self._compute(token)
        return piece

    def shown(self, token: int) -> bytes:
        """Like the mapping, but a special token's own name instead of nothing."""
        return self[token] or (self._tokenizer.id_to_token(token) or "").encode()

    def _compute(self, token: int) -> bytes:
        name = self._tokenizer.id_to_token(token)
        if name is None or token in self._special:
            return b""
        if self._byte_level:
            return _byte_level(name)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(name)):
            return bytes.fromhex(match[1])
        return self._in_context([token]).encode()

    def _in_context(self, tokens: list[int]) -> str:
        return self._tokenizer.decode([*self._context, *tokens])[self._context_length :]


class Detokenizer:
    """The text of one growing sequence of tokens."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Iterable[int]) -> str:
        """The whole characters that these tokens complete."""
        return self._decoder.decode(b"".join(self._token_bytes[token] for token in tokens))

    def end(self) -> str:
        """What is left of a character that no token completed: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)


def _decoder_kinds(tokenizer: Tokenizer) -> list[str]:
    """The types of the tokenizer's decoder and of its parts, in order."""
    if tokenizer.decoder is None:
        return []
    decoder: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return [part["type"] for part in decoder.get("decoders", [decoder])]


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level vocabularies write each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    shifted = {chr(0x100 + rank): byte for rank, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_ALPHABET = _byte_alphabet()


def _byte_level(name: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in name)
    except KeyError:  # an added token is written as itself
        return name.encode()
