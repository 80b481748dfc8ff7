from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import edit_config
from peft_adapters import save_lora
from peft_methods import save_method
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from weft.adapters.base import BaseModules
from weft.adapters.card import Card, describe
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.methods import lower
from weft.adapters.tensors import read_tensors

MODEL = tiny_model("llama")


ADAPTERHUB = Path(__file__).parents[1] / "fixtures" / "adapterhub"


def card(folder: Path, dtype: torch.dtype = torch.bfloat16, model: PreTrainedModel = MODEL) -> Card:
    checkpoint = read_checkpoint(folder)
    base = BaseModules.of(model)
    plan = lower(checkpoint, read_tensors(checkpoint), base)
    return describe(checkpoint, plan, base, dtype=dtype, base_names=("some/llama-tiny",))


def test_a_lora(tmp_path: Path) -> None:
    targets = ["q_proj", "embed_tokens"]
    result = card(save_lora(tmp_path, "llama", target_modules=targets, r=3, lora_alpha=6))
    trained = 2 * 3 * (64 + 64) + 3 * (512 + 64)
    assert result.method == "lora"
    assert result.targets == ("embed_tokens", "q_proj")
    assert (result.modules, result.tensors, result.rank) == (3, 7, 3)
    assert result.alpha == 6.0
    assert result.trained == trained
    assert (result.bytes, result.delta_bytes) == (2 * trained, 0)
    assert result.share == trained / MODEL.num_parameters()
    assert result.checks
    assert result.warnings == ()


def test_a_saved_head_counts_as_trained_and_a_copy_of_the_base_does_not(tmp_path: Path) -> None:
    targets: dict[str, Any] = {"target_modules": ["q_proj"], "r": 3}
    plain = card(save_lora(tmp_path / "plain", "llama", **targets))
    saved = card(save_lora(tmp_path / "saved", "llama", **targets, modules_to_save=["lm_head"]))
    assert saved.trained == plain.trained + 512 * 64
    assert saved.targets == ("lm_head", "q_proj")
    assert saved.rank == 3


def test_an_unconverted_pissa_costs_twice_its_file(tmp_path: Path) -> None:
    config: dict[str, Any] = {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    result = card(save_lora(tmp_path, "llama", r=4, **config), dtype=torch.float32)
    assert result.rank == 8
    assert result.bytes == 8 * result.trained


@pytest.mark.parametrize(
    ("name", "warnings"),
    [("/home/someone/llama-tiny", 0), ("other/llama-tiny", 0), ("a/llama-bnb-8bit", 1)],
)
def test_another_bases_name(name: str, warnings: int, tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "llama", target_modules=["q_proj"])
    result = card(edit_config(folder, base_model_name_or_path=name))
    assert len(result.warnings) == warnings
    assert "/" not in "".join(result.warnings)


@pytest.mark.parametrize("name", ["unsloth/llama-tiny-bnb-4bit", "other/llama-tiny-4bit"])
def test_a_four_bit_base_that_is_served_in_full(name: str, tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "llama", target_modules=["q_proj"])
    (warning,) = card(edit_config(folder, base_model_name_or_path=name)).warnings
    assert "a 4-bit base, but served on one that is not quantised: --quantization nf4" in warning


def test_a_rank_beyond_the_matrix(tmp_path: Path) -> None:
    result = card(save_lora(tmp_path, "llama", target_modules=["k_proj"], r=40))
    assert "rank 40 is larger than a side of model.layers.0.self_attn.k_proj" in result.warnings[0]


@pytest.mark.parametrize(
    ("method", "words", "size"), [("hira", "dense delta", 49152), ("shira", "sparse delta", 15128)]
)
def test_a_delta_says_what_it_costs(method: str, words: str, size: int, tmp_path: Path) -> None:
    result = card(save_method(tmp_path, "llama", method))
    (warning,) = result.warnings
    assert result.delta_bytes == size
    assert warning == f"{words}: a matrix for each of 6 modules, {size} bytes on the device"


@pytest.mark.parametrize(
    ("case", "width", "trained", "head"),
    [
        ("pfeiffer", 4, 2 * (2 * 32 * 4 + 32 + 4), 0),
        ("houlsby", 8, 2 * (2 * 32 * 8 + 32 + 8 + 1) + 2 * (2 * 32 * 2 + 32 + 2 + 1), 0),
        ("pfeiffer-head", 2, 2 * (2 * 32 * 2 + 32 + 2), 64 * 32),
    ],
)
def test_a_bottleneck_adapter(case: str, width: int, trained: int, head: int) -> None:
    """What is trained is its networks, and the head that comes with it if it is another one."""
    model = AutoModelForCausalLM.from_pretrained(ADAPTERHUB / "llama")
    result = card(ADAPTERHUB / case, torch.float32, model)
    assert result.method == "bottleneck"
    assert result.rank == width
    assert result.trained == trained + head
    assert result.bytes == 4 * result.trained - 4 * 4 * (case == "houlsby")  # scales are folded in


@pytest.mark.parametrize(
    ("indices", "targets", "expected"),
    [([5, 9], None, True), ([5, 9], ["lm_head"], False)],
)
def test_new_embeddings_of_tokens_are_told_from_all_else(
    indices: list[int], targets: list[str] | None, expected: bool, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"token_indices": indices, "target_modules": targets}
    folder = save_method(tmp_path, "llama", "tokens", **fields)
    assert card(folder).tokens_only is expected
