"""LoRA on experts and other bare parameters, from peft's own files, against peft's own forward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import AdaptedModel, lower_folder
from adapter_files import edit_config, edit_tensors
from peft_adapters import peft_logits, save_lora
from tiny_models import tiny_model
from torch import Tensor

from weft.adapters.errors import AdapterInvalid
from weft.adapters.operations import LowRank, Override

TOLERANCE = 2e-5
IDS = torch.randint(5, 512, (2, 13), generator=torch.Generator().manual_seed(3))
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
FIRST, LAST = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
ROUTER = {"mixtral": "gate", "qwen3_moe": "gate", "gpt_oss": "router"}

CASES: dict[str, dict[str, Any]] = {
    "both maps": {"target_parameters": [FIRST, LAST], "r": 5},
    "in another order": {"target_parameters": [LAST, FIRST], "r": 5},
    "the first map": {"target_modules": ["q_proj"], "target_parameters": [FIRST]},
    "the last map of a layer, rslora": {
        "target_modules": ["q_proj"],
        "target_parameters": ["0.mlp.experts.down_proj"],
        "use_rslora": True,
    },
    "patterns": {
        "target_parameters": [FIRST, LAST],
        "rank_pattern": {"down_proj": 2, r"0\.mlp\.experts\.gate_up_proj": 3},
        "alpha_pattern": {"gate_up_proj": 30},
    },
    "fields about modules do not matter": {
        "target_modules": ["q_proj"],
        "target_parameters": [FIRST],
        "layers_to_transform": [0],
        "exclude_modules": ["experts"],
    },
    "the router": {"target_parameters": ["ROUTER.weight", LAST]},
    "all-linear": {"target_modules": "all-linear", "r": 3},
    "beside all biases": {
        "target_modules": ["q_proj"],
        "target_parameters": [FIRST, "ROUTER.weight"],
        "bias": "all",
    },
    "beside biases of targets": {
        "target_modules": ["q_proj"],
        "target_parameters": [LAST, "ROUTER.weight"],
        "bias": "lora_only",
    },
    "beside a saved router": {
        "target_modules": ["q_proj"],
        "target_parameters": [LAST],
        "modules_to_save": ["ROUTER", "norm"],
    },
    "beside trained tokens": {
        "target_parameters": [FIRST],
        "trainable_token_indices": [*IDS[0, [7, 2, 12]].tolist(), 3],
    },
    "weights of linears": {
        "target_modules": ["q_proj"],
        "target_parameters": ["embed_tokens.weight", "lm_head.weight", "o_proj.weight"],
    },
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Conv1D and a tied embedding": (
        "gpt2",
        {"target_modules": [], "target_parameters": ["c_attn.weight", "wte.weight", "wpe.weight"]},
    ),
    "a scaled embedding": (
        "gemma2",
        {"target_modules": [], "target_parameters": ["embed_tokens.weight"], "r": 20},
    ),
    "linears with biases": (
        "qwen2",
        {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"], "bias": "all"},
    ),
    "biases of experts, which are two-dimensional": (
        "gpt_oss",
        {
            "target_modules": [],
            "target_parameters": ["gate_up_proj_bias", "gate_up_proj", "down_proj_bias"],
        },
    ),
}


def config_of(case: str, arch: str) -> dict[str, Any]:
    config = {"target_modules": []} | CASES[case]
    for field in ("target_parameters", "modules_to_save"):
        if field in config:
            config[field] = [name.replace("ROUTER", ROUTER[arch]) for name in config[field]]
    return config


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arch", EXPERTS)
def test_experts_equal_pefts(arch: str, case: str, tmp_path: Path) -> None:
    check(arch, config_of(case, arch), tmp_path)


@pytest.mark.parametrize("case", OTHERS)
def test_other_parameters_equal_pefts(case: str, tmp_path: Path) -> None:
    check(*OTHERS[case], tmp_path)


def check(arch: str, config: dict[str, Any], folder: Path) -> None:
    save_lora(folder, arch, **config)
    expected = peft_logits(arch, folder, IDS)
    assert (expected - peft_logits(arch, None, IDS)).abs().max() > 0.1
    logits = AdaptedModel(arch, [folder]).logits(IDS, [0, 0])
    assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("arch", EXPERTS)
def test_square_maps_are_told_from_their_transposes(arch: str, tmp_path: Path) -> None:
    width = "moe_intermediate_size" if arch == "qwen3_moe" else "intermediate_size"
    model = {width: 64}
    config: dict[str, Any] = {"target_modules": [], "target_parameters": [LAST]}
    folder = save_lora(tmp_path, arch, model=model, **config)
    expected = peft_logits(arch, folder, IDS, **model)
    logits = AdaptedModel(arch, [folder], **model).logits(IDS, [0, 0])
    assert (logits - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("arch", EXPERTS)
def test_rows_of_one_batch_have_each_their_own_experts(arch: str, tmp_path: Path) -> None:
    router = ROUTER[arch]
    configs: list[dict[str, Any]] = [
        {"target_modules": "all-linear", "r": 2, "target_parameters": [FIRST, LAST]},
        {"target_parameters": [FIRST, f"{router}.weight"], "r": 7, "use_rslora": True},
        {"target_parameters": [LAST], "r": 4},
        {"modules_to_save": ["1.mlp.experts"]},
        {"target_modules": ["v_proj"], "use_dora": True},
        {"modules_to_save": [router], "bias": "all"},
    ]
    folders = [
        save_lora(tmp_path / str(i), arch, seed=i, **({"target_modules": ["q_proj"]} | config))
        for i, config in enumerate(configs)
    ]
    slots = [-1, *range(len(folders)), -1]
    ids = torch.randint(5, 512, (len(slots), 11), generator=torch.Generator().manual_seed(5))
    model = AdaptedModel(arch, folders)
    base = model.logits(ids, [-1] * len(slots))
    logits = model.logits(ids, slots)
    for row, slot in enumerate(slots):
        folder = None if slot < 0 else folders[slot]
        expected = peft_logits(arch, folder, ids[row : row + 1])[0]
        assert (logits[row] - expected).abs().max() < TOLERANCE
        assert slot < 0 or (logits[row] - base[row]).abs().max() > 0.1


@pytest.mark.parametrize("arch", EXPERTS)
def test_the_form_that_is_served(arch: str, tmp_path: Path) -> None:
    names = [FIRST, f"{ROUTER[arch]}.weight"]
    config: dict[str, Any] = {"target_modules": [], "target_parameters": names}
    folder = save_lora(tmp_path, arch, r=3, **config)
    plan = lower_folder(folder, tiny_model(arch))
    pairs = plan.of_kind(LowRank)
    assert [*pairs] == [f"model.layers.{layer}.{FIRST}" for layer in (0, 1)]
    assert {tuple(pair.a.shape) for pair in pairs.values()} == {(4, 3, 64)}
    assert {pair.rank for pair in pairs.values()} == {3}
    assert all(tensor.is_contiguous() for _, op in plan for tensor in op.tensors)
    assert {*plan.exclusive} == {f"model.layers.{layer}.mlp.{ROUTER[arch]}" for layer in (0, 1)}
    assert {*plan.of_kind(Override)} == {*plan.exclusive}


def refusal(folder: Path, arch: str = "qwen3_moe", **model: Any) -> AdapterInvalid:
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(folder, tiny_model(arch, **model))
    return caught.value


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    config: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": [FIRST, LAST]}
    return save_lora(tmp_path, "qwen3_moe", r=3, **config)


FIELDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "text": ({"target_parameters": FIRST}, "target_parameters", "must be a list of names"),
    "an empty name": ({"target_parameters": [""]}, "target_parameters", "must be a list of names"),
    "a name that is not there": (
        {"target_parameters": [FIRST, "experts.up_proj"]},
        "target_parameters",
        "the base has no parameter experts.up_proj",
    ),
    "part of a name": (
        {"target_parameters": ["p_proj"]},
        "target_parameters",
        "the base has no parameter p_proj",
    ),
    "a vector": (
        {"target_parameters": ["model.norm.weight"]},
        "target_parameters",
        "selects model.norm.weight, which has 1 dimensions and not 2 or 3",
    ),
    "a weight whose module is targeted": (
        {"target_parameters": [FIRST, LAST, "q_proj.weight"]},
        "target_parameters",
        "but target_modules selects its module too",
    ),
    "a parameter of what is saved": (
        {"modules_to_save": ["0.mlp"]},
        "target_parameters",
        "but modules_to_save saves it whole",
    ),
    "dora": ({"use_dora": True}, "use_dora", "cannot be combined with LoRA on experts"),
    "a bias of B": ({"lora_bias": True}, "lora_bias", "cannot be combined with LoRA on experts"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights", "cannot be combined"),
    "kasa": ({"kasa_config": {}}, "kasa_config", "cannot be combined with LoRA on experts"),
    "alora": ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens", "cannot be combined"),
    "replicated layers": (
        {"layer_replication": [[0, 2], [1, 2]]},
        "layer_replication",
        "computes layers of the base several times",
    ),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_field_is_named(case: str, saved: Path) -> None:
    changes, field, words = FIELDS[case]
    error = refusal(edit_config(saved, **changes))
    assert error.where == f"adapter_config.json: {field}"
    assert words in error.reason


LAYER = "base_model.model.model.layers.0.mlp.experts."
Edit = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without(*names: str) -> Edit:
    return lambda tensors: {name: t for name, t in tensors.items() if name not in names}


def with_shape(name: str, *shape: int) -> Edit:
    return lambda tensors: tensors | {name: torch.randn(shape)}


FILES: dict[str, tuple[Edit, str]] = {
    "half of a pair": (
        without(LAYER + "lora_B.weight"),
        "holds no model.layers.0.mlp.experts.lora_B.weight, but the configuration selects "
        "model.layers.0.mlp.experts.down_proj",
    ),
    "a whole pair": (
        without(LAYER + "base_layer.lora_A.weight", LAYER + "base_layer.lora_B.weight"),
        "but the configuration selects model.layers.0.mlp.experts.gate_up_proj",
    ),
    "fewer experts": (
        with_shape(LAYER + "lora_A.weight", 9, 48),
        "has shape [9, 48], this base and config need [12, 48]",
    ),
    "another width": (
        with_shape(LAYER + "base_layer.lora_B.weight", 64, 12),
        "has shape [64, 12], this base and config need [96, 12]",
    ),
    "the other way round": (
        lambda tensors: tensors | {LAYER + "lora_A.weight": tensors[LAYER + "lora_A.weight"].T},
        "has shape [48, 12], this base and config need [12, 48]",
    ),
    "experts apart": (
        with_shape(LAYER + "lora_A.weight", 4, 3, 48),
        "has shape [4, 3, 48], this base and config need [12, 48]",
    ),
    "a third pair": (
        with_shape(LAYER + "base_layer.base_layer.lora_A.weight", 12, 64),
        "is LoRA on a bare parameter that target_parameters does not name",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_tensor_is_named(case: str, saved: Path) -> None:
    edit, words = FILES[case]
    assert words in str(refusal(edit_tensors(saved, edit)))


def test_a_pair_that_the_configuration_does_not_name(saved: Path) -> None:
    folder = edit_config(saved, target_parameters=[FIRST])
    assert "target_parameters does not name" in str(refusal(folder))


def test_another_number_of_experts_is_another_base(saved: Path) -> None:
    assert "need [24, 48]" in str(refusal(saved, num_experts=8))


def test_stacked_weights_of_an_unknown_module_are_refused(saved: Path) -> None:
    model = tiny_model("qwen3_moe")
    for layer in model.model.layers:
        del layer.mlp.experts.is_transposed
    with pytest.raises(AdapterInvalid, match="does not tell how it computes with it"):
        lower_folder(saved, model)
