"""The engine as its process drives it: commands in, events out, faults contained."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapter_files import edit_tensors
from engines import greedy, load, run, store_of, tiny_engine, tokens_of
from exactness import token_bytes
from peft_adapters import save_lora
from tiny_models import tiny_model

from weft.server.engine.attention import pools_of
from weft.server.engine.batch import StepBatch
from weft.server.engine.engine import Engine
from weft.server.engine.forward import Forward
from weft.server.engine.messages import (
    Abort,
    Done,
    Failed,
    Loaded,
    Pin,
    Prefetch,
    Stats,
    Tokens,
    Unload,
)
from weft.server.engine.model import ModelHost

PROMPT = (11, 12, 13, 14, 15, 16, 17)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with tiny_engine(tmp_path) as engine:
        yield engine


def adapter(folder: Path, seed: int = 1, **config: object) -> str:
    """The digest of a strong random adapter in the engine's store."""
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], **config}
    path = save_lora(folder / f"adapter-{seed}", "llama", seed=seed, **settings)
    return store_of(folder).put(path)


def ends(events: list[object]) -> dict[tuple[str, int], Tokens]:
    return {
        (event.id, event.index): event
        for event in events
        if isinstance(event, Tokens) and event.finish is not None
    }


def test_base_and_adapter_rows_differ_in_one_batch(engine: Engine, tmp_path: Path) -> None:
    digest = adapter(tmp_path)
    loaded = load(engine, digest)
    assert isinstance(loaded, Loaded)
    assert loaded.report.digest == digest
    assert (loaded.report.rank, loaded.report.modules) == (4, 4)
    assert loaded.report.canary_difference > 0.01
    tokens = tokens_of(
        run(engine, greedy("base", PROMPT, 8), greedy("adapted", PROMPT, 8, adapter=digest))
    )
    assert len(tokens["base", 0]) == len(tokens["adapted", 0]) == 8
    assert tokens["base", 0] != tokens["adapted", 0]
    alone = tokens_of(run(engine, greedy("alone", PROMPT, 8, adapter=digest)))
    assert alone["alone", 0] == tokens["adapted", 0]


def test_an_unknown_version_is_corrupt_and_nothing_else(engine: Engine) -> None:
    answer = load(engine, "ab" * 32)
    assert isinstance(answer, Failed)
    assert answer.code == "adapter_corrupt"
    assert len(tokens_of(run(engine, greedy("after", PROMPT, 3)))["after", 0]) == 3


def overflowing(folder: Path) -> str:
    """The digest of an adapter in the engine's store whose values are finite, and too large."""
    path = save_lora(folder / "huge", "llama", r=4, target_modules=["down_proj"])
    edit_tensors(path, lambda tensors: {k: torch.full_like(v, 1e38) for k, v in tensors.items()})
    return store_of(folder).put(path)


def not_finite(host: ModelHost) -> set[int]:
    """The pages of the KV cache that hold a value that is not finite."""
    pools = [
        pool for layer in host.forward.model.model.layers for pool in pools_of(layer.self_attn)
    ]
    wrong = [~pool.isfinite().flatten(1).all(1) for pool in pools]
    return {page for pages in wrong for page in pages.nonzero().flatten().tolist()}


def test_an_adapter_that_overflows_is_refused_and_harms_nobody(
    engine: Engine, tmp_path: Path
) -> None:
    digest = overflowing(tmp_path)
    quiet = tokens_of(run(engine, greedy("quiet", PROMPT, 6)))["quiet", 0]
    engine.handle(greedy("beside", PROMPT, 6))
    answer = load(engine, digest)
    assert isinstance(answer, Failed)
    assert (answer.code, answer.reason) == ("adapter_invalid", "its logits are not finite")
    assert tokens_of(run(engine, greedy("after", PROMPT, 6)))["after", 0] == quiet


def test_a_non_finite_row_ends_alone(engine: Engine, tmp_path: Path) -> None:
    digest = overflowing(tmp_path)
    quiet = tokens_of(run(engine, greedy("quiet", PROMPT, 6)))["quiet", 0]
    events = run(engine, greedy("a", PROMPT, 6), greedy("bad", PROMPT, 6, adapter=digest))
    assert tokens_of(events)["a", 0] == quiet
    assert ends(events)["bad", 0].error == "internal_error"


def test_pages_that_held_what_is_not_finite_harm_nobody(tmp_path: Path) -> None:
    hosts: list[ModelHost] = []

    def watch(host: ModelHost) -> ModelHost:
        hosts.append(host)
        return host

    size = {"kv_cache_memory": 64 * token_bytes("llama"), "max_model_len": 60}
    with tiny_engine(tmp_path, watch=watch, **size) as engine:
        digest, prompt = overflowing(tmp_path), tuple(range(10, 55))
        quiet = tokens_of(run(engine, greedy("quiet", prompt, 14)))["quiet", 0]
        engine.scheduler.tables.clear()
        events = run(engine, greedy("bad", prompt[::-1], 14, adapter=digest))
        assert ends(events)["bad", 0].error == "internal_error"
        pages = not_finite(hosts[0])
        assert len(pages) > engine.scheduler.tables.total / 2
        engine.handle(greedy("after", prompt, 14))
        engine.step()
        assert pages & engine.scheduler.tables.referenced.keys()
        assert tokens_of(run(engine))["after", 0] == quiet


def test_a_failing_step_ends_only_the_sequence_that_fails_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Forward.run

    def faulty(self: Forward, batch: StepBatch) -> torch.Tensor:
        if 99 in batch.input_ids[0].tolist():
            raise torch.OutOfMemoryError("injected")
        return honest(self, batch)

    quiet = tokens_of(run(engine, greedy("quiet", PROMPT, 5)))["quiet", 0]
    monkeypatch.setattr(Forward, "run", faulty)
    events = run(engine, greedy("a", PROMPT, 5), greedy("bad", (99, 1), 5), greedy("b", PROMPT, 5))
    assert ends(events)["bad", 0].error == "out_of_memory"
    assert tokens_of(events)["a", 0] == tokens_of(events)["b", 0] == quiet


def test_same_seed_same_tokens_whatever_else_is_in_the_batch(
    engine: Engine, tmp_path: Path
) -> None:
    digest = adapter(tmp_path)

    def sampled(name: str, n: int = 1) -> object:
        return greedy(name, PROMPT, 12, temperature=1.5, seed=7, n=n)

    alone = tokens_of(run(engine, sampled("alone")))["alone", 0]
    mates = [greedy(f"m{i}", PROMPT[i:], 9, adapter=digest if i % 2 else None) for i in range(5)]
    crowd = tokens_of(run(engine, mates[0], mates[1], sampled("one", n=3), *mates[2:]))
    assert crowd["one", 0] == alone
    assert len({tuple(crowd["one", index]) for index in range(3)}) == 3
    unseeded = tokens_of(
        run(engine, *(greedy(f"u{i}", PROMPT, 12, temperature=1.5) for i in (1, 2)))
    )
    assert unseeded["u1", 0] != unseeded["u2", 0]


def test_prompt_logprobs_are_those_of_transformers(tmp_path: Path) -> None:
    with tiny_engine(tmp_path, max_num_batched_tokens=5, max_num_seqs=4) as engine:
        scoring = greedy("score", PROMPT, 0, prompt_logprobs=2)
        events = run(engine, greedy("mate", PROMPT[::-1], 4), scoring)
    end = ends(events)["score", 0]
    assert (end.finish, end.tokens) == ("length", ())
    assert end.prompt_logprobs is not None
    assert end.prompt_logprobs[0] is None
    with torch.inference_mode():
        logits = tiny_model("llama")(torch.tensor([PROMPT])).logits[0]
    expected = torch.log_softmax(logits, -1)
    for position, found in enumerate(end.prompt_logprobs[1:], start=1):
        assert found is not None
        assert found.token == PROMPT[position]
        assert found.logprob == pytest.approx(
            expected[position - 1, PROMPT[position]].item(), abs=1e-4
        )
        assert [token for token, _ in found.top] == expected[position - 1].topk(2).indices.tolist()


def test_abort_ends_every_child_once(engine: Engine) -> None:
    engine.handle(greedy("long", PROMPT, 50, n=3))
    for _ in range(4):
        engine.step()
    events = run(engine, Abort("long", 1), Abort("long"), Abort("long"))
    assert {key: end.finish for key, end in ends(events).items()} == dict.fromkeys(
        [("long", 0), ("long", 1), ("long", 2)], "abort"
    )


def test_the_last_event_tells_how_much_of_a_prompt_was_computed(tmp_path: Path) -> None:
    with tiny_engine(tmp_path, max_num_seqs=1, max_num_batched_tokens=4) as engine:
        for name in ("first", "waits"):
            engine.handle(greedy(name, tuple(range(20, 39)), 5))
        for _ in range(2):
            engine.step()
        told = ends(run(engine, Abort("first"), Abort("waits")))
        assert told["first", 0].computed_tokens == 8
        assert told["waits", 0].computed_tokens == 0
        done = ends(run(engine, greedy("whole", PROMPT, 2, n=2)))
        assert [done["whole", i].computed_tokens for i in range(2)] == [len(PROMPT)] * 2


def test_unload_lets_running_requests_finish(engine: Engine, tmp_path: Path) -> None:
    digest = adapter(tmp_path)
    load(engine, digest)
    expected = tokens_of(run(engine, greedy("first", PROMPT, 8, adapter=digest)))["first", 0]
    engine.handle(greedy("running", PROMPT, 8, adapter=digest))
    for _ in range(3):
        engine.step()
    early = engine.take_events()
    events = run(engine, Unload("u", digest))
    assert Done("u") in events
    assert tokens_of(early + events)["running", 0] == expected
    assert engine.residency.states() == ()


def test_pin_and_prefetch_bring_a_version_to_the_device(engine: Engine, tmp_path: Path) -> None:
    digest = adapter(tmp_path)
    assert Done("p") in run(engine, Prefetch("p", digest))
    assert Done("q") in run(engine, Pin("q", digest, True))
    (state,) = engine.residency.states()
    assert (state.digest, state.tier, state.pinned) == (digest, "device", True)
    run(engine, Pin("r", digest, False))
    assert not engine.residency.states()[0].pinned


def test_more_adapters_than_the_pool_holds_are_all_served(tmp_path: Path) -> None:
    digests = [adapter(tmp_path, seed=seed) for seed in range(6)]
    with tiny_engine(tmp_path, patience=0.01) as roomy:
        alone = [
            tokens_of(run(roomy, greedy("x", PROMPT, 8, adapter=digest)))["x", 0]
            for digest in digests
        ]
        size = roomy.residency.states()[0].bytes
    with tiny_engine(tmp_path, adapter_memory=2 * size, patience=0.01) as tight:
        requests = [
            greedy(f"r{i}", PROMPT, 8, adapter=digest) for i, digest in enumerate(digests * 2)
        ]
        tokens = tokens_of(run(tight, *requests))
        assert tight.residency.evictions >= 4
    assert [tokens[f"r{i}", 0] for i in range(12)] == alone * 2


def test_stats_are_sent_and_sound(engine: Engine) -> None:
    events = run(engine, greedy("r", PROMPT, 4))
    stats = [event for event in events if isinstance(event, Stats)]
    assert stats
    assert stats[-1].broken_invariants == ()
    assert stats[-1].total_pages == engine.info.pages
