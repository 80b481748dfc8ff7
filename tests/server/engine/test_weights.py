"""Finding, reading and naming a base model's files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny, tiny_config, tiny_model

from weft.server.engine import weights
from weft.server.engine.unsupported import ModelUnsupported

CPU = torch.device("cpu")


def ignore(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = weights.read_config(folder)
    return weights.load_weights(folder, config, dtype=dtype, device=CPU, progress=ignore)


def test_weights_are_those_of_the_file(folder: Path) -> None:
    loaded = load(folder)
    expected = tiny_model("llama").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert load(folder, torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


def test_progress_goes_up_to_the_number_of_weights(folder: Path, capfd: object) -> None:
    seen: list[tuple[str, int, int]] = []
    config = weights.read_config(folder)
    weights.load_weights(
        folder,
        config,
        dtype=torch.float32,
        device=CPU,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert [done for _, done, _ in seen] == list(range(seen[0][2] + 1))
    assert {stage for stage, _, _ in seen} == {"weights"}


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnsupported, match="no folder and no hub model"):
        weights.find_model("a/b/c/d")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert weights.find_model(str(empty)) == empty
    with pytest.raises(ModelUnsupported, match=r"empty has no config\.json"):
        weights.read_config(empty)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "config.json"), ('{"model_type": "nonsense"}', "config.json.*nonsense")],
)
def test_a_config_that_cannot_be_read(folder: Path, text: str, reason: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelUnsupported, match=reason):
        weights.read_config(folder)


def test_quantized_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnsupported, match="quantization_config"):
        weights.read_config(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnsupported, match=r"no \.safetensors weights"):
        load(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors = {k: v for k, v in tensors.items() if "layers.1.mlp" not in k}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelUnsupported, match=r"layers\.1\.mlp\.down_proj.* and 2 more"):
        load(folder)


@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("gemma2", True)])
def test_parameters_are_counted_without_weights(arch: str, tied: bool) -> None:
    model = tiny_model(arch)
    assert model.config.tie_word_embeddings == tied
    assert weights.count_parameters(tiny_config(arch)) == sum(p.numel() for p in model.parameters())


def test_random_weights_follow_the_seed() -> None:
    config = tiny_config("llama")
    first, again, other = (
        weights.random_weights(config, dtype=torch.float32, device=CPU, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_the_tokenizers_end_token_ends_answers_too(folder: Path) -> None:
    model = load(folder)
    assert weights.end_tokens(folder, model) == (2, 4)
    model.generation_config.eos_token_id = [2, 77]
    assert weights.end_tokens(folder, model) == (2, 4, 77)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
        assert weights.end_tokens(folder, model) == (2, 77)
