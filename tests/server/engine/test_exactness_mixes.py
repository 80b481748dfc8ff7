"""All methods alone and in random mixed batches, each row as peft's forward answers it alone.

Of each architecture one set of adapters is made and asked once; engines of several settings then
serve it in batches that are drawn at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from adapter_files import read_config
from engines import greedy, run, store_of, tiny_engine
from every_method import every_method
from exactness import Question, answers_of, assert_same, token_bytes
from forward_loops import LoopOracle
from tiny_models import VOCAB_SIZE, tiny_model
from watched_logits import WatchedLogits

from weft.adapters.methods import METHODS
from weft.server.engine.engine import Engine
from weft.server.engine.messages import Event, Tokens

ARCHITECTURES = ("llama", "qwen2", "gemma2", "gpt2")
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
BATCHES = 13  # for each way and architecture: 234
ROWS = (5, 13)
NEW_TOKENS = 16
MAX_MODEL_LEN = 64
Digests = dict[Path, str]


@dataclass(frozen=True)
class Way:
    """How an engine is made to compute; any two of these are combined in some of the ways."""

    chunked: bool = False
    cached: bool = False
    preempted: bool = False
    evicted: bool = False
    compiled: bool = False
    ahead: bool = False

    def settings(self, arch: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "max_num_batched_tokens": 9 if self.chunked else 512,
            "max_num_seqs": 9 if self.chunked else 16,
            "max_model_len": MAX_MODEL_LEN,
            "prefix_caching": self.cached,
            "patience": 0.02,
            "adapter_memory": (3 << 18) if self.evicted else (64 << 20),
            "compile": self.compiled,
            "async_scheduling": self.ahead,
        }
        if self.preempted:
            settings |= {"page_size": 2, "kv_cache_memory": 120 * token_bytes(arch)}
        return settings


WAYS = (
    Way(cached=True, ahead=True),
    Way(chunked=True, evicted=True, ahead=True),
    Way(chunked=True, cached=True, preempted=True),
    Way(preempted=True, ahead=True),
)
COMPILED = {"gemma2": (Way(chunked=True, compiled=True),), "gpt2": (Way(compiled=True),)}
"""Compiling takes as long as all the rest."""


@pytest.mark.timeout(1200)  # half a minute on a core of its own
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_alone_and_random_batches_equal_peft(arch: str, device: str, tmp_path: Path) -> None:
    random = Random(arch)
    asked = [
        specimen.questions(tmp_path / "adapters" / name, random, NEW_TOKENS)
        for name, specimen in every_method(arch).items()
    ]
    base = LoopOracle(tiny_model(arch))
    assert all(effect(questions, base) > 0.1 for questions in asked[1:])
    folders = {path for questions in asked for path, _ in questions[0].parts}
    if arch == "llama":  # peft does not support all methods on the others
        served = {read_config(path).get("peft_type", "bottleneck") for path in folders}
        assert served == {*METHODS, "bottleneck"}
    store = store_of(tmp_path)
    digests = {path: store.put(path) for path in sorted(folders)}
    logits = WatchedLogits()
    common: dict[str, Any] = {"device": device, "watch": logits.watch}
    with tiny_engine(tmp_path, arch, **common, adapter_memory=8 << 20) as engine:
        for question, *_ in asked:
            answers = answers_of(run(engine, question.request("alone", digests)), logits)
            assert_same(answers["alone"], question.answer, f"{arch}, alone: {question.adapter}")
    for way in WAYS + COMPILED.get(arch, ()):
        with tiny_engine(tmp_path, arch, **common, **way.settings(arch)) as engine:
            before = base_alone(engine)
            for number, batch in enumerate(batches(asked, random)):
                answers = answers_of(run_staggered(engine, batch, digests, random), logits)
                for row, question in enumerate(batch):
                    name = f"{arch}, {way}, batch {number}, row {row}: {question.adapter}"
                    assert_same(answers[str(row)], question.answer, name)
                assert base_alone(engine) == before, f"{arch}, {way}, batch {number}"
            assert (engine.scheduler.tables.prefix_hits > 0) == way.cached
            # Where adapters are evicted, their requests are preempted, too.
            assert engine.scheduler.preemptions > 0 or not way.preempted
            assert (engine.residency.evictions > 0) == way.evicted


def effect(questions: list[Question], base: LoopOracle) -> float:
    """How much an adapter moves the log-probabilities of a first token."""
    plain = base.answers([question.prompt for question in questions], 1)
    return max(
        float((answer.logprobs[0] - question.answer.logprobs[0]).abs().max())
        for answer, question in zip(plain, questions, strict=True)
    )


def batches(asked: list[list[Question]], random: Random) -> Iterator[list[Question]]:
    """Batches that have all methods together, and each some rows of the base."""
    (base, *others) = asked
    deck: list[list[Question]] = []
    for _ in range(BATCHES):
        count = random.randint(*ROWS)
        if len(deck) < count:
            deck += random.sample(others, len(others))
        rows = [random.choice(deck.pop(0)) for _ in range(count)]
        again = random.sample(rows, random.randint(0, 2))
        batch = [*rows, *again, *random.choices(base, k=random.randint(1, 2))]
        yield random.sample(batch, len(batch))


def run_staggered(
    engine: Engine, batch: list[Question], digests: Digests, random: Random
) -> list[Event]:
    """Some of the requests come at once, and each other one a few steps later."""
    events: list[Event] = []
    for row, question in enumerate(batch):
        engine.handle(question.request(str(row), digests))
        for _ in range(random.choice((0, 0, 0, 1, 4))):
            engine.step()
            events += engine.take_events()
    return events + run(engine)


def base_alone(engine: Engine) -> list[tuple[Any, ...]]:
    """What the base answers, to the last bit, to a prompt too short for the cache."""
    asked = greedy("base", (7,), 2, logprobs=VOCAB_SIZE)
    events = [event for event in run(engine, asked) if isinstance(event, Tokens)]
    return [(event.tokens, event.logprobs) for event in events]
