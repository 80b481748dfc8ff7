"""How large updates are beside weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_adapters import save_lora
from tiny_models import tiny_model
from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.delta import Deltas, estimated_norm, missing_warnings, weight_norms
from weft.adapters.methods import lower
from weft.adapters.operations import (
    Dense,
    InputRotation,
    Kronecker,
    LowRank,
    Operation,
    OutputScale,
    Sparse,
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
    return Deltas.of(plan(ops), weight_norms(BASE)).by_layer()


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


def test_what_has_no_norm_is_left_out() -> None:
    turned = InputRotation(torch.eye(64)[None] * 2)
    assert ratios({QUERY: (turned, Dense(random(64, 64)))}) == {}


def test_a_meta_base_tells_none() -> None:
    base = BaseModules.of(tiny_model("llama").to("meta"))
    assert Deltas.of(plan({QUERY: (Dense(random(64, 64)),)}), weight_norms(base)).by_layer() == {}


def test_an_update_beyond_its_weights_is_warned_of() -> None:
    ops: dict[str, tuple[Operation, ...]] = {
        name: (Dense(BASE[name].weight() * by),) for name, by in ((QUERY, 2.0), (OUTPUT, 1.5))
    }
    (warning,) = Deltas.of(plan(ops), weight_norms(BASE)).warnings()
    assert warning.startswith(
        f"the update of {QUERY} is 2 times as large as its weights (and 1 more"
    )
    assert not list(
        Deltas.of(plan({QUERY: (Dense(random(64, 64) * 0.01),)}), weight_norms(BASE)).warnings()
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
