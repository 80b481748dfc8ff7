from pathlib import Path

import pytest
import torch
from adapted_model import AdaptedModel
from peft_adapters import peft_logits, save_lora
from tiny_models import tiny_model

from weft.adapters.base import BaseModules
from weft.adapters.modules import adapt
from weft.kernels.segments import Segments

IDS = torch.randint(5, 512, (3, 8), generator=torch.Generator().manual_seed(1))
ARCHITECTURES = ["llama", "qwen2", "gemma2", "gpt2"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_base_rows_keep_their_bits(arch: str, tmp_path: Path) -> None:
    folder = save_lora(tmp_path, arch, target_modules="all-linear")
    base = AdaptedModel(arch, []).logits(IDS, [-1, -1, -1])
    assert torch.allclose(base, peft_logits(arch, None, IDS), atol=1e-5)
    model = AdaptedModel(arch, [folder])
    assert torch.equal(model.logits(IDS, [-1, -1, -1]), base)
    assert torch.equal(model.logits(IDS, [-1, 0, -1])[::2], base[::2])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_head_sees_only_kept_rows(arch: str, tmp_path: Path) -> None:
    folders = [
        save_lora(tmp_path / str(seed), arch, seed=seed, target_modules=["lm_head"])
        for seed in range(2)
    ]
    model = AdaptedModel(arch, folders)
    kept = model.logits(IDS, [1, -1, 0], keep=[2, 7])
    everything = model.logits(IDS, [1, -1, 0])
    assert kept.shape[1] == 2
    assert torch.allclose(kept, everything[:, [2, 7]], atol=1e-5)
    expected = peft_logits(arch, folders[1], IDS[:1])[0, [2, 7]]
    assert (kept[0] - expected).abs().max() < 2e-5


def test_other_rows_than_the_steps_are_an_error(tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "llama", target_modules=["q_proj"])
    model = AdaptedModel("llama", [folder])
    state = model.forward.adapters
    state.segments = state.kept = Segments.from_slots([0] * 5)
    with pytest.raises(RuntimeError, match="24 rows in a step of 5"):
        model.model(input_ids=IDS.view(1, -1), use_cache=False)


def test_an_emptied_slot_is_the_base_again(tmp_path: Path) -> None:
    folder = save_lora(tmp_path, "llama", target_modules=["q_proj", "embed_tokens"])
    model = AdaptedModel("llama", [folder])
    base = model.logits(IDS, [-1, -1, -1])
    assert not torch.equal(model.logits(IDS, [0, 0, 0]), base)
    model.arena.clear(0)
    assert torch.equal(model.logits(IDS, [0, 0, 0]), base)


def test_modelling_code_still_finds_weights_and_biases() -> None:
    model = tiny_model("qwen2")
    before = dict(model.named_parameters())
    base = BaseModules.of(model)
    adapted = adapt(model, base, {}, torch.zeros(1), 1)
    assert list(adapted.tables) == list(base)
    name = "model.layers.0.self_attn.q_proj"
    q_proj = model.get_submodule(name)
    assert q_proj.weight is before[name + ".weight"]
    assert q_proj.bias is before[name + ".bias"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_output_embeddings().bias is None
