"""Norms of many adapters at once: each row as its own adapter's norm computes it."""

import pytest
import torch
from adapted_model import AdaptedModel
from tiny_models import tiny_model

from weft.adapters.module_tables import twin
from weft.adapters.operations import Operation, Override
from weft.adapters.plan import AdapterPlan
from weft.adapters.row_parameters import by_row, takes_rows

IDS = torch.randint(5, 512, (6, 2), generator=torch.Generator().manual_seed(1))
NORMS = {
    "llama": "model.layers.0.input_layernorm",
    "qwen3": "model.layers.0.self_attn.q_norm",
    "gemma2": "model.layers.0.pre_feedforward_layernorm",
    "gemma3_text": "model.layers.1.self_attn.k_norm",
    "gpt2": "transformer.h.1.ln_2",
    "qwen3_moe": "model.layers.0.mlp.gate",
}


def override(arch: str, seed: int) -> AdapterPlan:
    random = torch.Generator().manual_seed(seed)
    ops: dict[str, tuple[Operation, ...]] = {}
    name = NORMS[arch]
    own = dict(tiny_model(arch).get_submodule(name).named_parameters(recurse=False))
    parameters = {
        each: value.detach() + 0.3 * torch.randn(value.shape, generator=random)
        for each, value in own.items()
    }
    ops[name] = (Override(parameters),)
    return AdapterPlan(f"norms {seed}", "test", ops)


@pytest.mark.parametrize("arch", NORMS)
def test_short_segments_of_many_slots_see_their_own_parameters(arch: str) -> None:
    model = AdaptedModel(arch, [override(arch, seed) for seed in range(3)])
    alone = [model.logits(IDS, [slot] * len(IDS)) for slot in (-1, 0, 1, 2)]
    mixed = model.logits(IDS, [0, 1, -1, 1, 2, 0])
    for row, slot in enumerate([0, 1, -1, 1, 2, 0]):
        assert torch.allclose(mixed[row], alone[slot + 1][row], atol=1e-5)
    assert (alone[1] - alone[2]).abs().max() > 1e-3
    assert torch.equal(mixed[2], alone[0][2])


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_call_gives_the_bits_of_many(arch: str, dtype: torch.dtype) -> None:
    norm = tiny_model(arch).get_submodule(NORMS[arch]).to(dtype)
    assert takes_rows(norm, 1)
    width = norm.weight.shape[0]
    own = [name for name, _ in norm.named_parameters()]
    norms = [twin(norm, {name: torch.rand(width).to(dtype) for name in own}) for _ in range(5)]
    x = torch.randn(1, 5, 4, width).to(dtype)
    together = by_row(norms, 3)(x)
    for row, each in enumerate(norms):
        assert torch.equal(together[:, row], each(x)[:, row])


@pytest.mark.parametrize("width", [64, 77, 768, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layer_norms_without_a_bias_too(width: int, dtype: torch.dtype) -> None:
    norm = torch.nn.LayerNorm(width, bias=False, dtype=dtype).requires_grad_(False)
    assert takes_rows(norm, 0)
    norms = [twin(norm, {"weight": torch.rand(width).to(dtype)}) for _ in range(5)]
    x = torch.randn(5, width).to(dtype)
    together = by_row(norms, 2)(x)
    assert all(torch.equal(together[row], each(x)[row]) for row, each in enumerate(norms))


def test_a_norm_that_computes_otherwise_is_called_apart() -> None:
    class Rounded(torch.nn.LayerNorm):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch calls it so
            return super().forward(input).round()

    assert not takes_rows(Rounded(64).requires_grad_(False), 0)


def test_modules_that_do_not_multiply_by_elements_are_called_apart() -> None:
    assert not takes_rows(tiny_model("qwen3_moe").get_submodule(NORMS["qwen3_moe"]), 1)
