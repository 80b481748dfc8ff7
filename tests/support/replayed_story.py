"""An engine whose decode steps are replayed, held against peft while adapters come and go."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import greedy, run, step, store_of, tiny_engine, tokens_of
from exactness import TOLERANCE
from peft_adapters import peft_logits, save_lora
from tape import tape_kernels
from tiny_models import save_tiny
from watched_logits import WatchedLogits

from weft.server.engine.batch import StepBatch
from weft.server.engine.decode_graphs import DecodeGraphs, Recorder
from weft.server.engine.engine import Engine
from weft.server.engine.forward import Forward
from weft.server.engine.messages import Event
from weft.server.engine.model import ModelHost

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 128,
}
"""A model that Triton's interpreter gets through."""
ROOM = {"adapter_memory": 100_000, "kv_cache_memory": 20_000}
"""Bytes: for two of the story's adapters at a time, and for all its pages."""
ROWS, LONGEST = 4, 24
RANKS = (0, 16, 64)


@dataclass(frozen=True)
class Ask:
    """A request, the folder of its adapter, and after how many steps it comes."""

    prompt: tuple[int, ...]
    tokens: int
    adapter: Path | None
    after: int


def adapters(folder: Path, arch: str, model: dict[str, Any]) -> list[Path]:
    """Of different ranks."""
    linears: dict[str, Any] = {"target_modules": "all-linear", "model": model}
    return [
        save_lora(folder / f"rank-{rank}", arch, seed=rank, r=rank, lora_alpha=2 * rank, **linears)
        for rank in (4, 20, 6)
    ]


def asks(one: Path, two: Path, three: Path) -> list[Ask]:
    """Rows come and go, across buckets and pages; the third adapter takes the first one's place."""
    return [
        Ask((11, 12, 13), 6, one, after=0),
        Ask((21, 22), 5, two, after=1),
        Ask((31, 32, 33, 34, 35), 3, None, after=2),
        Ask((41, 42), 3, three, after=8),
        Ask((51, 52, 53), 2, one, after=14),
    ]


@contextmanager
def replaying(
    folder: Path, arch: str, watched: WatchedLogits, record: Recorder | None, **config: Any
) -> Iterator[Engine]:
    """An engine whose steps `record` captures, of interpreted kernels; None: as it does itself."""
    stack = ExitStack()

    def watch(model: ModelHost) -> ModelHost:
        if record is not None:
            stack.enter_context(tape_kernels())
            graphs = DecodeGraphs(
                model.forward, model.arena, most_rows=ROWS, longest=LONGEST, ranks=RANKS
            )
            for rows, rank in graphs.kinds:
                graphs.capture(record, rows, rank)
            model = replace(model, decodes=graphs)
        return watched.watch(model)

    settings = {"max_num_seqs": ROWS, "max_model_len": LONGEST, "prefix_caching": False, **config}
    with stack, tiny_engine(folder, arch, watch=watch, **settings) as engine:
        yield engine


def answered(engine: Engine, asked: list[Ask], digests: dict[Path, str]) -> list[Event]:
    """All events, each request sent once so many steps were computed."""
    events: list[Event] = []
    for number in range(1 + max(ask.after for ask in asked)):
        for index, ask in enumerate(asked):
            if ask.after == number:
                digest = ask.adapter and digests[ask.adapter]
                engine.handle(greedy(str(index), ask.prompt, ask.tokens, digest))
        step(engine)
        events += engine.take_events()
    return events + run(engine)


def assert_replays_answer_as_peft(
    folder: Path, arch: str, record: Recorder | None, model: dict[str, Any], **config: Any
) -> None:
    """Tells the story; each answer's tokens and logits are those of stock peft alone.

    Every step of decodes is replayed, and none is computed otherwise.
    """
    save_tiny(arch, folder / arch, **model)
    folders = adapters(folder, arch, model)
    digests = {path: store_of(folder).put(path) for path in folders}
    asked, watched = asks(*folders), WatchedLogits()
    with replaying(folder, arch, watched, record, **config) as engine, computed() as batches:
        tokens = tokens_of(answered(engine, asked, digests))
        assert engine.residency.evictions > 0
    assert not [batch for batch in batches if len(batch.paged.kv_lens) == batch.segments.rows]
    for index, ask in enumerate(asked):
        told = tokens[str(index), 0]
        assert len(told) == ask.tokens
        ids = torch.tensor([[*ask.prompt, *told[:-1]]])
        expected = peft_logits(arch, ask.adapter, ids, **model)[0, len(ask.prompt) - 1 :]
        found = watched.take(str(index), ask.tokens)
        assert (found - expected).abs().max() <= TOLERANCE
        assert told == expected.argmax(-1).tolist()


@contextmanager
def computed() -> Iterator[list[StepBatch]]:
    """The steps that are computed by the model's own forward meanwhile."""
    batches: list[StepBatch] = []
    honest = Forward.compute

    def noted(forward: Forward, batch: StepBatch) -> torch.Tensor:
        batches.append(batch)
        return honest(forward, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "compute", noted)
        yield batches
