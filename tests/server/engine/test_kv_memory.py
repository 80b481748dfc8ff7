"""How much memory the KV cache gets, and what is said where it is too little."""

import pytest
import torch
from tiny_models import tiny_model

from weft.server.engine.attention import AttentionStep, use_paged_attention
from weft.server.engine.hardware import GIB
from weft.server.engine.kv_memory import KVLayout, choose_size
from weft.server.engine.kv_spec import KVSpec
from weft.server.engine.messages import EngineConfig
from weft.server.engine.unsupported import ModelUnsupported

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def layout(device: torch.device = CPU) -> KVLayout:
    model = tiny_model("llama")
    use_paged_attention(model)
    return KVLayout(KVSpec.discover(model), 16, torch.float32, device)


PAGE_BYTES = layout().page_bytes


def config(
    kv_cache_memory: int | None = None, max_model_len: int | None = None, max_num_seqs: int = 4
) -> EngineConfig:
    return EngineConfig(
        model="m",
        store="s",
        kv_cache_memory=kv_cache_memory,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
    )


def test_page_bytes_are_what_is_allocated() -> None:
    assert PAGE_BYTES == 2 * 2 * 2 * 16 * 16 * 4
    here, step = layout(), AttentionStep()
    here.allocate(3, step)
    backends = [layer.module.paged_attention for layer in here.spec.layers]
    allocated = sum(b.k_pool.nbytes + b.v_pool.nbytes for b in backends)
    assert allocated == 3 * PAGE_BYTES
    here.release()
    assert all(layer.module.paged_attention is None for layer in here.spec.layers)


def test_never_more_than_all_sequences_can_fill() -> None:
    size = choose_size(config(), layout(), longest=100, free=100 * GIB, workspace=0)
    assert (size.pages, size.max_model_len) == (4 * 7 + 1, 100)


def test_a_cpu_gives_a_share_of_its_free_memory() -> None:
    free = 1000 * PAGE_BYTES
    size = choose_size(config(max_num_seqs=99), layout(), longest=256, free=free, workspace=0)
    assert size.pages == 400


def test_a_gpu_gives_what_a_step_does_not_need() -> None:
    size = choose_size(
        config(max_num_seqs=999),
        layout(CUDA),
        longest=256,
        free=1000 * PAGE_BYTES,
        workspace=300 * PAGE_BYTES,
    )
    assert size.pages == 600


def test_an_unasked_context_length_gives_way() -> None:
    size = choose_size(config(11 * PAGE_BYTES), layout(), longest=256, free=GIB, workspace=0)
    assert (size.pages, size.max_model_len) == (11, 160)


def test_an_asked_context_length_that_does_not_fit_is_refused() -> None:
    wanted = config(11 * PAGE_BYTES, max_model_len=161)
    with pytest.raises(ModelUnsupported, match=r"holds 160 tokens.*161.*lower --max-model-len"):
        choose_size(wanted, layout(), longest=161, free=GIB, workspace=0)


@pytest.mark.parametrize("pages", [0, 1])
def test_a_cache_without_room_for_a_page_is_refused(pages: int) -> None:
    wanted = config(pages * PAGE_BYTES)
    with pytest.raises(ModelUnsupported, match=r"holds 0 tokens.*raise --kv-cache-memory"):
        choose_size(wanted, layout(), longest=256, free=GIB, workspace=0)
