"""The trainer: a short run writes the whole layout, and a second one writes the same bytes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from weft.server.demo import train
from weft.server.demo.recipes import RECIPES, Phase

# Announced by peft for an adapter of a tied head, and by transformers' own code to itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
FILES = {
    "base/chat_template.jinja",
    "base/config.json",
    "base/generation_config.json",
    "base/model.safetensors",
    "base/tokenizer.json",
    "base/tokenizer_config.json",
    "adapters/returns-desk/adapter_config.json",
    "adapters/returns-desk/adapter_model.safetensors",
    "adapters/formal-letter/adapter_config.json",
    "adapters/formal-letter/adapter_model.safetensors",
    "report.json",
    "examples.json",
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run of seconds; torch's settings are put back after it."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(train, "BASE_PHASES", (Phase(2, peak=1.0), Phase(1, peak=0.5)))
    monkeypatch.setattr(train, "TOKENIZER_CONVERSATIONS", 800)
    monkeypatch.setattr(train, "TOKENS_PER_BATCH", 256)
    monkeypatch.setattr(train, "HELD_OUT", 2)
    first_and_last = tuple(replace(recipe, steps=2) for recipe in (RECIPES[0], RECIPES[-1]))
    monkeypatch.setattr(train, "RECIPES", first_and_last)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.mark.usefixtures("short")
def test_training_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        train.main(tmp_path / name)
        paths = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        written.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in paths})
    assert set(written[0]) == FILES
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in b"".join(written[0].values())
