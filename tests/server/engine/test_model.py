"""Loading a base model: what it becomes, and each way in which it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MAX_POSITIONS, save_tiny, tiny_model

from weft.server.engine import hardware, model
from weft.server.engine.messages import EngineConfig
from weft.server.engine.model import ModelHost
from weft.server.engine.probe import probes, prompt, whole
from weft.server.engine.unsupported import ModelUnsupported


def ignore(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model")


def load(folder: Path, **fields: Any) -> ModelHost:
    small = {"device": "cpu", "threads": 1, "adapter_memory": 1 << 20, "dtype": "float32"}
    settings = {"model": str(folder), "store": str(folder.parent / "store"), **small, **fields}
    return ModelHost.load(EngineConfig(**settings), ignore)


def test_facts_of_a_loaded_model(folder: Path) -> None:
    facts = load(folder, max_num_seqs=4, page_size=8).facts
    assert facts.parameters == sum(p.numel() for p in tiny_model("llama").parameters())
    assert (facts.vocab_size, facts.max_model_len) == (512, MAX_POSITIONS)
    assert facts.pages == 4 * MAX_POSITIONS // 8 + 1
    assert facts.eos_token_ids == (2, 4)
    assert (facts.adapter_bytes, facts.dtype) == (1 << 20, torch.float32)
    assert len(facts.digest) == 64


def test_logits_are_the_models_own(folder: Path) -> None:
    host = load(folder)
    tokens = prompt(20, 512)
    batch = host.build(whole(probes([tokens], 16)))
    with torch.inference_mode():
        expected = tiny_model("llama")(input_ids=torch.tensor([tokens])).logits[0, -1:]
    torch.testing.assert_close(host.run(batch), expected, atol=1e-5, rtol=0)


def test_a_step_may_keep_no_logits(folder: Path) -> None:
    host = load(folder)
    plan = whole(probes([prompt(9, 512)], 16))
    item = plan.items[0]
    batch = host.build(type(plan)((type(item)(item.seq, 0, 5, samples=False),)))
    assert host.run(batch).shape == (0, 512)


def test_stages_are_reported(folder: Path) -> None:
    stages: list[str] = []
    config = EngineConfig(model=str(folder), store=str(folder.parent / "s"), device="cpu")
    ModelHost.load(config, lambda stage, done, total: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["weights", "self-test", "digest"]


def test_a_model_that_a_check_refuses(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention", "linear_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnsupported, match="linear_attention"):
        load(folder)


def test_a_model_that_only_the_self_test_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "check_config", lambda config, longest: None)
    save_tiny(
        "llama",
        folder,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    with pytest.raises(ModelUnsupported, match="self-test failed"):
        load(folder, max_model_len=64)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"quantization": "int2"}, "--quantization int2 is not one of none, nf4, int8"),
        ({"device": "tpu"}, "--device tpu"),
        ({"dtype": "int3"}, "--dtype int3"),
        ({"max_model_len": 257}, "--max-model-len 257 is beyond"),
        ({"kv_cache_memory": 1 << 60}, "--kv-cache-memory asks for"),
        ({"kv_cache_memory": 1000}, "raise --kv-cache-memory"),
        ({"adapter_memory": 1 << 60}, "--adapter-memory asks for .* lower it"),
        ({"model": "no/such/model/here"}, "no folder and no hub model"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refusals_say_what_to_change(folder: Path, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelUnsupported, match=reason):
        load(folder, **fields)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda device: 1000)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnsupported, match=r"the weights need .* choose a smaller --dtype"):
        load(folder)


def test_an_allocation_that_fails_says_what_to_lower(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "choose_size", fail)
    with pytest.raises(ModelUnsupported, match="out of memory for the KV cache: lower"):
        load(folder)


def test_random_weights_need_only_a_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    first = load(folder, load_format="dummy", seed=1)
    other = load(folder, load_format="dummy", seed=2)
    assert first.facts.digest != other.facts.digest
    with pytest.raises(ModelUnsupported, match=r"no \.safetensors"):
        load(folder)


def test_default_token_budget_holds_every_running_sequence(folder: Path) -> None:
    assert load(folder).facts.max_num_batched_tokens == 512
    assert load(folder, max_num_seqs=600).facts.max_num_batched_tokens == 600
    assert load(folder, max_num_batched_tokens=64).facts.max_num_batched_tokens == 64
