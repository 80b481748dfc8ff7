"""Steps that are launched before the tokens of those before them are read: answers stay the same.

The order is what it is on a GPU; only the device's own asynchrony is not there on a CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from all_requests import Told, adapters, asked, assert_same_told, bring_in, told
from drafts import foretell, make_reckless
from engines import greedy, run, store_of, tiny_engine
from exactness import token_bytes
from peft_adapters import save_lora
from torch import Tensor

from weft.server.engine.batch import StepBatch
from weft.server.engine.engine import Engine
from weft.server.engine.messages import Abort, Command, Generate, Pause, Tokens, Unload
from weft.server.engine.model import ModelHost
from weft.server.engine.readback import Readback
from weft.server.engine.step_plan import StepPlan

PROMPTS = ((11, 12, 13), (21, 22, 23, 24, 25), (31,), (41, 42))
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"prefix_caching": False},
    "chunked and cached": {"max_num_batched_tokens": 20},
    "preempted": {"page_size": 2, "pages": 192},
}


@dataclass
class Steps:
    """What was asked of a model, in order: "planned" and "ahead" for steps, "read" for tokens."""

    seen: list[str] = field(default_factory=list)
    fails_at: int = 0

    def watch(self, model: ModelHost) -> ModelHost:
        """The same model, whose steps are counted."""
        return _Watched(**vars(model), steps=self)

    def __getitem__(self, kind: str) -> int:
        return self.seen.count(kind)


@dataclass(frozen=True, eq=False)
class _Watched(ModelHost):
    steps: Steps

    def build(self, plan: StepPlan, ids: Tensor | None = None) -> StepBatch:
        self.steps.seen.append("planned" if ids is None else "ahead")
        if ids is not None and self.steps["ahead"] == self.steps.fails_at:
            raise torch.OutOfMemoryError("injected")
        return super().build(plan, ids)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    found, honest = Steps(), Readback.take

    def read(self: Readback) -> list[Tensor]:
        found.seen.append("read")
        return honest(self)

    monkeypatch.setattr(Readback, "take", read)
    return found


@pytest.fixture
def engine(tmp_path: Path, steps: Steps) -> Iterator[Engine]:
    with ahead(tmp_path, steps) as engine:
        yield engine


def ahead(folder: Path, steps: Steps, arch: str = "llama", **config: Any) -> Any:
    return tiny_engine(folder, arch, watch=steps.watch, async_scheduling=True, **config)


def answers(folder: Path, *requests: Generate, **config: Any) -> dict[tuple[str, int], Told]:
    """By an engine that launches nothing ahead."""
    with tiny_engine(folder, **config) as engine:
        return told(run(engine, *requests))


def after(engine: Engine, count: int, *commands: Command) -> list[Any]:
    """The events of so many steps; the commands come behind them."""
    events: list[Any] = []
    for _ in range(count):
        engine.step()
        events += engine.take_events()
    for command in commands:
        engine.handle(command)
    return events


def requests(tokens: int = 12, **sampling: Any) -> list[Generate]:
    return [greedy(str(i), prompt, tokens, **sampling) for i, prompt in enumerate(PROMPTS)]


def test_a_step_is_launched_before_the_tokens_of_the_one_before_it_are_read(
    engine: Engine, steps: Steps
) -> None:
    steps.seen.clear()
    run(engine, *requests(tokens=5))
    assert steps.seen == ["planned", *["ahead", "read"] * 4, "read"]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_answers_to_requests_of_all_kinds_are_those_of_an_engine_without(
    arch: str, settings: str, tmp_path: Path, steps: Steps
) -> None:
    config: dict[str, Any] = {"max_model_len": 96, "max_num_seqs": 6, **SETTINGS[settings]}
    if pages := config.pop("pages", None):
        config["kv_cache_memory"] = pages * token_bytes(arch)
    asks = asked(Random(f"{arch} {settings}"), adapters(tmp_path, arch), penalties=0.02)
    with tiny_engine(tmp_path, arch, **config) as engine:
        bring_in(engine, asks)
        expected = told(run(engine, *asks))
    with ahead(tmp_path, steps, arch, **config) as engine:
        bring_in(engine, asks)
        assert_same_told(run(engine, *asks), expected)
        assert (engine.scheduler.preemptions > 0) == (settings == "preempted")
    assert steps["ahead"] > 10


def test_whoever_ends_by_a_token_has_computed_one_row_too_many_and_nothing_else(
    tmp_path: Path, steps: Steps
) -> None:
    tokens = answers(tmp_path, *requests())["1", 0].tokens
    stops = requests(stop_token_ids=(tokens[4],))
    expected = answers(tmp_path, *stops)
    assert {child.end[0] for child in expected.values()} >= {"stop"}
    with ahead(tmp_path, steps) as engine:
        assert told(run(engine, *stops)) == expected
        again = told(run(engine, *stops))  # on pages that the rows too many were written to
        assert {name: child.tokens for name, child in again.items()} == {
            name: child.tokens for name, child in expected.items()
        }


def test_whoever_ends_by_length_has_computed_no_row_too_many(engine: Engine, steps: Steps) -> None:
    found: list[int] = []
    honest = _Watched.build

    def build(self: _Watched, plan: StepPlan, ids: Tensor | None = None) -> StepBatch:
        found.append(len(plan.items))
        return honest(self, plan, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Watched, "build", build)
        run(engine, *(greedy(str(n), PROMPTS[n], n + 2) for n in range(4)))
    assert found == [4, 4, 3, 2, 1]
    assert steps["ahead"] == 4


def test_whoever_is_aborted_or_paused_meanwhile_gets_nothing_of_it(
    engine: Engine, tmp_path: Path, steps: Steps
) -> None:
    expected = answers(tmp_path, *requests())
    for request in requests():
        engine.handle(request)
    events = after(engine, 3, Abort("0"), Pause("1", True))
    events += after(engine, 3, Pause("1", False))
    events += run(engine)
    found = told(events)
    assert found["0", 0].end[0] == "abort"
    assert found["0", 0].tokens == expected["0", 0].tokens[:3]
    for child in (("1", 0), ("2", 0), ("3", 0)):
        assert found[child].tokens == expected[child].tokens
    assert steps["ahead"] > 5


def test_whoever_comes_is_let_in_one_step_later(engine: Engine) -> None:
    engine.handle(greedy("first", PROMPTS[0], 20))
    after(engine, 3, greedy("second", PROMPTS[1], 3))
    second = [
        any(isinstance(event, Tokens) and event.id == "second" for event in after(engine, 1))
        for _ in range(2)
    ]
    assert second == [False, True]
    run(engine)


def test_a_version_leaves_the_device_while_a_row_of_it_runs(
    engine: Engine, tmp_path: Path, steps: Steps
) -> None:
    folders = [save_lora(tmp_path / f"lora-{n}", "llama", seed=n, r=4) for n in (1, 2)]
    digests = [store_of(tmp_path).put(folder) for folder in folders]
    asks = [
        greedy("base", PROMPTS[0], 20),
        *(greedy(f"lora-{n}", PROMPTS[1], 20, digest) for n, digest in enumerate(digests)),
    ]
    expected = answers(tmp_path, *asks)
    events = run(engine, *(greedy(f"warm-{n}", PROMPTS[2], 2, d) for n, d in enumerate(digests)))
    for ask in asks:
        engine.handle(ask)
    events = after(engine, 4, Abort("lora-0"), Unload("gone", digests[0]))
    assert steps.seen[-2:] == ["ahead", "read"]
    events += run(engine)
    assert digests[0] not in {state.digest for state in engine.residency.states()}
    found = told(events)
    assert found["base", 0].tokens == expected["base", 0].tokens
    assert found["lora-1", 0].tokens == expected["lora-1", 0].tokens


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_step_ahead_that_fails_is_computed_again_and_ends_nobody(
    number: int, tmp_path: Path, steps: Steps
) -> None:
    asks = requests(tokens=30)
    expected = answers(tmp_path, *asks)
    steps.fails_at = number
    with ahead(tmp_path, steps) as engine:
        assert told(run(engine, *asks)) == expected
    assert 5 < steps["ahead"] < 15


def test_a_step_whose_tokens_cannot_be_read_is_computed_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(tmp_path, *requests())
    honest, calls = Readback.take, []

    def take(self: Readback) -> list[Tensor]:
        calls.append(self)
        if len(calls) in (3, 8):
            raise MemoryError
        return honest(self)

    monkeypatch.setattr(Readback, "take", take)
    assert {n: t.tokens for n, t in told(run(engine, *requests())).items()} == {
        n: t.tokens for n, t in expected.items()
    }
    assert len(calls) > 12


@pytest.mark.parametrize(
    "sampling",
    [{"repetition_penalty": 1.3}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}],
    ids=str,
)
def test_nothing_is_launched_ahead_of_a_choice_that_needs_the_tokens(
    sampling: dict[str, Any], engine: Engine, tmp_path: Path, steps: Steps
) -> None:
    asks = [*requests(), greedy("penalised", PROMPTS[0], 12, **sampling)]
    assert told(run(engine, *asks)) == answers(tmp_path, *asks)
    assert not steps["ahead"]


def test_draws_from_too_few_candidates_are_made_again_and_what_went_on_from_them(
    tmp_path: Path, steps: Steps
) -> None:
    flat: dict[str, Any] = {"temperature": 50.0, "top_p": 0.95, "logprobs": 2}
    asks = requests(tokens=40, **flat)
    expected = answers(tmp_path, *asks)
    with ahead(tmp_path, steps) as engine:
        assert told(run(engine, *asks)) == expected
    assert 0 < steps["ahead"] < 8 < steps["planned"]


def test_drafts_are_looked_for_all_the_same(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = requests(tokens=90)
    expected = answers(tmp_path, *asks)
    whole = [(*ask.prompt, *expected[ask.id, 0].tokens) for ask in asks]
    foretell(monkeypatch, whole, Random(0), truth=0.5)
    with ahead(tmp_path, steps, speculation="ngram") as engine:
        make_reckless(engine, Random(0))
        assert_same_told(run(engine, *asks), expected)
        assert engine.scheduler.drafting.accepted > 10
    assert steps["ahead"]


def test_on_a_cpu_nothing_is_launched_ahead_unless_it_is_asked_for(
    tmp_path: Path, steps: Steps
) -> None:
    with tiny_engine(tmp_path, watch=steps.watch) as engine:
        run(engine, *requests())
    assert not steps["ahead"]
