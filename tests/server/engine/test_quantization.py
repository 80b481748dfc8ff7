"""Quantised bases: the same tokens as peft on the same quantised base, and honest figures."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from adapter_files import edit_config
from engines import load, run, store_of, tiny_engine
from exactness import Oracle, answers_of, assert_same, prompts
from peft_adapters import load_peft, save_lora
from peft_methods import save_method
from tiny_models import save_tiny, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.errors import AdapterInvalid
from weft.adapters.methods import lower
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan
from weft.adapters.tensors import read_tensors
from weft.server.engine import quantization, weights
from weft.server.engine.messages import EngineConfig, Loaded
from weft.server.engine.model import ModelHost
from weft.server.engine.quantization import Quantization
from weft.server.engine.unsupported import ModelUnsupported
from weft.server.inspection import InspectedOn, inspect_adapter
from weft.server.verification import verify_adapter

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

CPU = torch.device("cpu")
TOKENS = 16
SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
    "int8": {"load_in_8bit": True},
}
WAYS = tuple(SETTINGS)


def ignore(stage: str, done: int, total: int) -> None:
    pass


def stock(folder: Path, way: str) -> PreTrainedModel:
    """The model as transformers and bitsandbytes quantise it.

    Without the kernel for CPUs that computes in bfloat16 whatever it is given.
    """
    settings = BitsAndBytesConfig(**SETTINGS[way])
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


class QuantizedOracle(Oracle):
    """transformers' or peft's answers on a stock quantised base.

    Of 8 bits, on its weights: LLM.int8 also rounds what a layer is given.
    """

    def __init__(self, folder: Path, way: str, adapter: Path | None = None) -> None:
        self.adapter = adapter
        base = stock(folder, way)
        if way == "int8":
            base = base.dequantize(torch.float32)
        base.generation_config.eos_token_id = None
        self._model = base if adapter is None else load_peft(base, adapter)


def quantized(
    folder: Path, way: str = "none", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    config = weights.read_config(folder)
    how = Quantization.choose(way, config, dtype)
    return weights.load_weights(
        folder, config, dtype=dtype, device=CPU, progress=ignore, quantized=how
    )


def lowered(adapter: Path, model: PreTrainedModel) -> AdapterPlan:
    checkpoint = read_checkpoint(adapter)
    return lower(checkpoint, read_tensors(checkpoint), BaseModules.of(model))


def host(folder: Path, **fields: Any) -> ModelHost:
    settings = {
        "model": str(folder),
        "store": str(folder.parent / "store"),
        "device": "cpu",
        "threads": 1,
        "dtype": "float32",
        "adapter_memory": 1 << 20,
        "kv_cache_memory": 1 << 20,
        **fields,
    }
    return ModelHost.load(EngineConfig(**settings), ignore)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


@pytest.fixture(params=WAYS)
def stored(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    """A folder whose own files are quantised."""
    path = tmp_path / f"llama-{request.param}"
    stock(folder, request.param).save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).write_bytes((folder / file).read_bytes())
    return path


def adapters(path: Path, arch: str) -> list[Path]:
    targets = ["c_attn", "c_fc"] if arch == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    made = [save_lora(path / "lora", arch, target_modules=targets, r=4)]
    if arch != "gpt2":
        made.append(save_lora(path / "dora", arch, target_modules=targets, use_dora=True, seed=1))
        hira = save_method(path / "hira", arch, "hira")
        # peft heeds a pattern of ranks on a quantised base alone, and made this one without.
        made.append(edit_config(hira, rank_pattern={}))
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
def test_a_mixed_batch_answers_as_peft_on_the_same_base(
    arch: str, way: str, tmp_path: Path
) -> None:
    model, random = save_tiny(arch, tmp_path / arch), Random(7)
    folders = adapters(tmp_path, arch)
    questions = {
        "base" if adapter is None else adapter.name: QuantizedOracle(model, way, adapter).question(
            prompts(random, 9), TOKENS
        )
        for adapter in (None, *folders)
    }
    store = store_of(tmp_path)
    digests = {path: store.put(path) for path in folders}
    with tiny_engine(tmp_path, arch, quantization=way, max_num_batched_tokens=12) as engine:
        assert all(isinstance(load(engine, digest), Loaded) for digest in digests.values())
        requests = [question.request(name, digests) for name, question in questions.items()]
        answers = answers_of(run(engine, *requests))
    for name, question in questions.items():
        assert_same(answers[name], question.answer, name)


def test_files_that_are_quantised_are_served_so(stored: Path, folder: Path) -> None:
    way = stored.name.removeprefix("llama-")
    ids = torch.tensor([[5, 9, 301, 44]])
    with torch.inference_mode():
        own = quantized(stored)(input_ids=ids).logits
        asked = quantized(folder, way)(input_ids=ids).logits
    torch.testing.assert_close(own, asked, atol=1e-6, rtol=0)
    facts = host(stored).facts
    assert facts.quantization == way
    assert facts.parameters == sum(p.numel() for p in tiny_model("llama").parameters())
    with pytest.raises(ModelUnsupported, match=f"files are quantised as {way}: leave the flag"):
        host(stored, quantization="nf4")


def test_verify_and_inspect_know_such_files(stored: Path, tmp_path: Path) -> None:
    adapter = save_lora(tmp_path / "dora", "llama", target_modules=["o_proj"], use_dora=True)
    edit_config(adapter, base_model_name_or_path="someone/llama-bnb-4bit")
    (compared,) = verify_adapter(adapter, stored, [(5, 9, 301, 44)], 4, "cpu")
    assert compared.equal == 4
    assert compared.difference < 1e-4
    warned = "served on one that is int8" in " ".join(
        inspect_adapter(adapter, InspectedOn(stored, "llama")).card.warnings
    )
    assert warned == stored.name.endswith("int8")


def test_facts_tell_the_real_size(folder: Path) -> None:
    plain, four, eight = (host(folder, quantization=way).facts for way in ("none", *WAYS))
    assert [facts.quantization for facts in (plain, four, eight)] == ["none", *WAYS]
    assert plain.parameters == four.parameters == eight.parameters
    assert plain.weight_bytes == 4 * plain.parameters
    assert four.weight_bytes < eight.weight_bytes < plain.weight_bytes
    assert len({plain.digest, four.digest, eight.digest}) == 3


@pytest.mark.parametrize("way", ["none", *WAYS])
def test_the_memory_is_known_before_weights_are_read(way: str, tmp_path: Path) -> None:
    folder = save_tiny(
        "llama", tmp_path / "wide", hidden_size=256, intermediate_size=512, head_dim=64
    )
    config = weights.read_config(folder)
    how = Quantization.choose(way, config, torch.bfloat16)
    expected = quantization.expected_bytes(weights.skeleton(config), torch.bfloat16, how)
    held = quantization.weight_bytes(quantized(folder, way, torch.bfloat16))
    assert held == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("way", WAYS)
def test_random_weights_are_quantised_too(way: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    facts = host(folder, quantization=way, load_format="dummy").facts
    assert facts.quantization == way


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layers_weight_is_what_it_computes_with(
    way: str, dtype: torch.dtype, folder: Path
) -> None:
    model = quantized(folder, way, dtype)
    for name, target in BaseModules.of(model).items():
        if target.kind != "linear":
            continue
        layer = model.get_submodule(name)
        x = torch.eye(target.in_features, dtype=dtype)
        with torch.inference_mode():
            first, again = layer(x), torch.cat([layer(row) for row in x.split(3)])
        assert target.weight().shape == (target.out_features, target.in_features)
        # By a whole rounding of the weight in bfloat16 and, where it was scaled, of the scale.
        tolerance = 2 * torch.finfo(dtype).eps
        for y in (first, again):
            torch.testing.assert_close(
                y.float(), target.weight().float().T, atol=1e-6, rtol=tolerance
            )
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.embed_tokens) is nn.Embedding


@pytest.mark.parametrize("way", WAYS)
def test_a_row_does_not_depend_on_its_batch_mates(way: str, folder: Path) -> None:
    layer = quantized(folder, way).model.layers[0].mlp.down_proj
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    wild = torch.cat([x, 1000 * x])
    with torch.inference_mode():
        torch.testing.assert_close(layer(wild)[:5], layer(x), atol=1e-5, rtol=1e-5)


def test_a_saved_layer_is_served_as_its_difference(folder: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["o_proj"]}
    adapter = save_lora(tmp_path / "saved", "llama", **config)
    saved = {
        name: tensor
        for name, tensor in read_tensors(read_checkpoint(adapter)).items()
        if "o_proj" in name
    }
    model = quantized(folder, "nf4")
    deltas = lowered(adapter, model).of_kind(Dense)
    assert len(deltas) == len(saved) == 2
    for (name, op), tensor in zip(deltas.items(), saved.values(), strict=True):
        weight = BaseModules.of(model)[name].weight() + op.matrix
        torch.testing.assert_close(weight, tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_decomposed_another_weight_is_refused(init: str, folder: Path, tmp_path: Path) -> None:
    adapter = save_lora(tmp_path / init, "llama", target_modules=["q_proj"], init_lora_weights=init)
    with pytest.raises(AdapterInvalid, match=f"{init} decomposes the base's weight"):
        lowered(adapter, quantized(folder, "nf4"))


def test_qalora_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = save_lora(tmp_path / "lora", "llama", target_modules=["q_proj"])
    edit_config(adapter, use_qalora=True)
    with pytest.raises(AdapterInvalid, match="use_qalora"):
        lowered(adapter, quantized(folder, "nf4"))


def test_a_four_bit_base_brings_no_warning_to_its_own_adapters(
    folder: Path, tmp_path: Path
) -> None:
    adapter = save_lora(tmp_path / "lora", "llama", target_modules=["q_proj"])
    edit_config(adapter, base_model_name_or_path="unsloth/llama-bnb-4bit")
    digest = store_of(tmp_path).put(adapter)
    for way, warnings in (("nf4", 0), ("int8", 1), ("none", 1)):
        with tiny_engine(tmp_path, quantization=way) as engine:
            answer = load(engine, digest)
        assert isinstance(answer, Loaded)
        assert len(answer.report.warnings) == warnings, way


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"quant_method": "awq", "bits": 4}, "only bitsandbytes' and mxfp4 are served, not 'awq'"),
        ({"quant_method": "bitsandbytes"}, "only bitsandbytes' and mxfp4 are served"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "is for training"),
    ],
)
def test_other_ways_are_refused(own: dict[str, Any], reason: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
    with pytest.raises(ModelUnsupported, match=reason):
        host(folder)
