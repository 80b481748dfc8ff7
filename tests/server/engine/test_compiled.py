"""A compiled base: which steps compiled code computes, and that none waits for a compiler.

That its answers are the same is shown by test_exactness_mixes, for all methods.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import greedy, run, store_of, tiny_engine, tokens_of
from peft_adapters import save_lora
from torch._dynamo.utils import counters
from torch.profiler import profile

from weft.server.engine.engine import Engine
from weft.server.engine.forward import Forward
from weft.server.engine.messages import Command
from weft.server.engine.unsupported import ModelUnsupported

PROMPT, TOKENS = (20, 21, 22, 23, 24), 6
Answers = dict[tuple[str, int], list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Iterator[Engine]:
    with tiny_engine(folder, compile=True, prefix_caching=False) as engine:
        yield engine


def compiled_steps(
    engine: Engine, patch: pytest.MonkeyPatch, *commands: Command
) -> tuple[Answers, int, int]:
    """The answers, how many steps were computed, and how many of these by compiled code."""
    honest, steps = Forward.run, []

    def counted(forward: Forward, batch: Any) -> torch.Tensor:
        steps.append(batch)
        return honest(forward, batch)

    patch.setattr(Forward, "run", counted)
    graphs = counters["stats"]["unique_graphs"]
    with profile() as seen:
        answers = tokens_of(run(engine, *commands))
    assert counters["stats"]["unique_graphs"] == graphs
    regions = [e for e in seen.events() if e.name.startswith("Torch-Compiled Region")]
    return answers, len(steps), len(regions)


def test_steps_of_prompts_and_decodes_with_and_without_adapters_are_compiled(
    compiled: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = store_of(folder).put(save_lora(folder / "lora", "llama", seed=1))
    for adapters in [[None], [lora], [None, lora, lora]]:
        asks = [greedy(str(i), (*PROMPT, i), TOKENS, one) for i, one in enumerate(adapters, 30)]
        _, steps, found = compiled_steps(compiled, monkeypatch, *asks)
        assert found == steps >= TOKENS


def test_only_steps_with_norms_of_their_own_are_not(
    compiled: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_lora(folder / "norms", "llama", seed=2, modules_to_save=["norm"])
    norms = store_of(folder).put(path)
    own, base = greedy("own", PROMPT, TOKENS, norms), greedy("base", PROMPT, TOKENS)
    before, _, _ = compiled_steps(compiled, monkeypatch, base)
    _, steps, found = compiled_steps(compiled, monkeypatch, own)
    assert found == 0 < steps
    after, steps, found = compiled_steps(compiled, monkeypatch, base)
    assert found == steps
    assert before == after


def test_a_base_that_torch_cannot_compile_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(function: Any, **options: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    refused = pytest.raises(ModelUnsupported, match=r"--compile: .*LlamaForCausalLM: no compiler")
    with refused, tiny_engine(folder, compile=True):
        pass
