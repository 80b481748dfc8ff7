"""A base whose experts' files are in MXFP4 is served as transformers undoes that."""

import json
import logging
from pathlib import Path
from random import Random

import pytest
import torch
from engines import run, store_of, tiny_engine
from exactness import Question, answers_of, assert_same
from forward_loops import LoopOracle
from peft_adapters import load_peft, save_lora
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE, save_tiny
from transformers import AutoModelForCausalLM, Mxfp4Config, PreTrainedModel
from watched_logits import WatchedLogits

from weft.server.engine import weights
from weft.server.engine.quantization import Quantization
from weft.server.engine.unsupported import ModelUnsupported

BLOCK = 32  # values with a scale in common, two in a byte


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny gpt_oss with random experts, stored as its makers store them."""
    folder = save_tiny("gpt_oss", tmp_path / "gpt_oss")
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = (experts, outputs, inputs // BLOCK)
        drawn = torch.randint(256, (*blocks, BLOCK // 2), generator=generator)
        tensors[f"{name}_blocks"] = drawn.to(torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 125, blocks, generator=generator).byte()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    others = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": others}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def stock(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    )
    return model.eval()


def question(oracle: LoopOracle, random: Random) -> Question:
    while True:
        prompts = [tuple(random.randrange(5, VOCAB_SIZE) for _ in range(12)) for _ in range(4)]
        if found := oracle.questions(prompts, 16):
            return found[0]


def test_base_and_adapters_equal_peft_on_the_dequantised_base(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    attention = save_lora(tmp_path / "a", "gpt_oss", target_modules=["q_proj"], use_dora=True)
    of_experts = save_lora(
        tmp_path / "e", "gpt_oss", target_modules=[], target_parameters=experts, r=3, seed=1
    )
    random, logits = Random(0), WatchedLogits()
    asked = [
        question(LoopOracle(load_peft(stock(folder), path), (path, 1.0)), random)
        for path in (attention, of_experts)
    ]
    asked.append(question(LoopOracle(stock(folder)), random))
    with (
        caplog.at_level(logging.INFO, "weft"),
        tiny_engine(tmp_path, "gpt_oss", watch=logits.watch, max_num_batched_tokens=20) as engine,
    ):
        digests = {path: store_of(tmp_path).put(path) for path in (attention, of_experts)}
        requests = [one.request(str(index), digests) for index, one in enumerate(asked)]
        answers = answers_of(run(engine, *requests), logits)
        assert engine.info.quantization == "mxfp4, dequantised"
        assert engine.info.weight_bytes == 4 * engine.info.parameters
    for index, one in enumerate(asked):
        assert_same(answers[str(index)], one.answer, one.adapter)
    assert "the weights are stored as mxfp4 and served in torch.float32" in caplog.messages


def test_it_is_not_quantised_anew(folder: Path) -> None:
    config = weights.read_config(folder)
    with pytest.raises(ModelUnsupported, match="own files are quantised as mxfp4: leave the flag"):
        Quantization.choose("nf4", config, torch.float32)
