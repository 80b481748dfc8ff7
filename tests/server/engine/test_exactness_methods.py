"""Random mixes of every method that changes weights in one engine, each as peft answers it alone.

Chunked prefill, prefix cache, preemption and eviction are on in some mixes and off in others.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from adapted_model import lower_folder
from engines import run, store_of, tiny_engine
from exactness import Answer, Oracle, Question, answers_of, assert_same, prompts, token_bytes
from peft_adapters import save_lora
from peft_methods import METHODS, save_method
from peft_prompts import LoopOracle
from tiny_models import tiny_model
from torch import Tensor

ARCHITECTURES = ("llama", "qwen2", "gemma2", "gpt2")
MIXES_OF_EACH = 8
MAX_MODEL_LEN = 40
NEW_TOKENS = 16
PREFIX = tuple(range(20, 29))
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
LORAS: dict[str, dict[str, Any]] = {
    "lora": {"r": 3},
    "dora": {"r": 5, "use_dora": True},
    "dora and biases": {"use_dora": True, "bias": "all"},
    "pissa": {"init_lora_weights": "pissa"},
    "bias of B": {"r": 2, "lora_bias": True, "bias": "lora_only"},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved norms": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [*PREFIX[:5], 100, 200, 300, 301]},
}
LORAS_OF_GPT2 = {"saved norms": {"modules_to_save": ["ln_f", "ln_1"]}}


class MethodOracle(LoopOracle):
    """Also of methods that take a task's number, or whose tensors torch warns about."""

    def answer(self, prompt: tuple[int, ...], tokens: int) -> Answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().answer(prompt, tokens)

    def _logits(self, ids: Tensor, prompt: int) -> Tensor:
        if self._model.active_peft_config.peft_type != "POLY":
            return super()._logits(ids, prompt)
        logits: Tensor = self._model(input_ids=ids, task_ids=torch.tensor([0])).logits
        return logits


@dataclass
class Mix:
    """One random mix; everything about it follows from its architecture and number."""

    arch: str
    number: int
    folder: Path
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(f"{self.arch} {self.number}")
        self.scarce_pages = self.number % 3 == 0
        self.scarce_arena = self.number % 4 == 1

    def adapters(self) -> list[Path]:
        """A share of all methods, so that the mixes of an architecture have all of them."""
        names = [name for name, method in METHODS.items() if self.arch in method.archs]
        Random(self.arch).shuffle(names)
        share = names[self.number :: MIXES_OF_EACH]
        return [
            save_method(self.folder / name, self.arch, name, seed=self.number)
            for name in share
            if name != "poly of two tasks"
        ] + [self.lora()]

    def lora(self) -> Path:
        name = [*LORAS][self.number]
        targets = ["c_attn", "c_fc"] if self.arch == "gpt2" else ["q_proj", "up_proj"]
        fields = (LORAS | (LORAS_OF_GPT2 if self.arch == "gpt2" else {}))[name]
        return save_lora(self.folder / f"LoRA, {name}", self.arch, target_modules=targets, **fields)

    def questions(self, adapters: list[Path]) -> list[Question]:
        """Requests in random order; all prompts begin alike, but no two adapters may share KV."""
        asked: list[Question] = []
        for adapter in [*adapters, None, None]:
            oracle = Oracle(self.arch) if adapter is None else MethodOracle(self.arch, adapter)
            length = self.random.randint(len(PREFIX) + 1, MAX_MODEL_LEN - NEW_TOKENS)
            asked.append(oracle.question(prompts(self.random, length, PREFIX), NEW_TOKENS))
        self.random.shuffle(asked)
        return asked

    def engine(self, adapters: list[Path]) -> dict[str, Any]:
        """A random engine's settings; pages or adapter memory are scarce in some."""
        settings: dict[str, Any] = {
            "max_model_len": MAX_MODEL_LEN,
            "max_num_batched_tokens": self.random.choice((8, 20, 64)),
            "max_num_seqs": self.random.choice((5, 8)),
            "prefix_caching": self.number % 2 == 0,
            "patience": 0.02,
            "adapter_memory": 64 << 20,
        }
        if self.scarce_pages:
            pages = MAX_MODEL_LEN // 2 + 1
            settings |= {"page_size": 2, "kv_cache_memory": 2 * pages * token_bytes(self.arch)}
        if self.scarce_arena:
            base = tiny_model(self.arch)
            sizes = [lower_folder(path, base).nbytes(torch.float32) + 4096 for path in adapters]
            settings["adapter_memory"] = max(*sizes, sum(sizes) // 2)
        return settings


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", range(MIXES_OF_EACH))
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_mixed_batches_equal_peft(arch: str, number: int, device: str, tmp_path: Path) -> None:
    mix = Mix(arch, number, tmp_path)
    adapters = mix.adapters()
    asked = mix.questions(adapters)
    with tiny_engine(tmp_path, arch, device=device, **mix.engine(adapters)) as engine:
        store = store_of(tmp_path)
        digests = {adapter: store.put(adapter) for adapter in adapters}
        requests = [question.request(str(i), digests) for i, question in enumerate(asked)]
        answers = answers_of(run(engine, *requests))
        for index, question in enumerate(asked):
            name = question.adapter.name if question.adapter else "base"
            assert_same(answers[str(index)], question.answer, f"{arch}: {name}")
        assert engine.residency.loads >= len(adapters)
        if mix.scarce_pages:
            assert engine.scheduler.preemptions > 0
        if mix.scarce_arena:
            assert engine.residency.evictions > 0
