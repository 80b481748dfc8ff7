"""What LoRA must refuse, by name: each is something that would otherwise be computed wrongly."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import lower_folder
from adapter_files import edit_config, edit_tensors, read_config, rename_tensors, write_adapter
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_adapters import save_lora
from tiny_models import tiny_model
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods import lower
from weft.adapters.operations import Override, RowOverride
from weft.adapters.plan import AdapterPlan
from weft.adapters.tensors import read_tensors

Tensors = dict[str, Tensor]
WEIGHTS = "adapter_model.safetensors"
BASE = BaseModules.of(tiny_model("llama"))
LAYER_0 = "base_model.model.model.layers.0."
Q_A = LAYER_0 + "self_attn.q_proj.lora_A.weight"
Q_B = LAYER_0 + "self_attn.q_proj.lora_B.weight"
EMBED = "base_model.model.model.embed_tokens."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    targets = ["q_proj", "v_proj"]
    return {
        "linear": save_lora(root / "linear", "llama", target_modules=targets, r=4),
        "embedding": save_lora(root / "e", "llama", target_modules=[*targets, "embed_tokens"], r=4),
    }


@pytest.fixture
def linear(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["linear"], tmp_path / "linear"))


@pytest.fixture
def embedding(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["embedding"], tmp_path / "embedding"))


def refusal(folder: Path, arch: str = "llama", **model: Any) -> AdapterInvalid:
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(folder, tiny_model(arch, **model))
    assert str(folder) not in str(caught.value)
    return caught.value


FIELDS: dict[str, Any] = {
    "peft_type": "LILY",
    "task_type": "SEQ_CLS",
    "bias": "some",
    "use_dora": "yes",
    "lora_bias": 1,
    "modules_to_save": ["score"],
    "trainable_token_indices": [1, 1],
    "alora_invocation_tokens": "seven",
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "layer_replication": [[0, 2], [1, 2]],
    "arrow_config": {"top_k": 2},
    "kasa_config": "yes",
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "megatron_config": {"tp": 2},
    "a_field_of_next_year": 1,
    "init_lora_weights": "pissa_niter_4",
    "target_modules": None,
    "r": 0,
    "lora_alpha": "16",
    "rank_pattern": {"q_proj": 2.5},
    "alpha_pattern": {"q_proj": None},
    "use_rslora": 1,
    "fan_in_fan_out": "no",
    "exclude_modules": [1],
    "layers_to_transform": "1",
    "layers_pattern": "layers",
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_named(field: str, linear: Path) -> None:
    error = refusal(edit_config(linear, **{field: FIELDS[field]}))
    assert error.where.startswith(f"adapter_config.json: {field}")


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "pissa_niter_16", "tomorrow", 3])
def test_a_way_to_train_is_named(init: Any, linear: Path) -> None:
    error = refusal(edit_config(linear, init_lora_weights=init))
    assert error.where == "adapter_config.json: init_lora_weights"
    assert repr(init) in error.reason


def test_values_that_change_nothing_are_accepted(linear: Path) -> None:
    edit_config(
        linear,
        **dict.fromkeys((*FIELDS.keys() - {"peft_type", "target_modules", "r", "lora_alpha"},)),
        lora_dropout=0.5,
        loftq_config={"loftq_bits": 4},
        eva_config={"rho": 2.0},
        megatron_core="a.module.that.is.never.imported",
        auto_mapping={"parent_library": "a.module.that.is.never.imported"},
        runtime_config={"ephemeral_gpu_offload": True},
        base_model_name_or_path="/nowhere",
        another_field_of_next_year=False,
        r=4,
        lora_alpha=8,
    )
    assert len(lower_folder(linear, tiny_model("llama")).ops) == 4


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".lora_A.", ".lora_A.default."),
        lambda name: "module." + name,
        lambda name: "_orig_mod." + name,
        lambda name: "base_model.model._orig_mod." + name.removeprefix("base_model.model."),
        lambda name: name.removeprefix("base_model.model."),
    ],
)
def test_names_that_wrappers_changed_are_the_same_adapter(
    rename: Callable[[str], str], linear: Path
) -> None:
    model = tiny_model("llama")
    expected = lower_folder(linear, model)
    plan = lower_folder(rename_tensors(linear, rename), model)
    assert plan.ops.keys() == expected.ops.keys()
    assert all(map(torch.equal, _tensors(plan), _tensors(expected)))


def _tensors(plan: AdapterPlan) -> list[Tensor]:
    return [tensor for _, op in plan for tensor in op.tensors]


def add(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.ones(*shape)}


def drop(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k not in names}


MUTATIONS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "DoRA magnitudes": (
        add(LAYER_0 + "self_attn.q_proj.lora_magnitude_vector", 64),
        "lora_magnitude_vector: is a DoRA magnitude, but use_dora is not set",
    ),
    "adapter bias": (add(LAYER_0 + "self_attn.q_proj.lora_B.bias", 64), "lora_bias is not set"),
    "base bias": (
        add(LAYER_0 + "self_attn.q_proj.base_layer.bias", 64),
        "must be named in the configuration",
    ),
    "whole module": (
        add(LAYER_0 + "self_attn.q_proj.weight", 64, 64),
        "must be named in the configuration",
    ),
    "saved module": (add("base_model.model.lm_head.modules_to_save.weight", 9, 9), "modules_to"),
    "trained tokens": (
        add(EMBED + "token_adapter.trainable_tokens_delta", 2, 64),
        "trainable_token_indices is not set",
    ),
    "norm": (add("base_model.model.model.norm.weight", 64), "must be named in the configuration"),
    "LoRA on a norm": (add("base_model.model.model.norm.lora_A.weight", 4, 64), "is a LlamaRMSN"),
    "KaSA": (add(LAYER_0 + "self_attn.q_proj.lora_diag", 4), "kasa_config is not set"),
    "bare parameter": (
        add(LAYER_0 + "mlp.experts.base_layer.lora_A.weight", 4, 64),
        "is LoRA on a bare parameter that target_parameters does not name",
    ),
    "expert": (
        add(LAYER_0 + "block_sparse_moe.experts.3.w1.lora_A.weight", 4, 64),
        "adapts one expert of a mixture",
    ),
    "module not selected": (
        add(LAYER_0 + "self_attn.k_proj.lora_A.weight", 4, 64),
        "which the configuration does not select",
    ),
    "layer of a deeper base": (
        add("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", 4, 64),
        "the base has no module model.layers.9.self_attn.q_proj",
    ),
    "kind": (add(LAYER_0 + "self_attn.q_proj.lora_embedding_A", 4, 64), "a module of kind linear"),
    "half a pair": (drop(Q_B), "holds no model.layers.0.self_attn.q_proj.lora_B.weight"),
    "missing module": (drop(Q_A, Q_B), "the configuration selects model.layers.0.self_attn.q_proj"),
    "wrong rank": (add(Q_A, 3, 64), "has shape [3, 64], this base and config need [4, 64]"),
    "wrong width": (add(Q_A, 4, 96), "has shape [4, 96]"),
    "wrong order": (lambda tensors: tensors | {Q_B: tensors[Q_B].T}, "has shape [4, 64]"),
    "one dimension more": (add(Q_A, 4, 64, 1), "has shape [4, 64, 1]"),
    "twice": (add(Q_A.replace("lora_A", "lora_A.default"), 4, 64), "is the same tensor as"),
    "not a number": (
        lambda tensors: tensors | {Q_A: tensors[Q_A] * torch.nan},
        "holds NaN or infinity",
    ),
    "overflow": (lambda tensors: tensors | {Q_B: tensors[Q_B] * 0 + 3e38}, "overflows"),
    "zeros": (
        lambda tensors: {k: v * (0 if "lora_B" in k else 1) for k, v in tensors.items()},
        "changes nothing",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_tensor_is_named(mutation: str, linear: Path) -> None:
    edit, words = MUTATIONS[mutation]
    assert words in str(refusal(edit_tensors(linear, edit)))


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"modules_to_save": ["norm"]},
        {"trainable_token_indices": [3, 4]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_field_that_was_dropped_or_made_up(fields: dict[str, Any], tmp_path: Path) -> None:
    targets: dict[str, Any] = {"target_modules": ["q_proj"]}
    folder = save_lora(tmp_path / "with", "qwen2", **targets, **fields)
    lower_folder(folder, tiny_model("qwen2"))
    assert WEIGHTS not in refusal(edit_config(folder, **dict.fromkeys(fields)), "qwen2").where
    plain = save_lora(tmp_path / "without", "qwen2", **targets)
    assert "holds no" in refusal(edit_config(plain, **fields), "qwen2").reason


IDS_OF: dict[str, tuple[Any, str]] = {
    "none": ([], "must be a list of token ids"),
    "text": (["a"], "must be a list of token ids"),
    "negative": ([-1, 4], "names a token that model.embed_tokens does not have"),
    "too large": ([3, 512], "names a token that model.embed_tokens does not have"),
    "another module": ({"nowhere": [3, 4]}, "has no embedding or head nowhere"),
    "another number": ([3, 4, 5], "has shape [2, 64]"),
}


@pytest.mark.parametrize("case", IDS_OF)
def test_trained_tokens(case: str, tmp_path: Path) -> None:
    ids, words = IDS_OF[case]
    folder = save_lora(tmp_path, "llama", target_modules=["q_proj"], trainable_token_indices=[3, 4])
    assert words in str(refusal(edit_config(folder, trainable_token_indices=ids)))


def test_a_saved_head_of_another_vocabulary(tmp_path: Path) -> None:
    folder = save_lora(
        tmp_path,
        "llama",
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
        model={"vocab_size": 516},
    )
    assert "516 rows, where the base has 512" in refusal(folder).reason


def test_a_saved_module_that_is_not_computed_by_rows(tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "llama", target_modules=["q_proj"], modules_to_save=["model.norm"])
    checkpoint = read_checkpoint(folder)
    base = BaseModules.of(tiny_model("llama"), refused={"model.norm": "it sees other rows"})
    with pytest.raises(AdapterInvalid, match=r"model\.norm\.weight: it sees other rows"):
        lower(checkpoint, read_tensors(checkpoint), base)


def test_an_adapter_of_another_base(linear: Path) -> None:
    assert "has shape" in refusal(linear, hidden_size=32).reason
    assert "no module model.layers.1" in refusal(linear, num_hidden_layers=1).reason
    assert "holds no model.layers.2" in refusal(linear, num_hidden_layers=3).reason
    assert "selects no module" in refusal(linear, "gpt2").reason


def test_copies_of_the_embedding(embedding: Path) -> None:
    model = tiny_model("llama")
    copy = EMBED + "base_layer.weight"
    plan = lower_folder(embedding, model)
    assert "model.embed_tokens" in plan.ops

    edit_tensors(embedding, lambda tensors: tensors | {copy: tensors[copy].bfloat16()})
    assert lower_folder(embedding, model).ops.keys() == plan.ops.keys()

    edit_tensors(embedding, lambda tensors: tensors | {copy: few_changed(tensors[copy])})
    rows = lower_folder(embedding, model).of_kind(RowOverride)["model.embed_tokens"]
    assert rows.ids.tolist() == [2, 5]

    edit_tensors(embedding, lambda tensors: tensors | {copy: tensors[copy] + 0.01})
    whole = lower_folder(embedding, model).of_kind(Override)["model.embed_tokens"]
    assert whole.parameters.keys() == {"weight"}


def few_changed(weight: Tensor) -> Tensor:
    changed = weight.clone()
    changed[[5, 2]] += 1
    return changed


def test_a_changed_copy_of_what_others_share(tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "qwen2", target_modules=["embed_tokens"])
    copy = EMBED + "base_layer.weight"
    edit_tensors(folder, lambda tensors: tensors | {copy: tensors[copy] + 0.01})
    error = refusal(folder, "qwen2")
    assert error.where == copy
    assert error.reason == "differs from the base's weight, which lm_head shares"


def test_resized_vocabulary(linear: Path) -> None:
    head = "base_model.model.lm_head.weight"
    rows = torch.zeros(516, 64)
    edit_tensors(linear, lambda t: t | {EMBED + "weight": rows, head: rows})
    assert refusal(linear).reason in (
        "embed_tokens has 516 rows, base has 512",
        "lm_head has 516 rows, base has 512",
    )


def test_an_embedding_adapter_of_a_resized_vocabulary(tmp_path: Path) -> None:
    folder = save_lora(
        tmp_path, "llama", target_modules=["embed_tokens"], model={"vocab_size": 516}
    )
    assert re.search(
        r"has shape \[8, 516\], this base and config need \[8, 512\]", str(refusal(folder))
    )


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_changed_base_that_other_rows_would_see(init: str, tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "qwen2", target_modules=["lm_head"], init_lora_weights=init)
    assert "tied" in refusal(folder, "qwen2").reason


def test_olora_on_conv1d(tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "gpt2", target_modules=["attn.c_proj"])
    edit_config(folder, init_lora_weights="olora")
    assert "Conv1D" in refusal(folder, "gpt2").reason


def test_an_untrained_pissa_changes_nothing(tmp_path: Path) -> None:
    config: dict[str, Any] = {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    folder = save_lora(tmp_path, "llama", strength=0.0, **config)
    assert "changes nothing" in refusal(folder).reason


def test_an_embedding_with_a_way_of_its_own(tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "opt", target_modules=r".*(embed_tokens|fc1)")
    edit_config(folder, target_modules=r".*(embed_tokens|embed_positions|fc1)")
    error = refusal(folder, "opt")
    assert error.where == "adapter_config.json: target_modules"
    assert "OPTLearnedPositionalEmbedding" in error.reason


def test_a_pattern_that_explodes_is_stopped(linear: Path) -> None:
    edit_config(linear, target_modules=r"(.*.){1,1000}[A-Z]")
    assert "take too long" in refusal(linear).reason


def test_no_tensors_at_all(linear: Path) -> None:
    write_adapter(linear, read_config(linear), {})
    assert "holds no" in refusal(linear).reason


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["q_proj", "all-linear", "(", ".*", "pissa"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=examples(200))
@given(data=st.data())
def test_no_configuration_ends_in_another_error(
    data: st.DataObject, saved: dict[str, Path]
) -> None:
    checkpoint = read_checkpoint(saved["linear"])
    fields = st.sampled_from([*checkpoint.config, "unknown"])
    changes = data.draw(st.dictionaries(fields, json_values, min_size=1, max_size=3))
    changed = dataclasses.replace(checkpoint, config=dict(checkpoint.config) | changes)
    try:
        plan = lower(changed, read_tensors(checkpoint), BASE)
    except AdapterInvalid:
        return
    assert len(plan.ops) == 4
