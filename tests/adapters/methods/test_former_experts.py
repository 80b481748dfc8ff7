"""LoRA trained while experts were linear layers: served as peft converts it, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import AdaptedModel, lower_folder
from adapter_files import edit_config, edit_tensors
from former_experts import FORMER, save_former_lora
from peft_adapters import peft_logits
from tiny_models import tiny_model
from torch import Tensor

from weft.adapters.errors import AdapterInvalid
from weft.adapters.operations import LowRank

TOLERANCE = 2e-5
IDS = torch.randint(5, 512, (2, 13), generator=torch.Generator().manual_seed(3))
ARCHS = pytest.mark.parametrize("arch", FORMER)

CASES: dict[str, dict[str, Any]] = {
    "all of mixtral": {"arch": "mixtral"},
    "all of qwen3_moe": {"arch": "qwen3_moe"},
    "with mixtral's router": {"arch": "mixtral", "names": ("w1", "w2", "w3", "gate")},
    "with qwen3_moe's router": {
        "arch": "qwen3_moe",
        "names": ("gate_proj", "up_proj", "down_proj", "gate"),
    },
    "the last map and the router, rslora": {
        "arch": "mixtral",
        "names": ("w2", "gate"),
        "use_rslora": True,
    },
    "the router": {"arch": "mixtral", "names": ("gate",)},
    "one layer": {"arch": "mixtral", "layers": (1,), "layers_to_transform": [1]},
    "a pattern": {
        "arch": "qwen3_moe",
        "layers": (1,),
        "target_modules": r".*\.1\..*\.(gate|up|down)_proj",
    },
    "full names": {
        "arch": "mixtral",
        "target_modules": [
            f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
            for layer in (0, 1)
            for expert in range(4)
            for name in ("w1", "w2", "w3")
        ],
    },
    "an exception that peft knows of too": {
        "arch": "qwen3_moe",
        "names": ("down_proj",),
        "alpha_pattern": {"down_proj": 2},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_pefts(case: str, tmp_path: Path) -> None:
    config = dict(CASES[case])
    arch = config.pop("arch")
    folder = save_former_lora(tmp_path, arch, **config)
    expected = peft_logits(arch, folder, IDS)
    assert (expected - peft_logits(arch, None, IDS)).abs().max() > 0.1
    logits = AdaptedModel(arch, [folder]).logits(IDS, [0, 0])
    assert (logits - expected).abs().max() < TOLERANCE


@ARCHS
def test_layers_that_are_one_today_become_one_pair(arch: str, tmp_path: Path) -> None:
    plan = lower_folder(save_former_lora(tmp_path, arch), tiny_model(arch))
    ranks = {name.rpartition(".")[2]: op.rank for name, op in plan.of_kind(LowRank).items()}
    assert ranks == {"gate_up_proj": 6, "down_proj": 3}


def refusal(folder: Path, arch: str = "mixtral") -> AdapterInvalid:
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(folder, tiny_model(arch))
    return caught.value


FIELDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "one of two": ({"names": ("w1", "w2")}, "target_modules", "w3, which are one parameter today"),
    "without the last map": ({"names": ("w1", "w3")}, "target_modules", "but not all: peft"),
    "rslora": ({"use_rslora": True}, "use_rslora", "gate_up_proj otherwise with transformers 5"),
    "an alpha": ({"alpha_pattern": {"w2": 60}}, "alpha_pattern", "has an exception for model."),
    "a rank": ({"rank_pattern": {"w1": 3, "w3": 4}}, "rank_pattern", "has an exception for model."),
    "dora": ({"use_dora": True}, "use_dora", "cannot be combined with LoRA on experts"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_what_peft_would_compute_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    config, field, words = FIELDS[case]
    error = refusal(save_former_lora(tmp_path, "mixtral", **config))
    assert error.where == f"adapter_config.json: {field}", error
    assert words in error.reason


LAYER = "base_model.model.model.layers.0.block_sparse_moe.experts."
Edit = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FILES: dict[str, tuple[Edit, str]] = {
    "half of a pair": (
        lambda tensors: {n: t for n, t in tensors.items() if n != LAYER + "2.w1.lora_B.weight"},
        "holds no model.layers.0.block_sparse_moe.experts.2.w1.lora_B.weight",
    ),
    "an expert too many": (
        lambda tensors: tensors | {LAYER + "4.w1.lora_A.weight": torch.randn(3, 64)},
        "adapts one expert of a mixture, which this base does not have",
    ),
    "another width": (
        lambda tensors: tensors | {LAYER + "0.w2.lora_A.weight": torch.randn(3, 64)},
        "has shape [3, 64], this base and config need [3, 96]",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_tensor_is_named(case: str, tmp_path: Path) -> None:
    edit, words = FILES[case]
    error = refusal(edit_tensors(save_former_lora(tmp_path, "mixtral"), edit))
    assert words in str(error)


def test_some_experts_of_a_layer(tmp_path: Path) -> None:
    folder = save_former_lora(tmp_path, "mixtral", target_modules=r".*experts\.[012]\.w\d")
    assert "which this base does not have or the configuration" in str(refusal(folder))
    edit_tensors(
        folder, lambda tensors: {n: t for n, t in tensors.items() if ".experts.3." not in n}
    )
    error = refusal(folder)
    assert error.where == "adapter_config.json: target_modules"
    assert "block_sparse_moe.experts.3.w1, which are one parameter today" in error.reason


def test_experts_of_a_base_without_any(tmp_path: Path) -> None:
    folder = save_former_lora(tmp_path, "mixtral")
    assert "selects no module of this base" in str(refusal(folder, "llama"))
    edit_config(folder, target_modules=["q_proj"])
    assert "adapts one expert of a mixture" in str(refusal(folder, "llama"))


def test_a_router_that_the_configuration_does_not_select(tmp_path: Path) -> None:
    folder = save_former_lora(tmp_path, "qwen3_moe", names=("down_proj", "gate"))
    error = refusal(edit_config(folder, target_modules=["down_proj"]), "qwen3_moe")
    assert "mlp.gate" in error.where
