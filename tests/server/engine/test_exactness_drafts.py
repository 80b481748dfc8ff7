"""Answers are the same with and without drafts: tokens, log-probabilities, ends.

Drafts are made in any number, found in the text or foretold, most of them right or most wrong.
"""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from all_requests import FEW_WORDS, Told, adapters, asked, assert_same_told, bring_in, told
from drafts import foretell, make_reckless
from engines import greedy, run, tiny_engine
from exactness import Oracle, answers_of, assert_same, prompts, token_bytes
from tiny_models import ARCHITECTURES

from weft.server.engine.batch import StepBatch
from weft.server.engine.engine import Engine
from weft.server.engine.forward import Forward
from weft.server.engine.messages import (
    EngineConfig,
    Generate,
)
from weft.server.engine.model import ModelHost

MAX_MODEL_LEN = 96
SMALL: dict[str, Any] = {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"prefix_caching": False},
    "chunked and cached": {"max_num_batched_tokens": 20},
    "preempted": {"page_size": 2, "pages": 2 * MAX_MODEL_LEN},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_drafts_change_no_answer(
    arch: str, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(f"{arch} {settings}")
    config = SMALL | SETTINGS[settings]
    if pages := config.pop("pages", None):
        config["kv_cache_memory"] = pages * token_bytes(arch)
    requests = asked(random, adapters(tmp_path, arch))
    with tiny_engine(tmp_path, arch, **config) as engine:
        expected = told(run(engine, *requests))
        assert (engine.scheduler.preemptions > 0) == (settings == "preempted")
    prompt_of = {request.id: request.prompt for request in requests}
    whole = [(*prompt_of[name], *child.tokens) for (name, _), child in expected.items()]
    with tiny_engine(tmp_path, arch, speculation="ngram", **config) as engine:
        bring_in(engine, requests)
        make_reckless(engine, random)
        assert_same_told(run(engine, *requests), expected)
        drafting = engine.scheduler.drafting
        assert drafting.drafted - 10 > drafting.accepted > 10
        for truth in (0.9, 0.3):
            foretell(monkeypatch, whole, random, truth)
            before = drafting.drafted, drafting.accepted
            assert_same_told(run(engine, *requests), expected)
            drafted, accepted = drafting.drafted - before[0], drafting.accepted - before[1]
            assert drafted - 20 > accepted > 20
        assert (engine.scheduler.preemptions > 0) == (settings == "preempted")
        assert (engine.scheduler.tables.prefix_hits > 0) == config.get("prefix_caching", True)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_answers_with_drafts_are_those_of_transformers(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, random = Oracle(arch), Random(arch)
    questions = [oracle.question(prompts(random, length), 20) for length in (1, 9, 20, 41)]
    whole = [(*question.prompt, *question.answer.tokens) for question in questions]
    foretell(monkeypatch, whole, random, truth=0.8)
    with tiny_engine(tmp_path, arch, speculation="ngram", **SMALL) as engine:
        make_reckless(engine, random)
        requests = [question.request(str(i), {}) for i, question in enumerate(questions)]
        answers = answers_of(run(engine, *requests))
        for index, question in enumerate(questions):
            assert_same(answers[str(index)], question.answer, f"request {index}")
        drafting = engine.scheduler.drafting
        assert drafting.drafted - 5 > drafting.accepted > 20


class Machine:
    """A clock on which a forward takes a second and some more for each row, and nothing else."""

    def __init__(self, row_seconds: float) -> None:
        self.now = 0.0
        self._row_seconds = row_seconds

    def __call__(self) -> float:
        return self.now

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        honest = Forward.run

        def timed(forward: Forward, batch: StepBatch) -> Any:
            self.now += 1.0 + self._row_seconds * batch.input_ids.shape[1]
            return honest(forward, batch)

        patch.setattr(Forward, "run", timed)


@pytest.mark.parametrize(("row_seconds", "least", "most"), [(0.01, 0.0, 0.3), (100.0, 0.95, 1.03)])
def test_an_engine_drafts_where_its_clock_says_that_it_is_faster(
    row_seconds: float, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [greedy(str(i), (40, 41, 42 + i), 150, logit_bias=FEW_WORDS) for i in range(3)]
    with tiny_engine(tmp_path, max_model_len=200, max_num_seqs=1) as engine:
        expected = told(run(engine, *asks))
        config = EngineConfig(
            model=str(tmp_path / "llama"),
            store=str(tmp_path / "store"),
            dtype="float32",
            device="cpu",
            threads=1,
            kv_cache_memory=4 << 20,
            adapter_memory=4 << 20,
            max_model_len=200,
            max_num_seqs=1,
            speculation="ngram",
        )
    machine = Machine(row_seconds)
    machine.watch(monkeypatch)
    model = ModelHost.load(config, lambda stage, done, total: None)
    engine = Engine(model, config, machine)
    try:
        began = machine.now
        assert_same_told(run(engine, *asks), expected)
        tokens = sum(len(child.tokens) for child in expected.values())
        plain = tokens * (1 + row_seconds)
        assert least < (machine.now - began) / plain <= most
        assert engine.check() == ()
    finally:
        engine.close()


def repeats(folder: Path) -> tuple[list[Generate], dict[tuple[str, int], Told]]:
    """Requests whose prompts repeat themselves, and what an engine without drafts answers."""
    asks = [greedy(str(i), (*range(30, 36 + i),) * 2, 40) for i in range(3)]
    with tiny_engine(folder) as engine:
        return asks, told(run(engine, *asks))


def test_a_step_that_fails_with_drafts_is_computed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks, expected = repeats(tmp_path)
    honest = Forward.run
    failures = []

    def faulty(self: Forward, batch: StepBatch) -> Any:
        rows = len(batch.sampling)
        if rows > len(batch.paged.kv_lens):
            failures.append(rows)
            raise RuntimeError("injected")
        return honest(self, batch)

    with tiny_engine(tmp_path, speculation="ngram") as engine:
        make_reckless(engine, Random(0))
        monkeypatch.setattr(Forward, "run", faulty)
        assert_same_told(run(engine, *asks), expected)
    assert failures


def test_a_draft_whose_logits_are_not_finite_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks, expected = repeats(tmp_path)
    honest = Forward.run
    spoilt = []

    def spoiling(self: Forward, batch: StepBatch) -> Any:
        logits = honest(self, batch)
        starts = batch.paged.query_starts
        for row, kept in enumerate(batch.kept.tolist()):
            is_draft = kept not in starts and kept - 1 in batch.kept
            if is_draft and kept % 2:
                spoilt.append(row)
                logits[row] = float("nan")
        return logits

    with tiny_engine(tmp_path, speculation="ngram") as engine:
        make_reckless(engine, Random(0))
        monkeypatch.setattr(Forward, "run", spoiling)
        assert_same_told(run(engine, *asks), expected)
    assert spoilt


def test_the_largest_step_of_drafts_has_no_more_logits_than_were_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Forward.run
    widths = []

    def watched(self: Forward, batch: StepBatch) -> Any:
        widths.append(len(batch.kept))
        return honest(self, batch)

    with tiny_engine(tmp_path, speculation="ngram", max_num_seqs=20) as engine:
        make_reckless(engine, Random(0))
        monkeypatch.setattr(Forward, "run", watched)
        run(engine, *(greedy(str(i), (i + 10, i + 11) * 5, 30) for i in range(7)))
    assert 15 < max(widths) <= 20
