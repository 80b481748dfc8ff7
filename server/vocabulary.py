"""Whether a tokenizer saved beside an adapter is the base's. Knows tokenizer files only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft.adapters.checkpoint import adapter_folder

TOKENIZER_FILE = "tokenizer.json"
_LARGEST_BYTES = 256 << 20
_NAMED = 3


def vocabulary_warning(adapter: Path, served: Mapping[str, int] | None) -> str | None:
    """What is different, in words; None where nothing is, or where there is nothing to compare.

    served: the base's tokens and their ids   adapter: a folder
    """
    own = None if served is None else vocabulary_of(adapter)
    if own is None or served is None:
        return None
    unknown = sorted(token for token in own if token not in served)
    moved = sorted(token for token in own if served.get(token, own[token]) != own[token])
    parts = []
    if unknown:
        parts.append(f"{len(unknown)} that the base's lacks ({_some(unknown)})")
    if moved:
        parts.append(f"{len(moved)} with other ids ({_some(moved)})")
    if not parts:
        return None
    return (
        f"its {TOKENIZER_FILE} has tokens that the base's has not: {' and '.join(parts)}; "
        "prompts are tokenised by the base's"
    )


def tokenizer_remarks(folder: Path, served: Mapping[str, int]) -> tuple[str, ...]:
    """The warning about the tokenizer that lies in an adapter's folder, if there is one to give.

    Raises AdapterInvalid where the folder holds no adapter.
    """
    warning = vocabulary_warning(adapter_folder(folder), served)
    return () if warning is None else (warning,)


def vocabulary_of(folder: Path) -> dict[str, int] | None:
    """Ids by token; None where there is no file of the tokenizers library."""
    path = folder / TOKENIZER_FILE
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return None
        content = json.loads(path.read_bytes())
        found = _ids(content["model"]["vocab"])
        added = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return found | added


def _ids(vocabulary: Any) -> dict[str, int]:
    """A map of ids, or (of unigrams) a list of tokens with their scores."""
    if isinstance(vocabulary, dict):
        return {str(token): int(number) for token, number in vocabulary.items()}
    return {str(token[0]): number for number, token in enumerate(vocabulary)}


def _some(tokens: list[str]) -> str:
    shown = ", ".join(repr(token) for token in tokens[:_NAMED])
    return f"{shown}, …" if len(tokens) > _NAMED else shown
