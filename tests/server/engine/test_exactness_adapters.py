"""Random mixes of LoRA adapters and base requests in one batch, each as peft answers it alone."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from adapted_model import lower_folder
from engines import run, store_of, tiny_engine
from exactness import Oracle, Question, answers_of, assert_same, prompts, token_bytes
from peft_adapters import save_lora
from tiny_models import ARCHITECTURES, tiny_model
from watched_logits import WatchedLogits

from weft.adapters.base import BaseModules

MIXES = 45
COUNTS = (2, 5, 1, 32, 3, 8, 4, 2, 12, 6, 3, 16, 2, 7, 4)
RANKS = (1, 2, 3, 4, 5, 8, 11, 16, 24, 33, 64)
MAX_MODEL_LEN = 40
PREFIX = tuple(range(20, 29))
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@dataclass
class Mix:
    """One random mix; everything about it follows from its number."""

    number: int
    folder: Path
    arch: str = field(init=False)
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.arch = ARCHITECTURES[self.number % len(ARCHITECTURES)]
        self.random = Random(self.number)
        self.count = COUNTS[(self.number * 4 + self.number // len(COUNTS)) % len(COUNTS)]
        self.scarce_pages = self.number % 3 == 0
        self.scarce_arena = self.number % 4 == 1
        self.new_tokens = 12 if self.scarce_pages else 6

    def adapters(self) -> list[Path]:
        """Folders of random adapters, as peft saves them."""
        base = BaseModules.of(tiny_model(self.arch))
        return [
            save_lora(
                self.folder / f"adapter-{index}",
                self.arch,
                seed=1000 * self.number + index,
                **self.config(base),
            )
            for index in range(self.count)
        ]

    def config(self, base: BaseModules) -> dict[str, Any]:
        """A random LoRA configuration: most of them of linears, some of embeddings and the head."""
        rank = self.random.choice(RANKS)
        rslora = self.random.random() < 0.25
        scaling = self.random.uniform(0.5, 2.0)
        return {
            "r": rank,
            "lora_alpha": scaling * (rank**0.5 if rslora else rank),
            "use_rslora": rslora,
            "target_modules": self.targets(base),
        }

    def targets(self, base: BaseModules) -> list[str] | str:
        inner = {
            name.rpartition(".")[2]
            for name, target in base.items()
            if target.kind != "embedding" and name != base.head
        }
        embeddings = {
            name.rpartition(".")[2]
            for name, target in base.items()
            if target.kind == "embedding" and target.refusal is None
        }
        if self.random.random() < 0.2:
            return "all-linear"
        chosen = self.random.sample(sorted(inner), self.random.randint(1, len(inner)))
        if self.random.random() < 0.25:
            chosen.append(self.random.choice(sorted(embeddings)))
        if self.random.random() < 0.25 and base.head is not None:
            chosen.append(base.head)
        return chosen

    def questions(self, adapters: list[Path]) -> list[Question]:
        """Requests in random order; all prompts begin alike, but no two adapters may share KV."""
        bases = max(2, 7 - self.count)
        asked: list[Question] = []
        for adapter in [*adapters, None]:
            oracle = Oracle(self.arch, adapter)
            repeats = bases if adapter is None else 1 + (self.count < 8)
            for _ in range(repeats):
                longest = 14 if self.scarce_pages else MAX_MODEL_LEN - self.new_tokens
                length = self.random.randint(len(PREFIX) + 1, longest)
                candidates = prompts(self.random, length, PREFIX)
                asked.append(oracle.question(candidates, self.new_tokens))
        self.random.shuffle(asked)
        return asked

    def engine(self, sizes: list[int]) -> dict[str, Any]:
        """Random settings; pages, or memory for adapters of `sizes` bytes, are scarce in some."""
        settings: dict[str, Any] = {
            "max_model_len": MAX_MODEL_LEN,
            "max_num_batched_tokens": self.random.choice((8, 20, 64)),
            "max_num_seqs": self.random.choice((3, 5, 8)),
            "prefix_caching": self.number % 2 == 0,
            "patience": 0.02,
            "adapter_memory": 64 << 20,
        }
        if self.scarce_pages:
            pages = MAX_MODEL_LEN // 2 + 1
            settings |= {"page_size": 2, "kv_cache_memory": 2 * pages * token_bytes(self.arch)}
            settings["max_num_seqs"] = 8
        if self.scarce_arena:
            settings["adapter_memory"] = max(2 * max(sizes), sum(sizes) // 2)
        return settings


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", range(MIXES))
def test_mixed_batches_equal_peft(number: int, device: str, tmp_path: Path) -> None:
    mix = Mix(number, tmp_path)
    adapters = mix.adapters()
    asked = mix.questions(adapters)
    base = tiny_model(mix.arch)
    sizes = [lower_folder(adapter, base).nbytes(torch.float32) for adapter in adapters]
    logits = WatchedLogits()
    common: dict[str, Any] = {"device": device, "watch": logits.watch}
    with tiny_engine(tmp_path, mix.arch, **common, **mix.engine(sizes)) as engine:
        store = store_of(tmp_path)
        digests = {adapter: store.put(adapter) for adapter in adapters}
        requests = [question.request(str(i), digests) for i, question in enumerate(asked)]
        answers = answers_of(run(engine, *requests), logits)
        for index, question in enumerate(asked):
            name = f"{mix.arch} request {index} of {question.adapter}"
            assert_same(answers[str(index)], question.answer, name)
        assert engine.residency.loads >= mix.count
        if mix.scarce_pages:
            assert engine.scheduler.preemptions > 0
        if engine.info.adapter_bytes < sum(sizes):
            assert engine.residency.evictions > 0
