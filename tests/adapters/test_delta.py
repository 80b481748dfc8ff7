"""How large updates are beside weights."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_adapters import load_peft, save_lora
from peft_methods import METHODS, save_method
from tiny_models import tiny_model
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.delta import Deltas, LoadedWeights, estimated_norm, missing_warnings
from weft.adapters.methods import lower
from weft.adapters.operations import (
    Bottleneck,
    Dense,
    Kronecker,
    LowRank,
    Operation,
    OutputScale,
    OutputShift,
    Override,
    RowOverride,
    Sparse,
    VirtualTokens,
)
from weft.adapters.plan import AdapterPlan
from weft.adapters.tensors import read_tensors

MODEL = tiny_model("llama")
BASE = BaseModules.of(MODEL)
QUERY, OUTPUT = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plan(ops: dict[str, tuple[Operation, ...]]) -> AdapterPlan:
    return AdapterPlan("0" * 64, "test", ops)


def ratios(ops: dict[str, tuple[Operation, ...]]) -> dict[str, float]:
    return Deltas.of(plan(ops), BASE, LoadedWeights(BASE)).by_layer()


def relative(delta: Tensor, module: str) -> float:
    return float(delta.norm() / MODEL.get_submodule(module).weight.detach().norm())


def test_a_norm_is_that_of_the_update_in_full() -> None:
    a, b = random(3, 64), random(3, 64, seed=1)
    sparse = torch.zeros(64, 64)
    sparse[2, 3], sparse[5, 1] = 2.0, -1.0
    starts = torch.tensor([0] * 3 + [1] * 3 + [2] * 59, dtype=torch.int32)
    outer, inner = random(8, 16), random(8, 4)
    for op, delta in [
        (LowRank(a, b), b.T @ a),
        (Dense(random(64, 64)), random(64, 64)),
        (Sparse(starts, torch.tensor([3, 1]), torch.tensor([2.0, -1.0])), sparse),
        (Kronecker(outer, inner), torch.kron(outer, inner)),
    ]:
        assert ratios({QUERY: (op,)}) == pytest.approx(
            {"model.layers.0": relative(delta, QUERY)}, rel=1e-5
        )


def test_a_scale_counts_as_its_difference_from_one() -> None:
    halved = OutputScale(torch.full((64,), 0.5))
    assert ratios({QUERY: (halved,)}) == pytest.approx({"model.layers.0": 0.5})


def test_layers_are_told_apart_and_the_head_by_its_name() -> None:
    ops = {name: (Dense(BASE[name].weight() * 0.1),) for name in (QUERY, OUTPUT, "lm_head")}
    assert ratios(ops) == pytest.approx(
        dict.fromkeys(("model.layers.0", "model.layers.1", "lm_head"), 0.1)
    )


def test_a_bias_counts_as_a_column_of_the_weight() -> None:
    offsets = random(64)
    assert ratios({QUERY: (OutputShift(offsets),)}) == pytest.approx(
        {"model.layers.0": relative(offsets, QUERY)}
    )


def test_rows_of_a_scaled_embedding_are_measured_as_it_puts_them_out() -> None:
    model = tiny_model("gemma2")
    base, name = BaseModules.of(model), "model.embed_tokens"
    weight, scale = model.get_submodule(name).weight.detach(), base[name].scale
    assert scale != 1
    ids, rows = torch.tensor([3, 7]), random(2, 64)
    changed = plan({name: (RowOverride(ids, rows * scale),)})
    expected = float((rows - weight[ids]).norm() / weight.norm())
    assert Deltas.of(changed, base, LoadedWeights(base)).by_layer() == pytest.approx(
        {name: expected}
    )


def test_what_changes_no_weight_has_no_norm() -> None:
    network = Bottleneck(
        random(4, 64), torch.zeros(4), random(64, 4), torch.zeros(64), "relu", "sum"
    )
    assert ratios({OUTPUT: (network,), "model.embed_tokens": (VirtualTokens(random(3, 64)),)}) == {}


NOT_MERGED = {
    "beft": "peft merges no bias into a layer without one",
    "other modules as norms are": "the module that peft names holds others",
    "poly": "peft merges none of it",
    "poly of two tasks": "peft merges none of it",
    "saved modules are no targets": "the module that peft names holds others",
}


@pytest.mark.parametrize(
    "name", sorted(n for n in METHODS if "llama" in METHODS[n].archs and n not in NOT_MERGED)
)
def test_norms_are_those_of_the_weights_that_peft_merges(name: str, tmp_path: Path) -> None:
    """Exact but where a factor multiplies the weight: there as if its rows were of one size."""
    check_merged(save_method(tmp_path, "llama", name))


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_norms_of_loras(fields: dict[str, Any], tmp_path: Path) -> None:
    targets = {"target_modules": ["q_proj", "down_proj"]} | fields
    check_merged(save_lora(tmp_path, "llama", r=4, **targets))


def test_norms_of_a_lora_with_biases(tmp_path: Path) -> None:
    """peft merges it only where the base has biases too."""
    model = {"attention_bias": True, "mlp_bias": True}
    targets = {"target_modules": ["q_proj", "down_proj"], "lora_bias": True}
    check_merged(save_lora(tmp_path, "llama", model=model, r=4, **targets), **model)


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_norms_of_experts_by_layer(arch: str, tmp_path: Path) -> None:
    parameters = ["mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"]
    targets = {"target_modules": ["q_proj"], "target_parameters": parameters}
    check_merged(save_lora(tmp_path, arch, r=3, **targets), arch)


def test_norms_of_experts_that_are_replaced(tmp_path: Path) -> None:
    """By the parameters that an adapter brings, of which none is called weight."""
    targets = {"target_modules": ["q_proj"], "modules_to_save": ["1.mlp.experts"]}
    folder = save_lora(tmp_path, "gpt_oss", **targets)
    model = tiny_model("gpt_oss")
    base = BaseModules.of(model)
    checkpoint = read_checkpoint(folder)
    name = "model.layers.1.mlp.experts"
    ops = lower(checkpoint, read_tensors(checkpoint), base).ops[name]
    own = {key: value.detach() for key, value in model.get_submodule(name).named_parameters()}
    (override,) = ops
    assert isinstance(override, Override)
    update = math.hypot(*(float((v - own[k]).norm()) for k, v in override.parameters.items()))
    whole = math.hypot(*(float(own[key].norm()) for key in override.parameters))
    found = Deltas.of(plan({name: ops}), base, LoadedWeights(base)).by_layer()
    assert found == pytest.approx({"model.layers.1": update / whole}, rel=1e-5)


def check_merged(folder: Path, arch: str = "llama", **model: Any) -> None:
    checkpoint = read_checkpoint(folder)
    base = BaseModules.of(tiny_model(arch, **model))
    changed = lower(checkpoint, read_tensors(checkpoint), base)
    found = Deltas.of(changed, base, LoadedWeights(base)).by_layer()
    before = tiny_model(arch, **model).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged: Any = load_peft(tiny_model(arch, **model), folder)
        after = merged.merge_and_unload().state_dict()
    squares: dict[str, list[float]] = {}
    for module in changed.ops:
        layer = ".".join(module.split(".")[:3]) if ".layers." in module else module
        total = squares.setdefault(layer, [0.0, 0.0])
        weight = ".".join(base.weight_of(module))
        for part in (weight, f"{module}.bias"):
            if part in after:
                total[0] += float((after[part] - before.get(part, 0.0)).square().sum())
        total[1] += float(before[weight].square().sum())
    expected = {layer: math.sqrt(update / own) for layer, (update, own) in squares.items()}
    assert found == pytest.approx(expected, rel=0.03)


def test_a_meta_base_tells_none() -> None:
    base = BaseModules.of(tiny_model("llama").to("meta"))
    assert (
        Deltas.of(plan({QUERY: (Dense(random(64, 64)),)}), base, LoadedWeights(base)).by_layer()
        == {}
    )


def test_an_update_beyond_its_weights_is_warned_of() -> None:
    ops: dict[str, tuple[Operation, ...]] = {
        name: (Dense(BASE[name].weight() * by),) for name, by in ((QUERY, 2.0), (OUTPUT, 1.5))
    }
    (warning,) = Deltas.of(plan(ops), BASE, LoadedWeights(BASE)).warnings()
    assert warning.startswith(
        f"the update of {QUERY} is 2 times as large as its weights (and 1 more"
    )
    assert not list(
        Deltas.of(
            plan({QUERY: (Dense(random(64, 64) * 0.01),)}), BASE, LoadedWeights(BASE)
        ).warnings()
    )


@pytest.mark.parametrize("rows", [1, 512, 513, 4000])
def test_a_norm_from_some_rows_is_near(rows: int) -> None:
    matrix = random(rows, 8)
    exact = float(matrix.norm())
    assert estimated_norm(matrix, rows) == pytest.approx(exact, rel=1e-6 if rows <= 512 else 0.05)


def test_half_of_the_targets_missing(tmp_path: Path) -> None:
    def warnings(layers: int, **config: Any) -> list[str]:
        model = {"num_hidden_layers": layers}
        folder = save_lora(tmp_path / "a", "llama", model=model, r=2, **config)
        base = BaseModules.of(tiny_model("llama", **model))
        checkpoint = read_checkpoint(folder)
        return list(missing_warnings(lower(checkpoint, read_tensors(checkpoint), base), base))

    assert warnings(4, target_modules=["q_proj", "v_proj"]) == []
    only = r"model.layers.[03].self_attn.q_proj|model.layers.[012].mlp.up_proj"
    assert warnings(4, target_modules=only) == [
        "only 2 of 4 q_proj have an update: none in layers 1–2"
    ]


def test_norms_of_rank_one_do_not_overflow() -> None:
    huge = LowRank(torch.full((1, 64), 1e20), torch.full((1, 64), 1e20))
    assert all(math.isfinite(ratio) for ratio in ratios({QUERY: (huge,)}).values())
