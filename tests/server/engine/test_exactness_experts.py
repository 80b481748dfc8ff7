"""Adapters of experts and routers beside other methods in one engine, each as peft answers it.

Chunked prefill, prefix cache, preemption and eviction are on in some mixes and off in others.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from adapted_model import lower_folder
from adapter_files import edit_config, read_config
from engines import run, store_of, tiny_engine
from exactness import Question, answers_of, assert_same, token_bytes
from former_experts import FORMER, save_former_lora
from forward_loops import LoopOracle
from peft_adapters import load_peft, save_lora
from peft_methods import save_method
from peft_prompts import save_prompt
from tiny_models import VOCAB_SIZE, tiny_model
from watched_logits import WatchedLogits

ARCHITECTURES = ("mixtral", "qwen3_moe", "gpt_oss")
MIXES_OF_EACH = 3
MAX_MODEL_LEN = 40
NEW_TOKENS = 16
BEGINNING = tuple(range(20, 29))
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
FIRST, LAST = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def adapters_of(arch: str, folder: Path, seed: int) -> Iterator[Path]:
    """Of experts, as peft saves them in various ways, and of other methods on attention."""
    router = "router" if arch == "gpt_oss" else "gate"
    loras: list[dict[str, Any]] = [
        {"target_modules": [], "target_parameters": [FIRST, LAST], "r": 2 + seed},
        {"target_modules": ["v_proj"], "target_parameters": [FIRST, f"{router}.weight"], "r": 6},
        {"target_parameters": [f"{seed % 2}.{LAST}"], "use_rslora": True, "r": 3},
        {"target_modules": "all-linear", "r": 4},
        {"use_dora": True},
        {"modules_to_save": [router, "1.mlp.experts"]},
        {"target_modules": ["q_proj", "embed_tokens"], "bias": "all"},
    ]
    for number, fields in enumerate(loras):
        config = {"target_modules": ["q_proj"]} | fields
        yield save_lora(folder / f"lora-{number}", arch, seed=10 * seed + number, **config)
    for method in ("hra", "ia3 of outputs", "oft", "waveft"):
        targets = {"target_modules": ["q_proj", "v_proj"]}
        yield save_method(folder / method, arch, method, seed, **targets)
    if arch in FORMER:
        yield save_former_lora(folder / "former", arch, seed=seed)
    yield save_prompt(folder / "soft", arch, "PROMPT_TUNING", 3 + seed, seed=seed)
    yield save_prompt(folder / "prefix", arch, "PREFIX_TUNING", 2 + seed, seed=seed)


def question(oracle: LoopOracle, random: Random) -> Question:
    """One whose choices are all clear; all prompts begin alike, but no two adapters share KV."""
    while True:
        length = random.randint(1, MAX_MODEL_LEN - NEW_TOKENS - len(BEGINNING) - 5)
        asked = [
            (*BEGINNING, *(random.randrange(5, VOCAB_SIZE) for _ in range(length)))
            for _ in range(4)
        ]
        if found := oracle.questions(asked, NEW_TOKENS):
            return found[0]


def settings_of(arch: str, number: int, sizes: list[int]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "max_model_len": MAX_MODEL_LEN,
        "max_num_batched_tokens": (12, 64, 20)[number],
        "max_num_seqs": 8,
        "prefix_caching": number != 1,
        "patience": 0.02,
        "adapter_memory": 64 << 20,
    }
    if number == 0:
        pages = 2 * (MAX_MODEL_LEN // 2 + 1)
        settings |= {"page_size": 2, "kv_cache_memory": pages * token_bytes(arch)}
    if number == 2:
        settings["adapter_memory"] = max(*sizes, sum(sizes) // 2)
    return settings


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", range(MIXES_OF_EACH))
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_mixed_batches_equal_peft(arch: str, number: int, device: str, tmp_path: Path) -> None:
    random = Random(f"{arch} {number}")
    adapters = list(adapters_of(arch, tmp_path, number))
    asked = [question(LoopOracle.of(arch, adapter), random) for adapter in adapters]
    base = LoopOracle(tiny_model(arch))
    asked += [question(base, random) for _ in range(3)]
    random.shuffle(asked)
    model = tiny_model(arch)
    sizes = [lower_folder(path, model).nbytes(torch.float32) + 4096 for path in adapters[:-2]]
    logits = WatchedLogits()
    common: dict[str, Any] = {"device": device, "watch": logits.watch}
    with tiny_engine(tmp_path, arch, **common, **settings_of(arch, number, sizes)) as engine:
        store = store_of(tmp_path)
        digests = {adapter: store.put(adapter) for adapter in adapters}
        requests = [one.request(str(i), digests) for i, one in enumerate(asked)]
        answers = answers_of(run(engine, *requests), logits)
        for index, one in enumerate(asked):
            name = f"{arch}: {one.adapter}"
            assert_same(answers[str(index)], one.answer, name)
        if number == 0:
            assert engine.scheduler.preemptions > 0
        if number == 2:
            assert engine.residency.evictions > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weighted_adapters_add_to_the_same_experts(arch: str, tmp_path: Path) -> None:
    weights = (0.7, 0.4)
    fields = ([FIRST, LAST], [FIRST])
    model = tiny_model(arch)
    parts = []
    for number, (weight, names) in enumerate(zip(weights, fields, strict=True)):
        config: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": names}
        folder = save_lora(tmp_path / str(number), arch, seed=number, r=3 + number, **config)
        parts.append((folder, weight))
        alpha = read_config(folder)["lora_alpha"]
        weighted = save_lora(
            tmp_path / "w" / str(number), arch, seed=number, r=3 + number, **config
        )
        edit_config(weighted, lora_alpha=alpha * weight)
        model = load_peft(model, weighted).merge_and_unload()
    random = Random(arch)
    asked = [question(LoopOracle(model, *parts), random) for _ in range(2)]
    asked += [question(LoopOracle(tiny_model(arch)), random)]
    asked += [question(LoopOracle.of(arch, parts[1][0]), random)]
    logits = WatchedLogits()
    with tiny_engine(tmp_path, arch, watch=logits.watch, max_num_batched_tokens=20) as engine:
        store = store_of(tmp_path)
        digests = {folder: store.put(folder) for folder, _ in parts}
        requests = [one.request(str(i), digests) for i, one in enumerate(asked)]
        answers = answers_of(run(engine, *requests), logits)
    for index, one in enumerate(asked):
        assert_same(answers[str(index)], one.answer, f"{arch}: {one.adapter}")
