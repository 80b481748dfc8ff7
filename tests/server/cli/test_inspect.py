"""`weft inspect` and `weft verify` on tiny models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from command_line import run_weft
from peft_adapters import save_lora
from peft_prompts import save_prompt
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny, tiny_model

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import read_checkpoint
from weft.adapters.delta import Deltas, weight_norms
from weft.adapters.methods import lower
from weft.adapters.tensors import read_tensors
from weft.server import verification
from weft.server.inspection import inspect_adapter
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
    shown = dict(line.split(maxsplit=1) for line in ended.out.splitlines() if " " in line)
    assert shown["method"] == "lora"
    assert shown["targets"] == ", ".join(sorted(TARGETS[arch]))
    assert shown["modules"] == str(2 * len(TARGETS[arch]))
    assert shown["rank"] == "4"
    assert " on average, " in ended.out
    assert shown["warnings"] == "none"


@pytest.mark.parametrize("arch", TARGETS)
def test_updates_are_measured_against_the_weights_in_the_files(
    pairs: dict[str, Pair], arch: str
) -> None:
    model, adapter = pairs[arch]
    found = inspect_adapter(adapter, model, arch).delta_norms
    base = BaseModules.of(tiny_model(arch))
    checkpoint = read_checkpoint(adapter)
    plan = lower(checkpoint, read_tensors(checkpoint), base)
    assert len(found) == 2
    assert found == pytest.approx(Deltas.of(plan, weight_norms(base)).by_layer(), rel=0.02)


def test_files_without_the_models_own_prefix(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """As gpt2's checkpoint on the hub has it."""
    model, adapter = pairs["gpt2"]
    tensors = load_file(model / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    found = inspect_adapter(adapter, tmp_path, "gpt2").delta_norms
    assert found == inspect_adapter(adapter, model, "gpt2").delta_norms


def test_a_tokenizer_of_its_own_is_warned_of(pairs: dict[str, Pair], tmp_path: Path) -> None:
    model, adapter = pairs["llama"]
    own = shutil.copytree(adapter, tmp_path / "own")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"content": "<tool>", "id": 512})
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    (warning,) = inspect_adapter(own, model, "llama").warnings
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
    assert inspect_adapter(copying, model, "llama").modules == 3
    monkeypatch.setattr("weft.server.engine.weights.load_weights", _never)
    assert inspect_adapter(pairs["llama"].adapter, model, "llama").modules == 4


def _never(*_: object, **__: object) -> None:
    raise AssertionError("the base's weights were read")


def test_a_refused_adapter(capsys: Capture, pairs: dict[str, Pair], tmp_path: Path) -> None:
    for command in ("inspect", "verify"):
        ended = run_weft(capsys, command, pairs["gpt2"].adapter, "--base", pairs["llama"].model)
        assert ended.code == 1
        assert ended.lines[-1].startswith(f"weft: {pairs['gpt2'].adapter}: ")
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
    *rows, verdict = ended.out.splitlines()[1:]
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
