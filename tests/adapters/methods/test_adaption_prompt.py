"""Adaption prompts against peft's own forward, and what is refused of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import AdaptedModel, lower_folder
from adapter_files import edit_config
from peft_adapters import peft_logits
from peft_prompts import save_adaption_prompt as save
from tiny_models import tiny_model

from weft.adapters.base import KVShape
from weft.adapters.errors import AdapterInvalid
from weft.adapters.operations import AttendedPrompt

TOLERANCE = 2e-5
IDS = torch.randint(5, 512, (4, 13), generator=torch.Generator().manual_seed(3))
ATTENTION = {f"model.layers.{layer}.self_attn": KVShape(2, 16, 16) for layer in range(2)}


@pytest.mark.parametrize("arch", ["llama", "mistral", "gpt2"])
def test_a_mixed_batch_equals_peft_with_each_alone(arch: str, tmp_path: Path) -> None:
    folders = [
        save(tmp_path / "long", arch, length=5, gate=0.8),
        save(tmp_path / "short", arch, length=1, layers=1, gate=-1.5),
    ]
    logits = AdaptedModel(arch, folders).logits(IDS, [-1, 0, 1, -1])
    base = peft_logits(arch, None, IDS)
    for row, folder in enumerate((None, *folders, None)):
        ids = IDS[row : row + 1]
        expected = peft_logits(arch, folder, ids)[0]
        assert (logits[row] - expected).abs().max() <= TOLERANCE, folder
        assert folder is None or (expected - base[row]).abs().max() > 0.1, folder


def test_what_is_lowered(tmp_path: Path) -> None:
    path = save(tmp_path / "adapter", "llama", length=4, layers=1)
    plan = lower_folder(path, tiny_model("llama"), ATTENTION)
    (op,) = plan.of_kind(AttendedPrompt).values()
    assert plan.method == "adaption_prompt"
    assert plan.ops == {"model.layers.1.self_attn.o_proj": (op,)}
    assert op.keys.shape == op.values.shape == (4, 2, 16)


@pytest.mark.parametrize(
    ("arch", "model", "fields", "where"),
    [
        ("llama", {}, {"adapter_layers": 3}, "adapter_config.json: adapter_layers"),
        ("llama", {}, {"target_modules": "mlp"}, "adapter_config.json: target_modules"),
        ("llama", {}, {"unknown": 1}, "adapter_config.json: unknown"),
        ("llama", {"attention_bias": True}, {}, "adapter_config.json: peft_type"),
        ("llama", {}, {"adapter_layers": 1}, "base_model.model.model.layers.0.self_attn."),
        ("llama", {}, {"adapter_len": 2}, "base_model.model.model.layers.0.self_attn."),
        ("qwen2", {}, {}, "adapter_config.json: peft_type"),
        ("gpt_neox", {}, {}, "adapter_config.json: peft_type"),
    ],
)
def test_refusals(
    arch: str, model: dict[str, Any], fields: dict[str, Any], where: str, tmp_path: Path
) -> None:
    path = edit_config(save(tmp_path / "adapter", "llama"), **fields)
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(path, tiny_model(arch, **model), ATTENTION)
    assert caught.value.where.startswith(where)


def test_a_closed_gate_changes_nothing_and_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "adapter", "llama", gate=0)
    with pytest.raises(AdapterInvalid, match="changes nothing"):
        lower_folder(path, tiny_model("llama"), ATTENTION)


def test_shapes_of_the_attention_must_be_known(tmp_path: Path) -> None:
    path = save(tmp_path / "adapter", "llama")
    with pytest.raises(AdapterInvalid, match="attention layers are known"):
        lower_folder(path, tiny_model("llama"))
