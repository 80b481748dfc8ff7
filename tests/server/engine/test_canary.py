"""The text that versions are compared on, and what loads say of the comparison."""

from pathlib import Path

from engines import load, store_of, tiny_engine
from peft_methods import save_method
from tiny_models import VOCAB_SIZE, save_tiny, tiny_tokenizer

from weft.server.engine.canary import CANARY_TEXT, CANARY_TOKENS, canary_of
from weft.server.engine.messages import Loaded


def test_the_text_as_the_bases_own_tokenizer_has_it(tmp_path: Path) -> None:
    canary = canary_of(save_tiny("llama", tmp_path), VOCAB_SIZE)
    assert list(canary.tokens) == tiny_tokenizer().encode(CANARY_TEXT)[:CANARY_TOKENS]
    assert canary.text
    assert CANARY_TEXT.startswith(canary.text)


def test_without_a_tokenizer_tokens_from_all_over_the_vocabulary(tmp_path: Path) -> None:
    canary = canary_of(tmp_path, 800)
    assert canary.text == ""
    assert canary.tokens == (0, 100, 200, 300, 400, 500, 600, 700)
    assert set(canary_of(tmp_path, 3).tokens) == {0, 1, 2}


def test_a_tokenizer_of_more_tokens_than_the_base_has(tmp_path: Path) -> None:
    canary = canary_of(save_tiny("llama", tmp_path), 50)
    assert canary.text == ""
    assert max(canary.tokens) < 50


def test_trained_tokens_are_served_though_the_text_has_none_of_them(tmp_path: Path) -> None:
    """Their rows differ from the base's, which was checked before: it is no silent no-op."""
    absent = [token for token in (500, 501) if token not in tiny_tokenizer().encode(CANARY_TEXT)]
    unseen = save_method(tmp_path / "a", "llama", "tokens", token_indices=absent)
    seen = save_method(tmp_path / "b", "llama", "tokens", token_indices=list(range(400)))
    store = store_of(tmp_path)
    with tiny_engine(tmp_path) as engine:
        first, second = (load(engine, store.put(folder)) for folder in (unseen, seen))
    assert isinstance(first, Loaded)
    assert first.report.canary_difference == first.report.canary_shift == 0
    assert first.report.checks[-1] == (
        "canary: the base's logits, as its last token is none of those trained"
    )
    assert isinstance(second, Loaded)
    assert second.report.canary_difference > 0.01
    assert 0 < second.report.canary_shift <= 1
    assert second.report.checks[-1] == "canary: finite logits that differ from the base's"
