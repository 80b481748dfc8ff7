"""`weft inspect` and `weft verify` on tiny models."""

import json
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from adapter_files import edit_config
from adapterhub import save_bottleneck
from command_line import run_weft
from peft_adapters import load_peft, save_lora
from peft_methods import save_method
from peft_prompts import save_prompt
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from weft.adapters.base import BaseModules
from weft.adapters.card import Card
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.delta import Deltas, LoadedWeights
from weft.adapters.methods import lower
from weft.adapters.tensors import read_tensors
from weft.server import verification
from weft.server.engine import hardware
from weft.server.engine.canary import CANARY_TEXT, CANARY_TOKENS
from weft.server.engine.quantization import Quantization
from weft.server.engine.weights import load_weights, read_config
from weft.server.inspection import InspectedOn, inspect_adapter
from weft.server.verification import Compared

Capture = pytest.CaptureFixture[str]
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "mixtral": ["o_proj"]}


class Pair(NamedTuple):
    """A base model and an adapter of it."""

    model: Path
    adapter: Path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    root = tmp_path_factory.mktemp("pairs")
    return {
        arch: Pair(
            save_tiny(arch, root / arch),
            save_lora(root / f"{arch}-adapter", arch, r=4, target_modules=targets),
        )
        for arch, targets in TARGETS.items()
    }


@pytest.mark.parametrize("arch", TARGETS)
def test_the_card_of_an_adapter(capsys: Capture, pairs: dict[str, Pair], arch: str) -> None:
    model, adapter = pairs[arch]
    ended = run_weft(capsys, "inspect", adapter, "--base", model)
    assert ended.code == 0
    shown = dict(re.findall(r"^(\S.*?)  +(.*)$", ended.out, re.MULTILINE))
    assert shown["method"] == "lora"
    assert shown["targets"] == ", ".join(sorted(TARGETS[arch]))
    assert shown["modules"] == str(2 * len(TARGETS[arch]))
    assert shown["rank"] == "4"
    assert shown["trained values"].endswith(" of the base")
    assert ": 1/" in shown["trained values"]
    assert " on average, " in ended.out
    assert shown["warnings"] == "none"
    told = re.fullmatch(
        r"after 'Hello[ ,a-z]*' logits move by up to ([\d.]+), and ([\d.]+)% of the next token's "
        "probability moves to other tokens",
        shown["canary"],
    )
    assert told
    assert float(told[1]) > 0.1
    assert 0 < float(told[2]) <= 100


def test_the_canary_is_that_of_transformers_and_peft(pairs: dict[str, Pair]) -> None:
    model, adapter = pairs["llama"]
    report = inspect_adapter(adapter, InspectedOn(model, "llama")).report
    assert report
    ids = torch.tensor([tiny_tokenizer().encode(CANARY_TEXT)[:CANARY_TOKENS]])
    with torch.inference_mode():
        base = tiny_model("llama")(input_ids=ids).logits[0, -1]
        known = tiny_model("llama")(input_ids=ids[:, :-1], use_cache=True).past_key_values
        peft = load_peft(tiny_model("llama"), adapter)
        adapted = peft(input_ids=ids[:, -1:], cache=known).logits[0, -1]
    moved = (base.softmax(-1) - adapted.softmax(-1)).abs().sum() / 2
    assert report.canary_difference == pytest.approx(float((base - adapted).abs().max()), abs=1e-4)
    assert report.canary_shift == pytest.approx(float(moved), abs=1e-4)


def test_without_a_canary_and_where_the_base_is_too_large(
    capsys: Capture, pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter = pairs["llama"]
    run = inspect_adapter(adapter, InspectedOn(model, "llama")).card
    left_out = run_weft(capsys, "inspect", adapter, "--base", model, "--no-canary")
    assert "canary            not run: it was not asked for" in left_out.out
    monkeypatch.setattr(hardware, "free_memory", lambda device: 1000)
    found = inspect_adapter(adapter, InspectedOn(model, "llama"))
    assert found.report is None
    assert found.not_run.startswith("the weights need 0.0 GiB as torch.float32, and cpu has ")
    norms = pytest.approx(dict(run.delta_norms))
    assert found.card == replace(run, delta_norms=found.card.delta_norms)
    assert found.card.delta_norms == norms


def card(adapter: Path, model: Path, *, run: bool = False, quantization: str = "none") -> Card:
    return inspect_adapter(adapter, InspectedOn(model, model.name, quantization, run)).card


@pytest.mark.parametrize("arch", TARGETS)
def test_updates_are_measured_against_the_weights_in_the_files(
    pairs: dict[str, Pair], arch: str
) -> None:
    model, adapter = pairs[arch]
    found = card(adapter, model).delta_norms
    assert len(found) == 2
    assert found == pytest.approx(norms_beside(tiny_model(arch), adapter), rel=0.02)


def test_replaced_parameters_are_measured_against_those_in_the_files(
    pairs: dict[str, Pair], tmp_path: Path
) -> None:
    adapter = save_method(tmp_path, "llama", "ia3 and saved modules")
    found = card(adapter, pairs["llama"].model).delta_norms
    assert {"lm_head", "model.norm"} < set(found)
    assert found == pytest.approx(norms_beside(tiny_model("llama"), adapter), rel=0.02)


@pytest.mark.parametrize(
    ("arch", "more"),
    [("mixtral", {}), ("qwen3_moe", {}), ("qwen3_moe", {"num_experts": 20}), ("gpt_oss", {})],
    ids=["mixtral", "qwen3_moe", "many", "gpt_oss"],
)
def test_updates_of_experts_are_measured_however_the_files_hold_them(
    arch: str, more: dict[str, int], tmp_path: Path
) -> None:
    """One by one, or all of a layer together."""
    model = save_tiny(arch, tmp_path / arch, **more)
    parameters = ["mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"]
    targets = {"target_modules": ["q_proj"], "target_parameters": parameters}
    adapter = save_lora(tmp_path / "adapter", arch, model=more, r=3, **targets)
    expected = norms_beside(tiny_model(arch, **more), adapter)
    assert len(expected) == 2
    assert card(adapter, model).delta_norms == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("arch", ["qwen3_moe", "gpt_oss"])
def test_replaced_experts_are_measured_however_the_files_hold_them(
    arch: str, tmp_path: Path
) -> None:
    model = save_tiny(arch, tmp_path / arch)
    targets = {"target_modules": ["q_proj"], "modules_to_save": ["1.mlp.experts"]}
    adapter = save_lora(tmp_path / "adapter", arch, r=3, **targets)
    expected = norms_beside(tiny_model(arch), adapter)
    assert card(adapter, model).delta_norms == pytest.approx(expected, rel=0.02)


def norms_beside(model: PreTrainedModel, adapter: Path) -> dict[str, float]:
    base, checkpoint = BaseModules.of(model), read_checkpoint(adapter)
    plan = lower(checkpoint, read_tensors(checkpoint), base)
    return Deltas.of(plan, base, LoadedWeights(base)).by_layer()


@pytest.mark.parametrize("stored", [True, False], ids=["folder", "flag"])
@pytest.mark.parametrize("run", [True, False], ids=["run", "not run"])
@pytest.mark.parametrize("way", ["int8", "nf4"])
def test_updates_are_measured_against_quantised_weights_as_they_are_computed_with(
    way: str, run: bool, stored: bool, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    model, adapter = pairs["llama"]
    config = read_config(model)
    quantized = load_weights(
        model,
        config,
        dtype=torch.float32,
        device=torch.device("cpu"),
        progress=lambda stage, done, total: None,
        quantized=Quantization.choose(way, config, torch.float32),
    )
    if stored:
        model, way = tmp_path / "llama", "none"
        quantized.save_pretrained(model)
    found = card(adapter, model, run=run, quantization=way).delta_norms
    assert found == pytest.approx(norms_beside(quantized, adapter), rel=0.01)
    assert found == pytest.approx(norms_beside(tiny_model("llama"), adapter), rel=0.05)


def test_a_base_that_is_quantised_as_it_was_trained(
    capsys: Capture, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    model, adapter = pairs["llama"]
    trained = edit_config(
        shutil.copytree(adapter, tmp_path / "qlora"), base_model_name_or_path="x/llama-bnb-4bit"
    )
    for flags, warned in ((["--quantization", "nf4"], False), ([], True)):
        ended = run_weft(capsys, "inspect", trained, "--base", model, *flags)
        assert ("--quantization nf4 computes as it was trained" in ended.out) is warned


def test_what_changes_no_weights_has_no_share_of_them(
    capsys: Capture, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    adapter = save_prompt(tmp_path, "llama", "PROMPT_TUNING", 5)
    ended = run_weft(capsys, "inspect", adapter, "--base", pairs["llama"].model)
    assert "update / weights  it changes no weights, or none that could be read\n" in ended.out
    assert "virtual tokens    5\n" in ended.out


def test_files_without_the_models_own_prefix(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """As gpt2's checkpoint on the hub has it."""
    model, adapter = pairs["gpt2"]
    tensors = load_file(model / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    found = card(adapter, tmp_path).delta_norms
    assert found == card(adapter, model).delta_norms


def test_a_tokenizer_of_its_own_is_warned_of(pairs: dict[str, Pair], tmp_path: Path) -> None:
    model, adapter = pairs["llama"]
    own = shutil.copytree(adapter, tmp_path / "own")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"content": "<tool>", "id": 512})
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    (warning,) = card(own, model).warnings
    assert "'<tool>'" in warning


def test_weights_are_read_only_when_an_adapter_needs_them(
    pairs: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter saved with a copy of the base's embedding is compared with the base's own."""
    size = {"vocab_size": 512}
    copying = save_lora(
        tmp_path / "copying", "llama", model=size, r=4, target_modules=["embed_tokens", "q_proj"]
    )
    model = pairs["llama"].model
    assert card(copying, model).modules == 3
    monkeypatch.setattr("weft.server.engine.weights.load_weights", _never)
    assert card(pairs["llama"].adapter, model).modules == 4


def _never(*_: object, **__: object) -> None:
    raise AssertionError("the base's weights were read")


def test_a_refused_adapter(capsys: Capture, pairs: dict[str, Pair], tmp_path: Path) -> None:
    for command in ("inspect", "verify"):
        ended = run_weft(capsys, command, pairs["gpt2"].adapter, "--base", pairs["llama"].model)
        assert ended.code == 1
        assert ended.lines[-1].startswith(f"weft: {pairs['gpt2'].adapter}: refused: ")
    ended = run_weft(capsys, "inspect", tmp_path, "--base", pairs["llama"].model)
    assert ended.lines == [f"weft: {tmp_path}: refused: adapter_config.json: is missing"]


def test_a_base_that_cannot_be_served(
    capsys: Capture, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors").touch()
    ended = run_weft(capsys, "inspect", pairs["llama"].adapter, "--base", tmp_path)
    assert ended.code == 2
    (line,) = ended.lines
    assert line.startswith("weft: --base: ")


def test_verify_agrees_with_peft(capsys: Capture, pairs: dict[str, Pair]) -> None:
    model, adapter = pairs["llama"]
    flags = ["--max-tokens", 5, "--prompt", "One", "--prompt", "Two of them", "--device", "cpu"]
    ended = run_weft(capsys, "verify", adapter, "--base", model, *flags)
    assert ended.code == 0
    yardstick, _, *rows, verdict = ended.out.splitlines()
    assert yardstick == f"compared with peft {version('peft')}"
    assert [row.split("  ")[0] for row in rows] == ["'One'", "'Two of them'"]
    assert all("5 of 5" in row for row in rows)
    assert float(verdict.split()[3].rstrip(";")) < 1e-4
    assert verdict.endswith("tokens agree")


@pytest.mark.parametrize("method", ["MULTITASK_PROMPT_TUNING", "PREFIX_TUNING"])
def test_verify_makes_room_for_what_stands_before_a_prompt(
    method: str, capsys: Capture, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    adapter = save_prompt(tmp_path, "llama", method, 40)
    flags = ["--max-tokens", 5, "--prompt", "One", "--device", "cpu"]
    ended = run_weft(capsys, "verify", adapter, "--base", pairs["llama"].model, *flags)
    assert ended.code == 0, ended.out


def test_verify_compares_adapterhubs_with_their_formulas(
    capsys: Capture, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    """Whose computation is held against the library's own in test_adapterhub.py."""
    adapter = save_bottleneck(tmp_path / "hub", "llama", "houlsby")
    flags = ["--max-tokens", 5, "--prompt", "One", "--prompt", "Two", "--device", "cpu"]
    ended = run_weft(capsys, "verify", adapter, "--base", pairs["llama"].model, *flags)
    assert ended.code == 0, ended.out
    assert ended.out.startswith(
        "compared with a plain PyTorch computation of AdapterHub's formulas, one prompt at a time"
    )
    assert ended.out.endswith("tokens agree\n")


def test_verify_tells_a_difference(
    capsys: Capture, pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Compared((1, 2, 3), (1, 2, 4), 0.5), Compared((1,), (1,), 0.0)]
    monkeypatch.setattr(verification, "verify_adapter", lambda *_: answers)
    model, adapter = pairs["llama"]
    ended = run_weft(capsys, "verify", adapter, "--base", model, "--prompt", "a", "--prompt", "b")
    assert ended.code == 1
    assert "2 of 3" in ended.out
    assert ended.out.endswith("largest logit difference 5.00e-01; tokens differ for 1 of 2\n")


def test_logits_are_compared_up_to_the_first_difference() -> None:
    expected = torch.eye(3)
    actual = expected.clone()
    actual[1] = torch.tensor([0.0, 0.0, 9.0])
    actual[2] = 100.0
    compared = verification.compare(expected, actual)
    assert compared == replace(compared, expected=(0, 1, 2), difference=9.0)
    assert compared.equal == 1
