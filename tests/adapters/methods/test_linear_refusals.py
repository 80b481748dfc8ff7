"""What methods on linear layers must refuse, by name: all that would be computed wrongly."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import lower_folder
from adapter_files import edit_config, edit_tensors
from peft_methods import METHODS, save_method
from safetensors.torch import load_file
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from weft.adapters.errors import AdapterInvalid

Saved = Callable[[str], Path]
LLAMA = tiny_model("llama")
V_1 = ".layers.1.self_attn.v_proj."
Q_0 = "base_model.model.model.layers.0.self_attn.q_proj."
# PEFT starts to train these from something else than the base itself.
NEVER_IDLE = {
    "boft",
    "c3a",
    "deft, projection only",
    "fourierft",
    "hra, orthogonal",
    "kasa",
    "unilora",
    "vblora",
    "vblora of the top weights",
}
# Nothing in these files has a width of the base.
OF_ANY_WIDTH = {"miss mini", "fourierft", "waveft", "waveft, no transform", "oft, one block"}
# These change modules that a deeper base, or any base, has too.
OF_ANY_DEPTH = {
    "other modules as norms are",
    "saved modules are no targets",
    "tokens",
    "tokens of the head",
}
OF_ANY_BASE = {"norms", *OF_ANY_DEPTH}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A fresh copy of a method's adapter."""
    root = tmp_path_factory.mktemp("saved")

    def copy(name: str) -> Path:
        arch = METHODS[name].archs[0]
        original = root / name
        if not original.exists():
            save_method(original, arch, name)
        return Path(shutil.copytree(original, root / "copies" / name, dirs_exist_ok=True))

    return copy


def refusal(folder: Path, model: PreTrainedModel = LLAMA) -> AdapterInvalid:
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(folder, model)
    return caught.value


NAMES = [name for name, method in METHODS.items() if "llama" in method.archs]


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_needed_and_has_one_shape(name: str, saved: Saved) -> None:
    folder = saved(name)
    tensors = load_file(folder / "adapter_model.safetensors")
    wanted = [key for key in tensors if V_1 in key or ".layers." not in key]
    for key in wanted:
        edit_tensors(folder, lambda _, key=key: {k: v for k, v in tensors.items() if k != key})
        if ".randlora_" not in key or ".layers." not in key:
            assert "holds no" in str(refusal(folder)), key
        grown = torch.cat([tensors[key], tensors[key][-1:]])
        edit_tensors(folder, lambda _, key=key, grown=grown: tensors | {key: grown})
        assert "shape [" in str(refusal(folder)), key


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_no_one_uses(name: str, saved: Saved) -> None:
    for extra in (Q_0 + "lora_magnitude_vector", "base_model.model.model.norm.of_next_year"):
        folder = edit_tensors(saved(name), lambda t, extra=extra: t | {extra: torch.ones(64)})
        assert refusal(folder).where == extra


@pytest.mark.parametrize("name", NAMES)
def test_a_module_that_is_not_selected(name: str, saved: Saved) -> None:
    folder = edit_config(saved(name), target_modules=["v_proj", "down_proj"])
    refusal(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_no_one_knows(name: str, saved: Saved) -> None:
    error = refusal(edit_config(saved(name), a_field_of_next_year=1))
    assert error.where == "adapter_config.json: a_field_of_next_year"


FIELDS: list[tuple[str, str, Any]] = [
    ("adalora", "lora_alpha", 0),
    ("adalora", "rank_pattern", {"model.layers.0.self_attn.q_proj.lora_E": [1, 0]}),
    ("vera", "save_projection", False),
    ("vera", "layer_replication", [[0, 2]]),
    ("pvera", "sample_at_inference", True),
    ("pvera", "save_projection", False),
    ("loha", "rank_pattern", {"q_proj": 2.5}),
    ("hra", "apply_GS", "yes"),
    ("peanut", "act_fn", "tomorrow"),
    ("peanut", "depth", -1),
    ("deft", "decomposition_method", "svd"),
    ("osf", "effective_rank", -0.5),
    ("delora", "lambda_pattern", {"q_proj": "3"}),
    ("miss", "init_weights", "tomorrow"),
    ("miss", "r", 65),
    ("miss mini", "mini_r", 7),
    ("miss bat", "r", 7),
    ("vblora", "topk", 25),
    ("gralora", "gralora_k", 3),
    ("poly", "poly_type", "x-lora"),
    ("poly of two tasks", "task_id", 2),
    ("boft", "boft_block_size", 7),
    ("boft", "boft_block_num", 8),
    ("fourierft", "n_frequency", 64 * 64 + 1),
    ("waveft", "wavelet_family", "db2"),
    ("waveft", "proportional_parameters", True),
    ("c3a", "block_size", 24),
    ("randlora", "save_projection", False),
    ("frod", "save_projection", False),
    ("glora", "config_C", "matrix"),
    ("supertuning", "save_precomputed_indices", False),
    ("tinylora", "save_projection", False),
    ("tinylora", "weight_tying", 1.5),
    ("unilora", "save_indices", False),
    ("vera", "task_type", "SEQ_CLS"),
    ("bdlora", "use_bdlora", {"nblocks": 2}),
    ("bdlora", "use_bdlora", {"nblocks": 2, "of_next_year": 1}),
    ("kasa", "kasa_config", "yes"),
]


@pytest.mark.parametrize(("name", "field", "value"), FIELDS)
def test_a_field_is_named(name: str, field: str, value: Any, saved: Saved) -> None:
    error = refusal(edit_config(saved(name), **{field: value}))
    assert error.where.startswith(f"adapter_config.json: {field}")


@pytest.mark.parametrize(
    ("name", "part", "value"),
    [
        ("shira", "shira_indices", 96),
        ("shira", "shira_indices", -1),
        ("supertuning", "supertuning_indices", 64 * 64),
        ("unilora", "unilora_indices_A", 256),
        ("vblora of the top weights", "vblora_logits_A_topk_indices", 24),
    ],
)
def test_an_index_out_of_range(name: str, part: str, value: int, saved: Saved) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[Q_0 + part].view(-1)[3] = value
        return tensors

    error = refusal(edit_tensors(saved(name), spoil))
    assert error.where == Q_0 + part
    assert "has an index outside" in error.reason


def test_integers_where_numbers_belong_and_the_reverse(saved: Saved) -> None:
    for name, part in (("vera", "vera_lambda_b"), ("shira", "shira_indices")):
        folder = edit_tensors(
            saved(name),
            lambda t, key=Q_0 + part: t | {key: t[key].float() if "ind" in key else t[key].int()},
        )
        assert "has values of torch." in refusal(folder).reason


def test_copies_of_shared_tensors_that_differ(saved: Saved) -> None:
    key = Q_0 + "randlora_A"
    folder = edit_tensors(saved("randlora"), lambda t: t | {key: t[key] + 1})
    assert refusal(folder).where == key


def test_zeros_that_are_none(saved: Saved) -> None:
    key = Q_0 + "glora_C.zeros"
    folder = edit_tensors(saved("glora"), lambda t: t | {key: t[key] + 1})
    assert refusal(folder).where == key


def test_one_of_several_tasks_must_be_named(saved: Saved) -> None:
    error = refusal(edit_config(saved("poly of two tasks"), task_id=None))
    assert error.where == "adapter_config.json: n_tasks"
    assert "task_id" in error.reason


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEVER_IDLE])
def test_an_adapter_that_was_not_trained(name: str, tmp_path: Path) -> None:
    folder = save_method(tmp_path, "llama", name, strength=0.0)
    assert "changes nothing" in refusal(folder).reason


@pytest.mark.parametrize(
    "name", ["hra", "peanut", "deft", "osf", "miss bat", "hira", "glora", "kasa", "frod"]
)
def test_a_weight_that_is_not_loaded(name: str, saved: Saved) -> None:
    with torch.device("meta"):
        model = type(LLAMA)(LLAMA.config)
    assert "not loaded" in refusal(saved(name), model).reason


@pytest.mark.parametrize("name", NAMES)
def test_another_base(name: str, saved: Saved) -> None:
    if name not in OF_ANY_WIDTH:
        refusal(saved(name), tiny_model("llama", hidden_size=32))
    if name not in OF_ANY_DEPTH:
        refusal(saved(name), tiny_model("llama", num_hidden_layers=3))
    if name not in OF_ANY_BASE:
        assert "selects no module" in refusal(saved(name), tiny_model("gpt2")).reason


def test_layers_that_a_method_cannot_change(saved: Saved) -> None:
    folder = edit_config(saved("hra"), target_modules=["c_attn"])
    assert "of kind conv1d" in refusal(folder, tiny_model("gpt2")).reason
    folder = edit_config(saved("hira"), target_modules=["embed_tokens"])
    assert "of kind embedding" in refusal(folder).reason


@pytest.mark.parametrize("name", NAMES)
def test_values_too_large(name: str, saved: Saved) -> None:
    def grow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v * 1e30 if v.is_floating_point() else v for k, v in tensors.items()}

    folder = edit_tensors(saved(name), grow)
    try:
        plan = lower_folder(folder, LLAMA)
    except AdapterInvalid:
        return
    assert all(bool(t.isfinite().all()) for _, op in plan for t in op.tensors)
