"""Bottleneck adapters against the logits that AdapterHub's own library computed for them.

The fixtures and the script that made them: tests/fixtures/adapterhub.
"""

from pathlib import Path

import pytest
import torch
from adapted_model import AdaptedModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

FIXTURES = Path(__file__).parents[2] / "fixtures" / "adapterhub"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
IDS = EXPECTED["ids"]
CASES = {
    "llama": (
        "pfeiffer",
        "pfeiffer-head",
        "houlsby",
        "houlsby-left-out",
        "parallel",
        "parallel-channel",
        "residual-inside",
    ),
    "mistral": ("mistral-pfeiffer", "mistral-houlsby"),
    "gpt2": ("gpt2-pfeiffer", "gpt2-parallel"),
    "qwen2": ("qwen2-pfeiffer", "qwen2-parallel"),
    "qwen3": ("qwen3-pfeiffer", "qwen3-houlsby"),
    "gemma2": ("gemma2-houlsby", "gemma2-parallel"),
}
TOLERANCE = 1e-4


def base(arch: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        FIXTURES / arch, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@pytest.mark.parametrize("arch", CASES)
def test_one_batch_of_all_and_the_base(arch: str) -> None:
    adapted = AdaptedModel(base(arch), [FIXTURES / case for case in CASES[arch]])
    slots = [-1, *range(len(CASES[arch])), -1]
    logits = adapted.logits(IDS.expand(len(slots), -1), slots)
    for name, found in zip((arch, *CASES[arch], arch), logits, strict=True):
        difference = (found - EXPECTED[name]).abs().max()
        assert difference <= TOLERANCE, f"{name}: {difference}"
    torch.testing.assert_close(logits[0], logits[-1], rtol=0, atol=0)
