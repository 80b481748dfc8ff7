"""The yardstick of AdapterHub's adapters against the logits of AdapterHub's own library."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from weft.adapters.checkpoint import read_checkpoint
from weft.server.adapterhub import attach

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapterhub"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
BASES = ("llama", "mistral", "gpt2", "qwen2", "qwen3", "gemma2")
CASES = sorted(set(EXPECTED) - {"ids", *BASES})


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_the_librarys_own_logits(case: str) -> None:
    base = next((arch for arch in BASES if case.startswith(arch)), "llama")
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / base, dtype=torch.float32).eval()
    attach(model, read_checkpoint(FIXTURES / case))
    logits = model(EXPECTED["ids"][None]).logits[0]
    assert (EXPECTED[case] - EXPECTED[base]).abs().max() > 0.1
    assert (logits - EXPECTED[case]).abs().max() < 1e-4
