"""Answers are the same with and without drafts: tokens, log-probabilities, ends.

Drafts are made in any number, found in the text or foretold, most of them right or most wrong.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from drafts import foretell, make_reckless
from engines import TENANT, greedy, load, run, store_of, tiny_engine
from every_method import BEGINNING, INVOCATION
from exactness import TOLERANCE, Oracle, answers_of, assert_same, prompts, token_bytes
from peft_adapters import save_lora
from peft_prompts import save_prompt
from tiny_models import ARCHITECTURES, EOS_TOKEN_ID

from weft.adapters.blend import BASE, Blend, Part, alone
from weft.server.engine.batch import StepBatch
from weft.server.engine.engine import Engine
from weft.server.engine.forward import Forward
from weft.server.engine.messages import (
    EngineConfig,
    Event,
    Generate,
    Loaded,
    Sampling,
    TokenLogprobs,
    Tokens,
)
from weft.server.engine.model import ModelHost

REQUESTS = 24
MAX_MODEL_LEN = 96
SMALL: dict[str, Any] = {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": 6}
FEW_WORDS = dict.fromkeys((30, 31, 32), 9.0)  # so that an answer repeats itself, now and then
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"prefix_caching": False},
    "chunked and cached": {"max_num_batched_tokens": 20},
    "preempted": {"page_size": 2, "pages": 2 * MAX_MODEL_LEN},
}


@dataclass
class Told:
    """All that was said of one child."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    end: tuple[Any, ...] = ()


def told(events: list[Event]) -> dict[tuple[str, int], Told]:
    children: dict[tuple[str, int], Told] = {}
    for event in events:
        if isinstance(event, Tokens):
            child = children.setdefault((event.id, event.index), Told())
            assert not child.end
            child.tokens += event.tokens
            child.logprobs += event.logprobs
            if event.finish:
                child.end = (event.finish, event.stop_token, event.error, event.computed_tokens)
    return children


def adapters(folder: Path, arch: str) -> list[Blend]:
    """The base, and one of each kind that treats some rows otherwise than others."""
    targets = {"target_modules": ["q_proj", "up_proj"]}
    made = [
        save_lora(folder / "lora", arch, seed=1, r=4, target_modules=["q_proj", "down_proj"]),
        save_lora(
            folder / "alora", arch, seed=2, r=3, alora_invocation_tokens=list(INVOCATION), **targets
        ),
        save_prompt(folder / "prefix", arch, "PREFIX_TUNING", 7, seed=3),
        save_prompt(folder / "prompt", arch, "PROMPT_TUNING", 5, seed=4),
    ]
    lora, *others = (store_of(folder).put(path) for path in made)
    return [BASE, alone(lora), *map(alone, others), (Part(lora, 0.5), Part(others[2], 1.0))]


def asked(random: Random, blends: list[Blend]) -> list[Generate]:
    """Requests of all kinds; prompts of few different tokens, some of which begin alike."""
    requests = []
    for number in range(REQUESTS):
        start = random.choice([(), BEGINNING, BEGINNING[:-1]])
        prompt = (*start, *random.choices(range(20, 26), k=random.randint(1, 25)))
        requests.append(
            Generate(
                id=str(number),
                tenant=TENANT,
                prompt=prompt,
                blend=random.choice(blends),
                n=random.choice([1, 1, 1, 3]),
                sampling=sampling(random),
            )
        )
    return requests


def sampling(random: Random) -> Sampling:
    def some(value: Any, otherwise: Any) -> Any:
        return value if random.random() < 0.3 else otherwise

    max_tokens = random.choice([1, 2, 9, 30, 200])
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=some(min(5, max_tokens), 0),
        temperature=random.choice([0.0, 0.0, 0.3, 1.2]),
        top_p=some(0.8, 1.0),
        top_k=some(20, 0),
        min_p=some(0.05, 0.0),
        presence_penalty=some(0.7, 0.0),
        frequency_penalty=some(-0.4, 0.0),
        repetition_penalty=some(1.3, 1.0),
        logit_bias=random.choice([{}, {EOS_TOKEN_ID: 4.0}, FEW_WORDS, FEW_WORDS]),
        seed=random.randrange(99),
        stop_token_ids=some(tuple(range(100, 140)), ()),
        ignore_eos=some(True, False),
        logprobs=random.choice([None, 0, 3]),
        prompt_logprobs=some(1, None),
    )


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


def bring_in(engine: Engine, requests: list[Generate]) -> None:
    """Loads all adapters, so that who runs beside whom does not depend on when one arrives."""
    for digest in sorted({part.digest for request in requests for part in request.blend}):
        assert isinstance(load(engine, digest), Loaded)


def assert_same_told(events: list[Event], expected: dict[tuple[str, int], Told]) -> None:
    found = told(events)
    assert found.keys() == expected.keys()
    for child, wanted in expected.items():
        got = found[child]
        assert (got.tokens, got.end) == (wanted.tokens, wanted.end), child
        assert len(got.logprobs) == len(wanted.logprobs)
        for one, other in zip(got.logprobs, wanted.logprobs, strict=True):
            assert one.token == other.token
            assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
            assert [p for _, p in one.top] == pytest.approx(
                [p for _, p in other.top], abs=TOLERANCE
            )


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
