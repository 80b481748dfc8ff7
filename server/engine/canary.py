"""The text after which every version is compared with the base, as token ids."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

CANARY_TEXT = "Hello, my name is"
CANARY_TOKENS = 8


@dataclass(frozen=True)
class Canary:
    """text: what the tokens say; empty where the base has no tokenizer that can be read here."""

    text: str
    tokens: tuple[int, ...]


def canary_of(folder: Path, vocabulary: int) -> Canary:
    """The first CANARY_TOKENS of the text as the base's tokenizer has them.

    Without one they are tokens from all over the vocabulary, of that many.
    """
    try:
        tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = tuple(tokenizer.encode(CANARY_TEXT).ids[:CANARY_TOKENS])
        text = str(tokenizer.decode(tokens)).strip()
    except Exception:  # noqa: BLE001 - tokenizers raises bare Exception; any prompt will do
        tokens, text = (), ""
    if not tokens or max(tokens) >= vocabulary:
        stride = max(1, vocabulary // CANARY_TOKENS)
        return Canary("", tuple(i * stride % vocabulary for i in range(CANARY_TOKENS)))
    return Canary(text, tokens)
