"""What the attention function refuses, and how the dry run reads a model."""

from typing import Any

import pytest
import torch
from tiny_models import WINDOW, random_model, tiny_model
from torch import Tensor, nn
from transformers import AutoConfig

from weft.server.engine.attention import AttentionOptions, attend, set_backend, use_paged_attention
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.unsupported import ModelUnsupported

SHAPE = (1, 2, 3, 4)


class Attention(nn.Module):
    """Stands for a model's attention module; its backend notes the options."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[AttentionOptions] = []
        set_backend(self, self.answer)

    def answer(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions
    ) -> Tensor:
        self.seen.append(options)
        return q


def call(module: nn.Module, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    states = torch.arange(24.0).view(SHAPE)
    return attend(module, states, states, states, mask, **kwargs)[0]


def test_shapes_and_options_are_translated() -> None:
    module = Attention()
    sinks = torch.zeros(2)
    output = call(module, scaling=0.5, sliding_window=8, softcap=30.0, s_aux=sinks)
    assert torch.equal(output, torch.arange(24.0).view(SHAPE).transpose(1, 2))
    assert module.seen == [AttentionOptions(0.5, 8, 30.0, sinks)]
    call(module, dropout=0.0, position_ids=torch.zeros(1, 3), use_cache=False, is_causal=None)
    assert module.seen[1] == AttentionOptions(0.5, None, None, None)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"mask": torch.zeros(1)}, "mask of its own"),
        ({"is_causal": False}, "later tokens"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"chunk_size": 8}, "chunk_size"),
        ({"dropout": 0.1}, "dropout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_dropped_silently_is_refused(kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelUnsupported, match=reason):
        call(Attention(), **kwargs)


def test_a_module_without_a_backend_is_refused() -> None:
    module = Attention()
    set_backend(module, None)
    with pytest.raises(ModelUnsupported, match="dry run"):
        call(module)


def test_a_bidirectional_model_is_refused() -> None:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = random_model(config)
    use_paged_attention(model)
    with pytest.raises(ModelUnsupported, match="later tokens"):
        KVSpec.discover(model)


def test_the_dry_run_reads_shapes_and_windows() -> None:
    model = tiny_model("gemma2", head_dim=24)
    use_paged_attention(model)
    spec = KVSpec.discover(model)
    assert [(s.kv_heads, s.k_dim, s.v_dim, s.window) for s in spec.layers] == [
        (2, 24, 24, WINDOW),
        (2, 24, 24, None),
    ]
    assert spec.longest_window == WINDOW
    assert spec.elements_per_token == 2 * 2 * (24 + 24)
    assert not spec.refused


def test_keys_and_values_may_differ_in_width() -> None:
    config = AutoConfig.for_model(
        "deepseek_v3",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        max_position_embeddings=64,
    )
    model = random_model(config)
    use_paged_attention(model)
    assert [(s.k_dim, s.v_dim) for s in KVSpec.discover(model).layers] == [(24, 12)]


def test_modules_that_do_not_see_each_row_once_are_named() -> None:
    model = tiny_model("llama")
    layer = model.model.layers[0].mlp
    plain = layer.forward
    layer.forward = lambda x: (
        plain(x) + layer.down_proj(layer.act_fn(layer.gate_proj(x[:, :2])))[:, :1]
    )
    use_paged_attention(model)
    assert set(KVSpec.discover(model).refused) == {
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.down_proj",
    }
