"""Lowering of what stands before a prompt, and of LoRA that waits for its invocation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_adapters import save_lora
from peft_prompts import PREFIX, SOFT, save_prompt
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from weft.adapters.base import BaseModules, KVShape
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods import lower
from weft.adapters.operations import AttentionPrefix, LowRank, VirtualTokens
from weft.adapters.plan import AdapterPlan
from weft.adapters.tensors import read_tensors
from weft.adapters.traits import Traits, last_occurrence

LAYERS = {f"model.layers.{i}.self_attn": KVShape(2, 16, 16) for i in range(2)}
BASE = BaseModules.of(tiny_model("llama"), attention=LAYERS)


def lowered(path: Path, base: BaseModules = BASE) -> AdapterPlan:
    checkpoint = read_checkpoint(path)
    return lower(checkpoint, read_tensors(checkpoint), base)


def refusal(path: Path, base: BaseModules = BASE) -> AdapterInvalid:
    with pytest.raises(AdapterInvalid) as caught:
        lowered(path, base)
    return caught.value


def edit(path: Path, **fields: Any) -> Path:
    """Changes fields of the configuration; None drops one."""
    file = path / "adapter_config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


@pytest.mark.parametrize("method", SOFT)
def test_soft_prompts_are_rows_of_the_embedding(method: str, tmp_path: Path) -> None:
    path = save_prompt(tmp_path, "llama", method, 5)
    plan = lowered(path)
    (op,) = plan.of_kind(VirtualTokens).values()
    assert plan.ops == {"model.embed_tokens": (op,)}
    assert plan.traits == Traits(embeddings=5)
    tensors = load_file(path / "adapter_model.safetensors")
    expected = tensors["prompt_embeddings"]
    if method == "MULTITASK_PROMPT_TUNING":
        expected = expected * (tensors["prefix_task_cols"][1] @ tensors["prefix_task_rows"][1])
    torch.testing.assert_close(op.rows, expected)


@pytest.mark.parametrize("method", PREFIX)
def test_prefixes_are_keys_and_values_of_every_layer(method: str, tmp_path: Path) -> None:
    path = save_prompt(tmp_path, "llama", method, 5)
    plan = lowered(path)
    assert plan.traits == Traits(prefix=5)
    rows = load_file(path / "adapter_model.safetensors")["prompt_embeddings"].view(5, 2, 2, 2, 16)
    for index, name in enumerate(LAYERS):
        (op,) = plan.ops[name]
        assert isinstance(op, AttentionPrefix)
        assert torch.equal(op.keys, rows[:, index, 0])
        assert torch.equal(op.values, rows[:, index, 1])


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"num_transformer_submodules": 2}, "num_transformer_submodules"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 6}, "prompt_embeddings"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"new_idea": True}, "new_idea"),
    ],
)
@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_a_field_is_named(fields: dict[str, Any], where: str, method: str, tmp_path: Path) -> None:
    path = edit(save_prompt(tmp_path, "llama", method, 5), **fields)
    assert refusal(path).where.endswith(where)


@pytest.mark.parametrize("field", ["num_layers", "num_attention_heads", "token_dim"])
def test_a_prefix_for_another_base_is_told_by_the_field(field: str, tmp_path: Path) -> None:
    path = edit(save_prompt(tmp_path, "llama", "PREFIX_TUNING", 5), **{field: 8})
    assert refusal(path).where.endswith(field)
    assert "another base" in refusal(path).reason


@pytest.mark.parametrize(
    "layers", [{}, {"a": KVShape(2, 16, 8)}, {"a": KVShape(2, 16, 16), "b": KVShape(1, 16, 16)}]
)
def test_a_base_whose_cache_peft_does_not_know(layers: dict[str, KVShape], tmp_path: Path) -> None:
    path = save_prompt(tmp_path, "llama", "PREFIX_TUNING", 5)
    base = BaseModules.of(tiny_model("llama"), attention=layers)
    assert refusal(path, base).where.endswith("peft_type")


@pytest.mark.parametrize("flag", [True, False])
def test_the_projection_is_applied_already(flag: bool, tmp_path: Path) -> None:
    path = save_prompt(tmp_path, "llama", "PREFIX_TUNING", 5)
    assert lowered(edit(path, prefix_projection=flag)).traits.prefix == 5


def test_unused_and_missing_tensors(tmp_path: Path) -> None:
    path = save_prompt(tmp_path, "llama", "P_TUNING", 5)
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"more": torch.ones(1)}, file)
    assert refusal(path).where == "more"
    save_file({"prompt_embedding": tensors["prompt_embeddings"]}, file)
    assert "prompt_embeddings" in str(refusal(path))


@pytest.mark.parametrize("task", [None, 3, -1, True, "1", 1.0])
def test_one_of_many_tasks_must_be_named(task: Any, tmp_path: Path) -> None:
    path = edit(save_prompt(tmp_path, "llama", "MULTITASK_PROMPT_TUNING", 5), task_id=task)
    assert refusal(path).where.endswith("task_id")


# ---- activated LoRA


def test_invocation_tokens_are_a_trait(tmp_path: Path) -> None:
    path = save_lora(
        tmp_path, "llama", r=2, target_modules=["q_proj"], alora_invocation_tokens=[7, 8]
    )
    plan = lowered(path)
    assert plan.method == "alora"
    assert plan.traits == Traits(invocation=(7, 8))
    assert all(isinstance(op, LowRank) for _, op in plan)


@pytest.mark.parametrize("tokens", [[], [1, -2], [1.5], "x", 3, [True]])
def test_invocation_tokens_are_a_list_of_ids(tokens: Any, tmp_path: Path) -> None:
    path = save_lora(tmp_path, "llama", r=2, target_modules=["q_proj"])
    found = refusal(edit(path, alora_invocation_tokens=tokens))
    assert found.where.endswith("alora_invocation_tokens")


def test_what_is_trained_beside_an_alora_is_refused(tmp_path: Path) -> None:
    path = save_lora(tmp_path, "llama", r=2, target_modules=["q_proj"], use_dora=True)
    found = refusal(edit(path, alora_invocation_tokens=[3]))
    assert found.where.endswith("alora_invocation_tokens")


def test_the_last_occurrence_counts() -> None:
    assert last_occurrence((1, 2, 3, 1, 2), (1, 2)) == 3
    assert last_occurrence((1, 1, 1), (1, 1)) == 1
    assert last_occurrence((1, 2), (1, 2)) == 0
    assert last_occurrence((1, 2), (2, 1)) is None
    assert last_occurrence((1,), (1, 2)) is None
