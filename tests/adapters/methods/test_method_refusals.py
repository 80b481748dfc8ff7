"""What IA3, OFT, RoAD, norms and tokens must refuse: all of it would be computed wrongly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import lower_folder
from adapter_files import edit_config, edit_tensors, rename_tensors
from peft_methods import save_method
from tiny_models import tiny_model
from torch import Tensor

from weft.adapters.errors import AdapterInvalid

LAYER = "base_model.model.model.layers.0.self_attn.q_proj."
Edit = Callable[[Path], Any]


def fields(**changes: Any) -> Edit:
    return lambda path: edit_config(path, **changes)


def renamed(old: str, new: str) -> Edit:
    return lambda path: rename_tensors(path, lambda name: name.replace(old, new))


def tensor(name: str, value: Tensor) -> Edit:
    return lambda path: edit_tensors(path, lambda tensors: tensors | {name: value})


def without(part: str) -> Edit:
    return lambda path: edit_tensors(
        path, lambda tensors: {k: v for k, v in tensors.items() if part not in k}
    )


REFUSED: dict[str, tuple[str, Edit, str]] = {
    "ia3: another side": ("ia3", fields(feedforward_modules=["q_proj"]), "has shape [64, 1]"),
    "ia3: a missing module": ("ia3", without("0.self_attn.v_proj"), "holds no model.layers.0"),
    "ia3: a module too many": ("ia3", fields(target_modules=["down_proj"]), "not a tensor that"),
    "ia3: ones": (
        "ia3",
        lambda path: edit_tensors(path, lambda t: {k: v * 0 + 1 for k, v in t.items()}),
        "changes nothing",
    ),
    "beft: zeros": (
        "beft",
        lambda path: edit_tensors(path, lambda t: {k: v * 0 for k, v in t.items()}),
        "changes nothing",
    ),
    "oft: an embedding": ("oft", fields(target_modules=["embed_tokens"]), "of kind embedding"),
    "oft: before 0.14": ("oft", fields(oft_block_size=None), "oft_block_size: is missing"),
    "oft: old tensors": ("oft", renamed("oft_R.weight", "oft_r"), "holds no model.layers.0"),
    "oft: an old series": ("oft", fields(peft_version="0.17.1"), "use_cayley_neumann"),
    "oft: no version": ("oft", fields(peft_version=None), "use_cayley_neumann"),
    "oft: two sizes": ("oft", fields(r=4), "exactly one of it and r"),
    "oft: another size": ("oft", fields(oft_block_size=16), "has shape [8, 28]"),
    "oft: not shared": ("oft, one block", fields(block_share=False), "has shape [1, 28]"),
    "road: a variant": ("road 1", fields(variant="road_3"), "variant: 'road_3'"),
    "road: another variant": ("road 1", fields(variant="road_4"), "has shape [32]"),
    "road: an odd group": ("road 1", fields(group_size=5), "must be even"),
    "road: a group that does not fit": ("road 1", fields(group_size=48), "48 does not divide"),
    "norms: another width": (
        "norms",
        tensor("base_model.model.model.norm.ln_tuning_layers.weight", torch.ones(63)),
        "has shape [63]",
    ),
    "norms: untouched": (
        "norms",
        lambda path: save_method(path, "llama", "norms", strength=0.0),
        "changes nothing",
    ),
    "tokens: none": ("tokens", fields(token_indices=[]), "token_indices: must be a list"),
    "tokens: too many": ("tokens", fields(token_indices=[1, 2]), "has shape [168, 64]"),
    "tokens: of a linear": (
        "tokens",
        fields(target_modules="model.layers.0.mlp.up_proj"),
        "holds no model.layers.0.mlp.up_proj",
    ),
    "saved: not in the file": ("ia3 and saved modules", without("lm_head"), "holds no lm_head"),
    "saved: not in the base": (
        "ia3 and saved modules",
        fields(modules_to_save=["score"]),
        "the base has no module score",
    ),
    "saved: not a list": ("ia3", fields(modules_to_save="lm_head"), "must be a list of names"),
    "biases: not in the file": ("oft", fields(bias="none_of_these"), "bias: 'none_of_these'"),
    "an unknown field": ("road 1", fields(a_field_of_next_year=1), "a_field_of_next_year"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    name, edit, words = REFUSED[case]
    edit(save_method(tmp_path, "llama", name))
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(tmp_path, tiny_model("llama"))
    assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_tied_copy_that_differs(tmp_path: Path) -> None:
    save_method(tmp_path, "qwen2", "tokens")
    copy = "base_model.model.lm_head.trainable_tokens_delta"
    edit_tensors(tmp_path, lambda tensors: tensors | {copy: tensors[copy] + 1})
    with pytest.raises(AdapterInvalid, match=r"differs from the rows of model\.embed_tokens"):
        lower_folder(tmp_path, tiny_model("qwen2"))
