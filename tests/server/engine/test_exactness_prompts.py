"""What stands before a prompt, and when an adapter begins: each as peft's forward answers it."""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from engines import load, run, store_of, tiny_engine
from exactness import Oracle, Question, answers_of, assert_same, prompts, token_bytes
from peft_adapters import save_lora
from peft_prompts import PREFIX, SOFT, LoopOracle, save_prompt

from weft.server.engine.messages import Loaded

ARCHITECTURES = ("llama", "qwen2", "gemma2", "gpt2")
METHODS = (*SOFT, *PREFIX)
COUNTS = (5, 3, 8, 4, 6, 21)  # the last one is longer than gemma2's window
NEW_TOKENS = 16
COMMON = tuple(range(20, 29))
INVOCATION = (27, 28)  # how COMMON ends, too


@dataclass(frozen=True)
class Way:
    """How the engine is made to compute: all must answer alike."""

    budget: int
    caching: bool
    scarce: bool

    def settings(self, arch: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "max_num_batched_tokens": self.budget,
            "max_num_seqs": 7,
            "max_model_len": 64,
            "prefix_caching": self.caching,
        }
        if self.scarce:
            settings |= {"page_size": 2, "kv_cache_memory": 2 * 33 * token_bytes(arch)}
        return settings


WAYS = (
    Way(budget=64, caching=True, scarce=False),
    Way(budget=7, caching=False, scarce=False),
    Way(budget=11, caching=True, scarce=True),
    Way(budget=16, caching=False, scarce=True),
)


def adapters(folder: Path, arch: str) -> list[Path]:
    """One of each method."""
    return [
        save_prompt(folder / method, arch, method, count, seed=number)
        for number, (method, count) in enumerate(zip(METHODS, COUNTS, strict=True))
    ]


def loras(folder: Path, arch: str) -> tuple[Path, Path]:
    """A LoRA, and one that begins with INVOCATION."""
    targets = ["c_attn"] if arch == "gpt2" else ["q_proj", "down_proj"]
    lora = save_lora(folder / "lora", arch, r=4, target_modules=targets)
    invoked = {"seed": 1, "alora_invocation_tokens": list(INVOCATION)}
    return lora, save_lora(folder / "alora", arch, r=4, target_modules=targets, **invoked)


def questions(arch: str, asked: list[Path], lora: Path, alora: Path) -> list[Question]:
    """Two for each adapter and the base; all prompts begin alike, but no two may share wrong KV.

    One of those to the aLoRA invokes it twice, the other one never.
    """
    random = Random(arch)
    oracles = [*(LoopOracle(arch, path) for path in asked), Oracle(arch, lora), Oracle(arch)]
    found = [
        oracle.question(prompts(random, length, COMMON), NEW_TOKENS)
        for oracle in oracles
        for length in (random.randint(10, 17), random.randint(10, 17))
    ]
    activated = LoopOracle(arch, alora)
    invoking = [(*COMMON, 9, *INVOCATION), COMMON[:8]]
    return found + [activated.question(prompts(random, 15, p), NEW_TOKENS) for p in invoking]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_mixed_batches_equal_peft(arch: str, tmp_path: Path) -> None:
    paths, lines = adapters(tmp_path, arch), loras(tmp_path, arch)
    asked = questions(arch, paths, *lines)
    for number, way in enumerate(WAYS):
        Random(number).shuffle(asked)
        with tiny_engine(tmp_path, arch, **way.settings(arch)) as engine:
            digests = {path: store_of(tmp_path).put(path) for path in (*paths, *lines)}
            requests = [question.request(str(i), digests) for i, question in enumerate(asked)]
            answers = answers_of(run(engine, *requests))
            for index, question in enumerate(asked):
                assert_same(answers[str(index)], question.answer, f"{way}: {question.adapter}")
            assert (engine.scheduler.preemptions > 0) == way.scarce


def test_the_canary_of_an_alora_is_active_without_its_invocation(tmp_path: Path) -> None:
    _, alora = loras(tmp_path, "llama")
    with tiny_engine(tmp_path) as engine:
        answer = load(engine, store_of(tmp_path).put(alora))
    assert isinstance(answer, Loaded)
    assert answer.report.method == "alora"
    assert answer.report.canary_difference > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_load_answers_with_the_positions_it_takes(method: str, tmp_path: Path) -> None:
    path = save_prompt(tmp_path / method, "llama", method, 5)
    with tiny_engine(tmp_path) as engine:
        answer = load(engine, store_of(tmp_path).put(path))
    assert isinstance(answer, Loaded)
    assert answer.report.method == method.lower()
    assert answer.report.virtual_tokens == 5
