"""Loads of what stands before a prompt, and of an adapter that waits for its invocation."""

from pathlib import Path

import pytest
from engines import load, store_of, tiny_engine
from peft_adapters import save_lora
from peft_prompts import PREFIX, SOFT, save_prompt

from weft.server.engine.messages import Loaded


def test_the_canary_of_an_alora_is_active_without_its_invocation(tmp_path: Path) -> None:
    invoked = {"target_modules": ["q_proj"], "alora_invocation_tokens": [27, 28]}
    alora = save_lora(tmp_path / "alora", "llama", **invoked)
    with tiny_engine(tmp_path) as engine:
        answer = load(engine, store_of(tmp_path).put(alora))
    assert isinstance(answer, Loaded)
    assert answer.report.method == "alora"
    assert answer.report.canary_difference > 0.1


@pytest.mark.parametrize("method", [*SOFT, *PREFIX])
def test_a_load_answers_with_the_positions_it_takes(method: str, tmp_path: Path) -> None:
    path = save_prompt(tmp_path / method, "llama", method, 5)
    with tiny_engine(tmp_path) as engine:
        answer = load(engine, store_of(tmp_path).put(path))
    assert isinstance(answer, Loaded)
    assert answer.report.method == method.lower()
    assert answer.report.virtual_tokens == 5
