"""Bottleneck adapters against the logits that AdapterHub's own library computed for them.

The fixtures and the script that made them: tests/fixtures/adapterhub.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_model import AdaptedModel, lower_folder
from adapterhub import attach
from engines import greedy, run, store_of, tiny_engine
from msgspec import structs
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft_adapters import redraw
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from weft.adapters.blend import Blend, Part, alone
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.errors import AdapterCorrupt, AdapterInvalid
from weft.adapters.operations import Bottleneck, Override
from weft.adapters.plan import AdapterPlan
from weft.adapters.store import Store
from weft.adapters.tensors import read_tensors
from weft.server.engine.messages import Tokens

FIXTURES = Path(__file__).parents[2] / "fixtures" / "adapterhub"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
IDS = EXPECTED["ids"]
CASES = {
    "llama": (
        "pfeiffer",
        "pfeiffer-head",
        "houlsby",
        "houlsby-left-out",
        "parallel",
        "parallel-channel",
        "residual-inside",
    ),
    "mistral": ("mistral-pfeiffer", "mistral-houlsby"),
    "gpt2": ("gpt2-pfeiffer", "gpt2-parallel"),
    "qwen2": ("qwen2-pfeiffer", "qwen2-parallel"),
    "qwen3": ("qwen3-pfeiffer", "qwen3-houlsby"),
    "gemma2": ("gemma2-houlsby", "gemma2-parallel"),
}
HOOKED = ("llama", "gpt2", "qwen2", "gemma2")
# A head beside the networks, an activation and a way to add that no other test makes.
NOT_HOOKED = ("pfeiffer-head", "houlsby-left-out", "residual-inside")
TOLERANCE = 1e-4
VOCABULARY = 64


def base(arch: str) -> PreTrainedModel:
    """A model of its own, to be adapted."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        FIXTURES / arch, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@cache
def untouched(arch: str) -> PreTrainedModel:
    return base(arch)


@pytest.mark.parametrize("arch", CASES)
def test_one_batch_of_all_and_the_base(arch: str) -> None:
    adapted = AdaptedModel(base(arch), [FIXTURES / case for case in CASES[arch]])
    slots = [-1, *range(len(CASES[arch])), -1]
    logits = adapted.logits(IDS.expand(len(slots), -1), slots)
    for name, found in zip((arch, *CASES[arch], arch), logits, strict=True):
        difference = (found - EXPECTED[name]).abs().max()
        assert difference <= TOLERANCE, f"{name}: {difference}"
    torch.testing.assert_close(logits[0], logits[-1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arch", "case"),
    [(arch, case) for arch in HOOKED for case in CASES[arch] if case not in NOT_HOOKED],
)
def test_the_hooks_that_other_tests_compare_with_are_the_librarys(arch: str, case: str) -> None:
    with torch.inference_mode():
        logits = attach(base(arch), FIXTURES / case)(IDS[None]).logits[0]
    assert (logits - EXPECTED[case]).abs().max() <= 1e-5


def test_the_engine_serves_a_mixed_batch(tmp_path: Path) -> None:
    cases = (None, *CASES["llama"])
    store = store_of(tmp_path)
    blends = {case or "llama": alone(case and store.put(FIXTURES / case)) for case in cases}
    for name, logprobs in first_logprobs(tmp_path, blends).items():
        difference = (logprobs - EXPECTED[name][-1].log_softmax(-1)).abs().max()
        assert difference <= TOLERANCE, name


def test_a_network_beside_a_weighted_lora_is_given_what_the_lora_adds_to(tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["down_proj", "o_proj"])
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        lora = get_peft_model(base("llama"), config)
        redraw(lora, 4)
    lora.save_pretrained(str(tmp_path / "lora"))
    for layer in lora.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 0.5)
    merged = AdaptedModel(lora.merge_and_unload(), [FIXTURES / "pfeiffer"])
    plain, expected = merged.logits(IDS.expand(2, -1), [-1, 0])[:, -1].log_softmax(-1)
    store = store_of(tmp_path)
    network = Part(store.put(FIXTURES / "pfeiffer"))
    weighted = Part(store.put(tmp_path / "lora"), 0.5)
    blends = {"both": (network, weighted), "turned": (weighted, network), "lora": (weighted,)}
    found = first_logprobs(tmp_path, blends)
    assert (found["lora"] - plain).abs().max() <= TOLERANCE
    assert (found["both"] - expected).abs().max() <= TOLERANCE
    assert (found["turned"] - expected).abs().max() <= TOLERANCE
    assert (EXPECTED["pfeiffer"][-1].log_softmax(-1) - expected).abs().max() > 0.1


def test_what_is_lowered() -> None:
    model = untouched("llama")
    plan = lower_folder(FIXTURES / "pfeiffer-head", model)
    assert plan.method == "bottleneck"
    networks = plan.of_kind(Bottleneck)
    assert list(networks) == [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    assert {(op.down.shape, op.activation, op.tap) for op in networks.values()} == {
        (torch.Size([2, 32]), "relu", "sum")
    }
    assert set(plan.ops) - set(networks) == {"lm_head"}
    assert set(lower_folder(FIXTURES / "pfeiffer", model).ops) == set(networks)
    left_out = lower_folder(FIXTURES / "houlsby-left-out", model).of_kind(Bottleneck)
    assert [name.split(".")[2] for name in left_out] == ["1", "1"]


def test_a_norm_of_one_version_and_a_network_of_another() -> None:
    model = base("llama")
    norms = {
        name: Override({"weight": module.weight.detach() * 1.5})
        for name, module in model.named_modules()
        if name.endswith("layernorm")
    }
    override = AdapterPlan("norms", "norms", {name: (op,) for name, op in norms.items()})
    adapted = AdaptedModel(model, [override, FIXTURES / "parallel", FIXTURES / "pfeiffer"])
    logits = adapted.logits(IDS.expand(5, -1), [1, 0, 2, 0, -1])
    for name, row in (("parallel", 0), ("pfeiffer", 2), ("llama", 4)):
        assert (logits[row] - EXPECTED[name]).abs().max() <= TOLERANCE, name
    assert (logits[1] - EXPECTED["llama"]).abs().max() > 0.1


def test_a_file_of_a_model_without_head(tmp_path: Path) -> None:
    path = copied("houlsby", tmp_path)
    tensors = load_file(path / "adapter.safetensors")
    save_file(
        {name.removeprefix("model."): tensor for name, tensor in tensors.items()},
        path / "adapter.safetensors",
    )
    plan, expected = (lower_folder(p, untouched("llama")) for p in (path, FIXTURES / "houlsby"))
    assert plan.digest != expected.digest
    assert plan.ops.keys() == expected.ops.keys()


def test_files_without_a_version_mean_another_gelu(tmp_path: Path) -> None:
    path = edited(copied("houlsby-left-out", tmp_path), version=None)
    networks = lower_folder(path, untouched("llama")).of_kind(Bottleneck)
    assert {op.activation for op in networks.values()} == {"gelu_tanh"}


@pytest.mark.parametrize(
    ("fields", "inner", "where"),
    [
        ({}, {"use_gating": True}, "use_gating"),
        ({}, {"phm_layer": True}, "phm_layer"),
        ({}, {"inv_adapter": "nice"}, "inv_adapter"),
        ({}, {"cross_adapter": True}, "cross_adapter"),
        ({}, {"ln_after": True}, "ln_after"),
        ({}, {"ln_before": True}, "ln_before"),
        ({}, {"architecture": "lora"}, "architecture"),
        ({}, {"new_field": 1}, "new_field"),
        ({}, {"non_linearity": "swiglu"}, "non_linearity"),
        ({}, {"non_linearity": None}, "non_linearity"),
        ({}, {"reduction_factor": 0}, "reduction_factor"),
        ({}, {"reduction_factor": {"0": 8}}, "reduction_factor"),
        ({}, {"original_ln_after": False}, "original_ln_after"),
        ({}, {"residual_before_ln": False}, "original_ln_after"),
        ({}, {"residual_before_ln": "post_add"}, "residual_before_ln"),
        ({}, {"scaling": "lots"}, "scaling"),
        ({}, {"leave_out": "all"}, "leave_out"),
        ({}, {"mh_adapter": "yes"}, "mh_adapter"),
        ({"model_type": "bert"}, {}, "model_type"),
        ({"model_type": "mistral"}, {}, "model_type"),
        ({"hidden_size": 64}, {}, "hidden_size"),
        ({"name": None}, {}, "name"),
        ({"surprise": 1}, {}, "surprise"),
        ({"config": "pfeiffer"}, {}, "config"),
    ],
)
def test_refused_fields(
    fields: dict[str, Any], inner: dict[str, Any], where: str, tmp_path: Path
) -> None:
    path = edited(copied("pfeiffer", tmp_path), **fields)
    if inner:
        config = json.loads((path / "adapter_config.json").read_text())["config"]
        edited(path, config=config | inner)
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(path, untouched("llama"))
    assert caught.value.where == f"adapter_config.json: {where}"


@pytest.mark.parametrize(
    ("inner", "where"),
    [
        ({"mh_adapter": True}, "adapter_model.safetensors"),
        ({"leave_out": [1]}, "model.layers.1.output_adapters.adapters.news.adapter_down.0.bias"),
        (
            {"reduction_factor": 4},
            "model.layers.0.output_adapters.adapters.news.adapter_down.0.weight",
        ),
        ({"scaling": "learned"}, "adapter_model.safetensors"),
    ],
)
def test_tensors_that_are_not_the_configurations(
    inner: dict[str, Any], where: str, tmp_path: Path
) -> None:
    path = copied("pfeiffer", tmp_path)
    config = json.loads((path / "adapter_config.json").read_text())["config"]
    with pytest.raises(AdapterInvalid) as caught:
        lower_folder(edited(path, config=config | inner), untouched("llama"))
    assert caught.value.where == where


def test_a_sum_before_another_norm_is_refused(tmp_path: Path) -> None:
    path = copied("gemma2-houlsby", tmp_path)
    config = json.loads((path / "adapter_config.json").read_text())["config"]
    edited(path, config=config | {"original_ln_before": True})
    with pytest.raises(AdapterInvalid, match=r"original_ln_before.*norm between"):
        lower_folder(path, untouched("gemma2"))


def test_the_digest_covers_the_head_and_the_store_keeps_it(tmp_path: Path) -> None:
    path = copied("pfeiffer-head", tmp_path)
    digest = read_checkpoint(path).digest
    (path / "head_config.json").unlink()
    store = Store(tmp_path / "store")
    assert store.put(path) == digest
    stored = store.read(digest)
    assert stored.head is not None
    assert stored.nbytes == sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert read_tensors(stored).keys() == read_tensors(read_checkpoint(path)).keys()
    stored.head.weights.unlink()
    with pytest.raises(AdapterCorrupt):
        store.read(digest)


@pytest.mark.parametrize(
    ("safe", "pickle"),
    [
        ("adapter.safetensors", "pytorch_adapter.bin"),
        ("model_head.safetensors", "pytorch_model_head.bin"),
    ],
)
def test_pickles_are_refused(safe: str, pickle: str, tmp_path: Path) -> None:
    path = copied("pfeiffer", tmp_path)
    (path / safe).rename(path / pickle)
    with pytest.raises(AdapterInvalid, match=f"convert it with.*{pickle}.*{safe}"):
        read_checkpoint(path)


def first_logprobs(folder: Path, blends: Mapping[str, Blend]) -> dict[str, Tensor]:
    """Log-probabilities after the fixtures' tokens by an engine on llama, all in one batch."""
    requests = [
        structs.replace(greedy(name, tuple(IDS.tolist()), 1, logprobs=VOCABULARY), blend=blend)
        for name, blend in blends.items()
    ]
    found: dict[str, Tensor] = {}
    with tiny_engine(folder, model=str(FIXTURES / "llama")) as engine:
        for event in run(engine, *requests):
            if isinstance(event, Tokens):
                assert event.error is None, event.error
                found[event.id] = torch.tensor(
                    [value for _, value in sorted(event.logprobs[0].top)]
                )
    return found


def copied(case: str, folder: Path) -> Path:
    """A fixture's folder to be changed."""
    return Path(shutil.copytree(FIXTURES / case, folder / case))


def edited(path: Path, **fields: Any) -> Path:
    """Changes fields of the configuration; None drops one."""
    file = path / "adapter_config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path
