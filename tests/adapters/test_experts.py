"""Layers of experts beside adapters: what they compute, and when they compute it themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import AdaptedModel
from peft_adapters import load_peft, save_lora
from tiny_models import tiny_model
from torch import nn

import weft.adapters.experts
from weft.adapters.base import BaseModules
from weft.adapters.card import Card, describe
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.methods import lower
from weft.adapters.tensors import read_tensors
from weft.kernels.segments import Segment, Segments

IDS = torch.randint(5, 512, (3, 9), generator=torch.Generator().manual_seed(1))
EXPERTS: dict[str, Any] = {
    "target_modules": [],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}
ARCHS = pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "gpt_oss"])


def layers(model: AdaptedModel) -> list[nn.Module]:
    return [model.model.get_submodule(f"model.layers.{i}.mlp.experts") for i in (0, 1)]


@ARCHS
def test_a_step_without_adapted_experts_is_the_bases_own(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = save_lora(tmp_path / "experts", arch, **EXPERTS)
    attention = save_lora(tmp_path / "attention", arch, target_modules=["q_proj"])
    model = AdaptedModel(arch, [experts, attention])
    expected = AdaptedModel(arch, [attention]).logits(IDS, [-1, 0, 0])

    def launched(*args: object, **more: object) -> None:
        raise AssertionError("experts were computed for adapters that have none")

    monkeypatch.setattr(weft.adapters.experts, "expert_linear", launched)
    assert torch.equal(model.logits(IDS, [-1, 1, 1]), expected)
    with pytest.raises(AssertionError, match="for adapters that have none"):
        model.logits(IDS, [-1, 1, 0])


@ARCHS
def test_rows_without_adapted_experts_stay_as_they_are(arch: str, tmp_path: Path) -> None:
    one_layer = EXPERTS | {"target_parameters": ["1.mlp.experts.down_proj"]}
    model = AdaptedModel(arch, [save_lora(tmp_path, arch, **one_layer)])
    base = model.logits(IDS, [-1, -1, -1])
    logits = model.logits(IDS, [-1, 0, -1])
    # Other rows are routed as before: each expert computes the same rows together.
    assert (logits[::2] - base[::2]).abs().max() < 1e-5
    assert (logits[1] - base[1]).abs().max() > 0.1


@ARCHS
def test_the_base_computes_by_itself_in_steps_that_change_none_of_its_experts(
    arch: str, tmp_path: Path
) -> None:
    saved = {"target_modules": ["q_proj"], "modules_to_save": ["mlp.experts"]}
    folders = [
        save_lora(tmp_path / "lora", arch, **EXPERTS),
        save_lora(tmp_path / "saved", arch, **saved),
    ]
    before = AdaptedModel(arch, []).logits(IDS, [-1, -1, -1])
    model = AdaptedModel(arch, folders)
    for slot in (0, 1):
        model.logits(IDS, [-1, slot, -1])
        assert all("forward" in layer.__dict__ for layer in layers(model))
        assert torch.equal(model.logits(IDS, [-1, -1, -1]), before)
        assert not any("forward" in layer.__dict__ for layer in layers(model))
        model.logits(IDS, [slot, -1, -1])
        model.arena.clear(slot)
        model.logits(IDS, [slot, -1, -1])
        assert not any("forward" in layer.__dict__ for layer in layers(model))
    assert torch.equal(model.logits(IDS, [0, 1, -1]), before)


def begin(model: AdaptedModel, segments: Segments) -> None:
    model.forward.adapters.begin(segments, segments, (), ())


@ARCHS
def test_a_layer_in_half_precision_is_rounded_no_more_than_the_base(
    arch: str, tmp_path: Path
) -> None:
    folder = save_lora(tmp_path, arch, **EXPERTS)
    random = torch.Generator().manual_seed(2)
    hidden = torch.randn(7, 64, generator=random).bfloat16()
    chosen = torch.rand(7, 4, generator=random).argsort(dim=1)[:, :2]
    weights = torch.rand(7, 2, generator=random)
    exact = load_peft(tiny_model(arch).bfloat16().float(), folder).merge_and_unload()
    with torch.inference_mode():
        expected = exact.model.layers[0].mlp.experts(hidden.float(), chosen, weights)
        model = AdaptedModel(tiny_model(arch).bfloat16(), [folder])
        begin(model, Segments((Segment(0, 0, 7),), 7))
        actual = layers(model)[0](hidden, chosen, weights.bfloat16())
        begin(model, Segments((), 7))
        base = layers(model)[0](hidden, chosen, weights.bfloat16())
    assert actual.dtype == torch.bfloat16
    scale = expected.abs().max()
    assert (actual.float() - expected).abs().max() < 0.02 * scale
    assert (base.float() - expected).abs().max() > 0.1 * scale


def card(folder: Path, arch: str) -> Card:
    checkpoint = read_checkpoint(folder)
    base = BaseModules.of(tiny_model(arch))
    plan = lower(checkpoint, read_tensors(checkpoint), base)
    return describe(checkpoint, plan, base, dtype=torch.bfloat16, base_names=("tiny",))


def test_the_card_of_an_adapter_of_experts(tmp_path: Path) -> None:
    result = card(save_lora(tmp_path, "qwen3_moe", r=3, lora_alpha=6, **EXPERTS), "qwen3_moe")
    trained = 2 * 4 * 3 * ((64 + 96) + (48 + 64))
    assert result.targets == ("down_proj", "gate_up_proj")
    assert (result.modules, result.tensors, result.rank) == (4, 8, 3)
    assert (result.trained, result.bytes) == (trained, 2 * trained)
    assert result.share == trained / tiny_model("qwen3_moe").num_parameters()
    assert result.exclusive == ()
    assert result.warnings == ()


@ARCHS
def test_norms_are_those_of_the_weights_that_peft_merges(arch: str, tmp_path: Path) -> None:
    folder = save_lora(tmp_path, arch, r=5, **EXPERTS)
    merged = load_peft(tiny_model(arch), folder).merge_and_unload().model.layers[0].mlp.experts
    own = tiny_model(arch).model.layers[0].mlp.experts
    pairs = [(merged.gate_up_proj, own.gate_up_proj), (merged.down_proj, own.down_proj)]
    changed = torch.stack([(new - old).norm() for new, old in pairs]).norm()
    whole = torch.stack([old.norm() for _, old in pairs]).norm()
    expected = float((changed / whole).detach())
    # The weights' norm is estimated from some of their rows.
    assert card(folder, arch).delta_norms["model.layers.0"] == pytest.approx(expected, rel=0.02)


def test_layers_of_experts_without_an_update_are_told(tmp_path: Path) -> None:
    half = EXPERTS | {"target_parameters": ["0.mlp.experts.down_proj"]}
    (warning,) = card(save_lora(tmp_path, "mixtral", **half), "mixtral").warnings
    assert warning == "only 1 of 2 down_proj have an update: none in layers 1"


def test_a_rank_beyond_an_experts_sides_is_told(tmp_path: Path) -> None:
    (warning,) = card(save_lora(tmp_path, "qwen3_moe", r=49, **EXPERTS), "qwen3_moe").warnings
    assert "rank 49 is larger than a side of model.layers.0.mlp.experts.down_proj" in warning
