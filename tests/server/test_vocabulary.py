"""Tokenizers that were saved beside adapters."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from weft.server.vocabulary import TOKENIZER_FILE, vocabulary_of, vocabulary_warning


def saved(folder: Path, content: Any) -> Path:
    folder.mkdir()
    (folder / TOKENIZER_FILE).write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder


def tokenizer(**changes: int) -> dict[str, Any]:
    return {"model": {"vocab": {"a": 0, "b": 1} | changes}, "added_tokens": []}


def test_equal_ones(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "own")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    assert vocabulary_warning(tmp_path / "own", vocabulary_of(tmp_path / "base")) is None


def test_more_and_other_tokens(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tokenizer())
    own = tokenizer(b=2)
    own["added_tokens"] = [{"content": f"<{i}>", "id": 3 + i} for i in range(5)]
    warning = vocabulary_warning(saved(tmp_path / "own", own), vocabulary_of(base))
    assert warning
    assert "5 that the base's lacks ('<0>', '<1>', '<2>', …) and 1 with other ids ('b')" in warning


def test_fewer_tokens_do_no_harm(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tokenizer(c=2))
    assert vocabulary_warning(saved(tmp_path / "own", tokenizer()), vocabulary_of(base)) is None


def test_unigrams_are_numbered_by_place(tmp_path: Path) -> None:
    content = {"model": {"vocab": [["a", 0.0], ["b", -1.0]]}, "added_tokens": []}
    base = saved(tmp_path / "base", tokenizer())
    assert vocabulary_warning(saved(tmp_path / "own", content), vocabulary_of(base)) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model": {"vocab": 3}, "added_tokens": []}', "[" * 100_000]
)
def test_what_cannot_be_read_is_not_compared(tmp_path: Path, content: str) -> None:
    base = saved(tmp_path / "base", tokenizer())
    assert vocabulary_warning(saved(tmp_path / "own", content), vocabulary_of(base)) is None
    assert vocabulary_warning(tmp_path, vocabulary_of(base)) is None
