from pathlib import Path

import pytest
import torch
from adapted_model import AdaptedModel
from peft_adapters import peft_logits, save_lora
from tiny_models import tiny_model

from weft.adapters.base import BaseModules
from weft.adapters.errors import AdapterInvalid
from weft.adapters.modules import adapt
from weft.adapters.operations import InputRotation, InputScale, Operation, Override
from weft.adapters.plan import AdapterPlan
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
    segments = Segments.from_slots([0] * 5)
    model.forward.adapters.begin(segments, segments, (), ())
    with pytest.raises(RuntimeError, match="24 rows in a step of 5"):
        model.model(input_ids=IDS.view(1, -1), use_cache=False)


def test_a_step_without_adapters_runs_the_modules_as_they_were(tmp_path: Path) -> None:
    model = AdaptedModel("llama", [save_lora(tmp_path, "llama", target_modules=["q_proj"])])
    modules = list(model.model.modules())

    def replaced() -> int:
        return sum("forward" in vars(module) for module in modules)

    model.logits(IDS, [-1, -1, -1])
    assert replaced() == 0
    model.logits(IDS, [-1, 0, -1])
    assert replaced() == len(model.base)
    model.logits(IDS, [-1, -1, -1])
    assert replaced() == 0


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


OVERRIDES = {
    "norms": ("llama", ["model.norm", "model.layers.0.input_layernorm"]),
    "norms with biases": ("gpt2", ["transformer.ln_f", "transformer.h.1.ln_2"]),
    "norms of heads": ("qwen3", ["model.layers.0.self_attn.q_norm"]),
    "norms of transposed heads": ("gemma3_text", ["model.layers.1.self_attn.k_norm"]),
    "linears with biases": ("qwen2", ["model.layers.0.self_attn.k_proj"]),
    "Conv1D": ("gpt2", ["transformer.h.0.mlp.c_fc"]),
    "head": ("llama", ["lm_head"]),
    "embedding": ("llama", ["model.embed_tokens"]),
    "scaled embedding": ("gemma2", ["model.embed_tokens"]),
    "router": ("qwen3_moe", ["model.layers.0.mlp.gate"]),
    "experts": ("mixtral", ["model.layers.1.mlp.experts"]),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_rows_of_an_override_see_its_parameters(case: str) -> None:
    arch, names = OVERRIDES[case]
    untied = {"tie_word_embeddings": False}
    changed = tiny_model(arch, **untied)
    ops: dict[str, tuple[Operation, ...]] = {}
    random = torch.Generator().manual_seed(0)
    for name in names:
        module = changed.get_submodule(name)
        for parameter in module.parameters(recurse=False):
            parameter.data += torch.randn(parameter.shape, generator=random) * 0.1
        parameters = dict(module.named_parameters(recurse=False))
        ops[name] = (Override({own: value.detach() for own, value in parameters.items()}),)
    model = AdaptedModel(arch, [AdapterPlan("override", "test", ops)], **untied)
    base = model.logits(IDS, [-1, -1, -1])
    logits = model.logits(IDS, [-1, 0, -1])
    with torch.no_grad():
        expected = changed(input_ids=IDS[1:2], use_cache=False).logits[0]
    assert (expected - base[1]).abs().max() > 0.01
    assert torch.allclose(logits[1], expected, atol=1e-5)
    assert torch.equal(logits[::2], base[::2])
    assert torch.allclose(model.logits(IDS, [0, 0, 0])[1], expected, atol=1e-5)
    model.arena.clear(0)
    assert torch.equal(model.logits(IDS, [0, 0, 0]), base)


def test_inputs_are_changed_for_their_own_rows_only() -> None:
    name = "model.layers.0.mlp.down_proj"
    random = torch.Generator().manual_seed(0)
    factors = torch.rand(96, generator=random) + 0.5
    block = torch.linalg.qr(torch.randn(8, 8, generator=random))[0][None]
    ops = {name: (InputScale(factors), InputRotation(block))}
    changed = tiny_model("llama")
    weight = changed.get_submodule(name).weight
    rotation = torch.block_diag(*[block[0]] * 12)
    weight.data = weight.data @ (rotation * factors).T
    model = AdaptedModel("llama", [AdapterPlan("inputs", "test", ops)])
    base = model.logits(IDS, [-1, -1, -1])
    logits = model.logits(IDS, [-1, 0, -1])
    with torch.no_grad():
        expected = changed(input_ids=IDS[1:2], use_cache=False).logits[0]
    assert (expected - base[1]).abs().max() > 0.01
    assert torch.allclose(logits[1], expected, atol=1e-5)
    assert torch.equal(logits[::2], base[::2])


def test_a_module_that_cannot_take_an_operation_is_named() -> None:
    plan = AdapterPlan("norm", "test", {"model.norm": (InputScale(torch.ones(64)),)})
    with pytest.raises(AdapterInvalid, match=r"model\.norm: .* no InputScale"):
        AdaptedModel("llama", [plan])
