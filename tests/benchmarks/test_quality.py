"""The benchmark of fine-tuning methods: a run of seconds from end to end, and what it rests on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import quality
import torch
import typer
from finetuning.bottleneck import BottleneckModel
from finetuning.methods import METHODS, fewer_at_7b
from finetuning.report import Scored, claims, rows
from finetuning.serving import BASE_MIX, Score, Served
from finetuning.tasks import TASKS, Sizes, general, splits
from finetuning.training import Budget, Job, Trained, trained
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from weft.server.demo.requests import normal

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "adapterhub"
CLAIM = "LoRA within 1 to 2 % of full fine-tuning"
SIZES = Sizes(train=300, validation=20, test=30)


@pytest.mark.timeout(600)  # three processes that import torch, on a core that may be shared
def test_a_short_run_of_methods_whose_files_are_of_different_kinds(tmp_path: Path) -> None:
    small = "--tasks note --methods full,qlora,bottleneck --seeds 1 --no-search --steps 2"
    sizes = "--tokens 64 --prompts 2 --repeats 1"
    places = ["--results", str(tmp_path), "--cache", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "quality.py")]
    done = subprocess.run(
        [*command, *small.split(), *sizes.split(), *places],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["machine"]["packages"]
    by_method = {row["method"]: row for row in found["methods"]}
    assert list(by_method) == ["full", "qlora", "bottleneck"]
    for row in by_method.values():
        assert row["agreeing"] == row["checked"] == 2
        assert min(row["one"], row["all"], row["seconds"], row["device_bytes"]) > 0
    full, qlora, bottleneck = by_method.values()
    assert full["fewer"] == 1
    assert qlora["fewer"] > 10
    assert full["checkpoint_bytes"] > 10 * bottleneck["checkpoint_bytes"]
    assert qlora["state_bytes"] < bottleneck["state_bytes"] < full["state_bytes"]
    named = [(run["method"], run["task"], run["seed"]) for run in found["runs"]]
    assert sorted(named) == [(method, "note", 0) for method in sorted(by_method)]
    assert set(found["engines"]) == {"none", "nf4"}


def test_what_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    job = Job("lora", "note", 0.1, 0, Budget(1, 64, SIZES, 1))
    folder = job.folder(tmp_path)
    folder.mkdir()
    figures: dict[str, Any] = {
        "trainable": 1,
        "checkpoint_bytes": 2,
        "seconds": 3.0,
        "peak_bytes": 4,
        "state_bytes": 5,
        "validation_loss": 6.0,
        "answers": [[7, 8]],
    }
    (folder / "figures.json").write_text(json.dumps(figures))
    kept = figures | {"answers": ((7, 8),)}
    assert trained(job, tmp_path) == Trained(job=job, adapter=folder / "adapter", **kept)
    longer = Job("lora", "note", 0.1, 0, Budget(2, 64, SIZES, 1))
    assert longer.folder(tmp_path) != folder


def test_unknown_names_are_refused() -> None:
    with pytest.raises(typer.BadParameter, match="dreaming is none of full, lora"):
        quality.main(methods="lora,dreaming")


@pytest.mark.parametrize("task", TASKS)
def test_no_sentence_is_in_two_splits(task: str) -> None:
    found = splits(TASKS[task], SIZES)
    assert found == splits(TASKS[task], SIZES)
    train, validation, test = (
        {normal(conversation.turns[0][0]) for conversation in part}
        for part in (found.train, found.validation, found.test)
    )
    assert len(found.train) == SIZES.train
    assert (len(found.validation), len(found.test)) == (SIZES.validation, SIZES.test)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_the_tasks_are_asked_for_by_other_messages_than_the_base_knows() -> None:
    known = {conversation.system for conversation in general(100)}
    assert None in known
    assert len(known) > 3
    assert not known & {task.message for task in TASKS.values()}


def test_a_trained_bottleneck_computes_what_adapterhubs_does() -> None:
    expected = load_file(FIXTURES / "expected.safetensors")
    tensors = load_file(FIXTURES / "qwen3-houlsby" / "adapter.safetensors")
    base = AutoModelForCausalLM.from_pretrained(FIXTURES / "qwen3", dtype=torch.float32).eval()
    model = BottleneckModel(base, reduction_factor=8)
    own = {name.replace(".trained.", ".news."): t for name, t in model.named_tensors().items()}
    assert own.keys() == tensors.keys()
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    with torch.no_grad():
        logits = model(input_ids=expected["ids"][None]).logits[0]
    assert (logits - expected["qwen3-houlsby"]).abs().max() <= 1e-4
    assert (logits - expected["qwen3"]).abs().max() > 0.1


def test_shares_of_a_7b_model_are_counted() -> None:
    assert fewer_at_7b(METHODS["full"]) == 1
    values = 6_738_415_616
    assert round(values / fewer_at_7b(METHODS["prompt"])) == 16 * 4096
    inputs_and_outputs = 4 * (4096 + 4096) + 3 * (4096 + 11_008)
    assert round(values / fewer_at_7b(METHODS["lora"])) == 32 * 8 * inputs_and_outputs


def test_accuracy_is_compared_with_full_fine_tuning_of_the_same_seed() -> None:
    shares = {"full": (0.8, 0.4), "lora": (0.4, 0.4)}
    scored = [
        scored_run(method, seed, share)
        for method, by_seed in shares.items()
        for seed, share in enumerate(by_seed)
    ]
    speeds = {BASE_MIX: 100.0}
    for method in shares:
        speeds |= {f"{method}, one": 50.0, f"{method}, all": 25.0}
    served = Served((), {}, 0, (), speeds)
    full, lora = rows(scored, {"none": served}, {"full": (1, 1), "lora": (10, 100)})
    assert (full.relative["note"].low, full.relative["note"].high) == (1, 1)
    compared = lora.relative["note"]
    assert (compared.mean, compared.low, compared.high) == (0.75, 0.5, 1)
    assert "does not hold, 75.0% (50% to 100%)" in dict(claims([full, lora]))[CLAIM]
    assert (lora.one, lora.all) == (0.5, 0.25)
    assert lora.accuracy["note"].mean == pytest.approx(0.4)


def scored_run(method: str, seed: int, share: float) -> Scored:
    job = Job(method, "note", 0.1, seed, Budget(1, 1, SIZES, 0))
    figures: dict[str, Any] = {"seconds": 1.0, "peak_bytes": 1, "state_bytes": 1}
    run = Trained(
        job, Path(), trainable=1, checkpoint_bytes=1, validation_loss=1, answers=(), **figures
    )
    return Scored(run, Score(share, 0.5), 1)
