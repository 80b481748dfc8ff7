"""Weights left in their files' 16 bits: what is computed is what widened copies compute."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from stored_models import load_stored
from tiny_models import save_tiny, tiny_model
from torch import nn
from transformers import PreTrainedModel

from weft.adapters.base import BaseModules
from weft.server.engine import (
    half_weight,
    hardware,
    quantization,
    weights,
    widening,
)
from weft.server.engine.attention import use_paged_attention
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.packed_linear import PackedLinear, Way, begin_packing
from weft.server.engine.self_test import twin
from weft.server.engine.stored_weights import StoredEmbedding, StoredLinear, stored_dtype

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large, and how much is widened at once, for tiny models."""
    for module in ("stored_weights", "packed_linear"):
        monkeypatch.setattr(f"weft.server.engine.{module}.SMALLEST", 1000)
    monkeypatch.setattr(widening, "_BLOCK", 1000)


@pytest.fixture(params=["llama", "qwen2", "gemma2", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    model = tiny_model(request.param).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def both(folder: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model with weights left in the files, and with widened ones."""
    return load_stored(folder, stored_dtype(folder)), load_stored(folder, None)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def stored_in(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, StoredLinear | StoredEmbedding)]


def test_what_is_computed_is_the_same_bit_for_bit(
    both: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    left, widened = both
    assert len(stored_in(left)) >= 8
    assert not stored_in(widened)
    assert torch.equal(logits(left), logits(widened))
    assert torch.equal(logits(twin(left)), logits(widened))


def test_weights_and_what_is_known_of_them_are_the_same(
    both: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    left, widened = both
    modules = dict(left.named_modules())
    for name, parameter in widened.named_parameters():
        module, _, own = name.rpartition(".")
        assert torch.equal(getattr(modules[module], own), parameter)
    assert (left.dtype, left.device) == (widened.dtype, widened.device)
    ours, theirs = BaseModules.of(left), BaseModules.of(widened)
    assert ours.tied == theirs.tied
    assert ours.parameters == theirs.parameters
    assert [(t.refusal, t.scale) for t in ours.values()] == [
        (t.refusal, t.scale) for t in theirs.values()
    ]
    assert all(torch.equal(ours[name].weight(), theirs[name].weight()) for name in theirs)
    assert [o.shapes for o in ours.owners.values()] == [o.shapes for o in theirs.owners.values()]


def test_large_weights_take_no_memory_beside_the_file(folder: Path) -> None:
    model = load_stored(folder, torch.bfloat16)
    for module in stored_in(model):
        assert module.stored.dtype == torch.bfloat16
        assert dict(module.named_parameters())["weight"].untyped_storage().nbytes() == 4


def pack(model: PreTrainedModel) -> list[PackedLinear]:
    with ThreadPoolExecutor(2) as threads:
        count = begin_packing(model, threads)()
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == count > 0
    return layers


def test_packed_in_16_bits_they_compute_the_same_but_for_rounding(
    both: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, widened = both
    expected = logits(widened)
    monkeypatch.setattr(hardware, "free_memory", lambda device: 0)  # it takes none beside theirs
    pack(left)
    torch.testing.assert_close(logits(left), expected, atol=1e-6, rtol=1e-6)


def test_where_that_cannot_be_they_are_packed_in_32_bits(
    both: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fbgemm(*args: object) -> None:
        raise RuntimeError("no FBGEMM")

    monkeypatch.setattr(half_weight.HalfWeight, "__init__", no_fbgemm)
    for model in both:
        pack(model)
    assert torch.equal(*map(logits, both))


def test_a_dry_run_sees_the_same_and_reads_no_stored_weight(
    both: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredLinear, "blocks", lambda self: pytest.fail("read"))
    seen = []
    for model in both:
        use_paged_attention(model)
        spec = KVSpec.discover(model)
        seen.append((spec.shapes, spec.layouts, spec.refused, spec.longest_window))
    assert seen[0] == seen[1]


def test_what_is_not_packed_is_widened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = load_stored(folder, torch.bfloat16), logits(load_stored(folder, None))
    tied = BaseModules.of(model).tied

    def missing(self: PackedLinear, linear: nn.Linear, way: Way) -> None:
        raise RuntimeError("no operator")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    with ThreadPoolExecutor(2) as threads:
        assert begin_packing(model, threads)() == 0
    for module in stored_in(model):
        if isinstance(module, StoredLinear):
            assert module.weight is module.weight
    assert BaseModules.of(model).tied == tied
    assert torch.equal(logits(model), expected)


def test_a_weight_put_in_its_place_is_used(folder: Path) -> None:
    model = load_stored(folder, torch.bfloat16)
    linear = next(m for m in stored_in(model) if isinstance(m, StoredLinear))
    linear.weight = nn.Parameter(torch.ones_like(linear.weight), requires_grad=False)
    x = torch.randn(2, linear.in_features)
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


def test_it_is_known_beforehand_what_they_take(
    folder: Path, both: tuple[PreTrainedModel, PreTrainedModel]
) -> None:
    skeleton = weights.skeleton(weights.read_config(folder))
    for model, stored in zip(both, (torch.bfloat16, None), strict=True):
        expected = quantization.expected_bytes(skeleton, torch.float32, None, stored)
        assert quantization.weight_bytes(model) == expected
    assert quantization.weight_bytes(both[0]) < quantization.weight_bytes(both[1])


def test_files_of_several_dtypes_or_of_32_bits_are_not_left(folder: Path, tmp_path: Path) -> None:
    assert stored_dtype(folder) == torch.bfloat16
    assert stored_dtype(tmp_path) is None
    (folder / "more.safetensors").write_bytes(b"no tensors")
    assert stored_dtype(folder) is None
    assert stored_dtype(save_tiny("llama", tmp_path / "other")) is None
