"""Methods that are refused, in files that stock peft writes: what is said of them is so."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapted_model import lower_folder
from adapter_files import read_config, write_adapter
from peft import PeftModel, get_peft_model
from peft_adapters import save_lora
from safetensors.torch import load_file
from tiny_models import tiny_model

from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods import METHODS

TARGETS = ["q_proj", "v_proj"]


def adapted(config: Any) -> PeftModel:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        base = tiny_model("llama")
        base.config.use_cache = False
        return get_peft_model(base, config)


def linear(name: str) -> Callable[[Path], None]:
    config = getattr(peft, name)

    def save(path: Path) -> None:
        adapted(config(task_type="CAUSAL_LM", target_modules=TARGETS)).save_pretrained(str(path))

    return save


def save_shadow(path: Path) -> None:
    adapted(peft.ShadowConfig(task_type="CAUSAL_LM")).save_pretrained(str(path))


def save_xlora(path: Path) -> None:
    lora = save_lora(path / "lora", "llama", target_modules=TARGETS)
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=64, adapters={"0": str(lora)})
    adapted(config).save_pretrained(str(path))


def save_adamss(path: Path) -> None:
    """What peft writes of one module; to make one it needs scikit-learn, to cluster the outputs."""
    config = {"peft_type": "ADAMSS", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 8}
    layer = "base_model.model.model.layers.0.self_attn.q_proj.adamss_"
    parts = {"A.0": (1, 8), "A.1": (1, 8), "B.0": (14, 1), "B.1": (50, 1), "newB": (8, 64)}
    tensors = {layer + part: torch.ones(shape) for part, shape in parts.items()}
    write_adapter(path, config, tensors)


SAVED: dict[str, tuple[Callable[[Path], None], str]] = {
    "ADAMSS": (save_adamss, "which outputs it changes is not in the file"),
    "LILY": (linear("LilyConfig"), "its router averages over the whole batch"),
    "PSOFT": (linear("PsoftConfig"), "singular vectors of the base, which are not in the file"),
    "SHADOW": (save_shadow, "it is a second model with a cache of its own"),
    "XLORA": (save_xlora, "it mixes other adapters by weights that an extra pass"),
}


def test_all_other_methods_of_peft_are_served() -> None:
    assert {kind.value for kind in peft.PeftType} == {*METHODS, *SAVED}


@pytest.mark.parametrize("method", SAVED)
def test_a_folder_is_refused_by_its_method(method: str, tmp_path: Path) -> None:
    save, words = SAVED[method]
    save(tmp_path)
    assert read_config(tmp_path)["peft_type"] == method
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(tmp_path, tiny_model("llama"))
    assert caught.value.where == "adapter_config.json: peft_type"
    assert caught.value.reason.startswith(f"{method!r} is not served: ")
    assert words in caught.value.reason


def test_lily_answers_by_what_else_is_in_the_batch() -> None:
    model = adapted(peft.LilyConfig(task_type="CAUSAL_LM", target_modules=TARGETS, r=4))
    for name, parameter in model.named_parameters():
        if "lily_" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    ids = torch.randint(5, 512, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        alone, together = model.eval()(input_ids=ids[:1]).logits, model(input_ids=ids).logits[:1]
    assert (alone - together).abs().max() > 0.1


def test_psoft_files_hold_no_singular_vectors(tmp_path: Path) -> None:
    linear("PsoftConfig")(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors
    assert all(".psoft_R." in name and 64 not in tensors[name].shape for name in tensors)


def test_shadow_files_hold_another_models_attention(tmp_path: Path) -> None:
    save_shadow(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert any(".shadow_backbone." in n and n.endswith("k_proj.weight") for n in tensors)


@pytest.mark.parametrize("peft_type", ["of_next_year", "lora", ""])
def test_a_method_that_does_not_exist(peft_type: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, {"peft_type": peft_type}, {"x": torch.ones(2)})
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(tmp_path, tiny_model("llama"))
    assert caught.value.where == "adapter_config.json: peft_type"
    assert repr(peft_type) in caught.value.reason
    assert "LORA" in caught.value.reason


@pytest.mark.parametrize("peft_type", [None, 4, ["LORA"]])
def test_no_method_at_all(peft_type: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path, {"peft_type": peft_type}, {"x": torch.ones(2)})
    with pytest.raises(AdapterInvalid, match="peft_type: is missing"):
        lower_folder(tmp_path, tiny_model("llama"))
