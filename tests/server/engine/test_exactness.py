"""Each architecture answers as transformers does, whatever is chunked, paged, cached or mixed."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from engines import run, tiny_engine
from exactness import Oracle, Question, answers_of, assert_same, prompts, token_bytes
from tiny_models import ARCHITECTURES
from watched_logits import WatchedLogits

from weft.server.engine.engine import Engine
from weft.server.engine.messages import Event

MAX_MODEL_LEN = 64
LENGTHS = (5, 23, 41, 12, 1, 30)
NEW_TOKENS = 10
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


def questions(arch: str) -> list[Question]:
    """Prompts of several lengths, the last of which repeats an earlier one's beginning."""
    oracle, random = Oracle(arch), Random(arch)
    asked = [oracle.question(prompts(random, length), NEW_TOKENS) for length in LENGTHS]
    repeated = prompts(random, 35, prefix=asked[2].prompt[:29])
    return [*asked, oracle.question(repeated, NEW_TOKENS)]


def run_staggered(engine: Engine, asked: list[Question]) -> list[Event]:
    """Two requests at once, then one more every third step, so that decodes meet prefills."""
    requests = [question.request(str(index), {}) for index, question in enumerate(asked)]
    for request in requests[:2]:
        engine.handle(request)
    events: list[Event] = []
    for request in requests[2:]:
        for _ in range(3):
            engine.step()
        events += engine.take_events()
        engine.handle(request)
    return events + run(engine)


def assert_exact(events: list[Event], asked: list[Question], logits: WatchedLogits) -> None:
    answers = answers_of(events, logits)
    for index, question in enumerate(asked):
        assert_same(answers[str(index)], question.answer, f"request {index}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_answers_equal_generate(arch: str, device: str, tmp_path: Path) -> None:
    asked = questions(arch)
    logits = WatchedLogits()
    common: dict[str, Any] = {"device": device, "max_model_len": MAX_MODEL_LEN, "max_num_seqs": 5}
    common["watch"] = logits.watch
    with tiny_engine(tmp_path, arch, max_num_batched_tokens=7, **common) as engine:
        assert_exact(run_staggered(engine, asked), asked, logits)
        # Once more, now that the cache knows the prompts and its free pages are shuffled.
        hits = engine.scheduler.tables.prefix_hits
        assert_exact(run_staggered(engine, asked[::-1]), asked[::-1], logits)
        assert engine.scheduler.tables.prefix_hits > hits
    asked.sort(key=lambda question: len(question.prompt))
    one_sequence = (MAX_MODEL_LEN + 2) * token_bytes(arch)
    scarce = {"page_size": 2, "kv_cache_memory": one_sequence, "prefix_caching": False}
    with tiny_engine(tmp_path, arch, max_num_batched_tokens=24, **common, **scarce) as engine:
        requests = [question.request(str(index), {}) for index, question in enumerate(asked)]
        assert_exact(run(engine, *requests), asked, logits)
        assert engine.scheduler.preemptions > 0
