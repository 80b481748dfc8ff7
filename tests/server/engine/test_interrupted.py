"""An exception at any line of what schedules and moves adapters: all go on, one fails at most."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from engines import greedy, run, standing, step_and_load, store_of, tiny_engine
from exactness import token_bytes
from peft_adapters import save_lora

from weft.adapters import extents, places, pool, residency
from weft.server.engine import (
    claims,
    drafting,
    fairness,
    finish,
    gate,
    launcher,
    loads,
    lookahead,
    outbox,
    page_tables,
    pages,
    prefix_cache,
    refusal,
    scheduler,
    sequence,
)
from weft.server.engine import (
    engine as engine_module,
)
from weft.server.engine.engine import Engine
from weft.server.engine.messages import Abort, Event, Failed, Load, Loaded, Pause, Tokens, Unload
from weft.server.engine.outbox import Outbox

PROMPT = (11, 12, 13, 14, 15, 16, 17)
FAILURES = 200
ROOM = 12 << 10
"""For one of the two versions."""
WATCHED = {
    str(module.__file__)
    for module in (
        *(extents, places, pool, residency),
        *(claims, drafting, fairness, finish, gate, launcher, loads, lookahead, outbox),
        *(page_tables, pages, prefix_cache, refusal, scheduler, sequence),
    )
}
RECOVERS = {"handle", "step", "take_events", "__init__"}
LOOKS = {
    *("busy", "awaited", "expecting", "check", "running", "waiting", "referenced"),
    *("<genexpr>", "<dictcomp>"),
}
"""What is also called by whoever steps an engine, and changes nothing."""
OF_THE_OUTBOX = {Outbox.mark.fget.__code__, Outbox.take.__code__}  # type: ignore[attr-defined]
"""A length is read, and a list is exchanged for an empty one, outside of what recovers."""


class RaisesAt:
    """Raises a MemoryError at one line of the watched code; counts the lines."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> "RaisesAt":
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        of_engine = code.co_filename == engine_module.__file__ and code.co_name not in RECOVERS
        watched = of_engine or code.co_filename in WATCHED
        spared = code.co_name in LOOKS or code in OF_THE_OUTBOX
        return self._line if watched and not spared else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise MemoryError
        return self._line


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    small = {"max_num_batched_tokens": 8, "max_num_seqs": 3, "adapter_memory": ROOM}
    small["async_scheduling"] = request.param
    memory = 32 * token_bytes("llama")
    small |= {"kv_cache_memory": memory, "max_model_len": 16}
    with tiny_engine(tmp_path, clock=standing, speculation="ngram", **small) as engine:
        yield engine


@pytest.fixture
def digests(tmp_path: Path) -> list[str]:
    targets = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    folders = [save_lora(tmp_path / f"lora-{n}", "llama", seed=n, **targets) for n in (1, 2)]
    return [store_of(tmp_path).put(folder) for folder in folders]


Told = dict[tuple[str, int], tuple[list[int], str | None]]


def story(engine: Engine, digests: list[str]) -> Told:
    """Requests of all kinds for versions that have no room together; one leaves, one is paused.

    Returns each child's tokens, and its error.
    """
    engine.handle(Load("load", digests[0]))
    engine.handle(greedy("gone", PROMPT, 9, adapter=digests[1]))
    engine.handle(greedy("slow", PROMPT, 4))
    engine.handle(Pause("slow", True))
    step_and_load(engine)
    engine.handle(Abort("gone"))
    engine.handle(Pause("slow", False))
    requests = (
        greedy("base", PROMPT, 3),
        *(greedy(f"adapted-{n}", PROMPT, 3, adapter=d) for n, d in enumerate(digests)),
        greedy("many", PROMPT, 2, n=2, logprobs=1),
        greedy("scored", PROMPT, 0, prompt_logprobs=1),
    )
    for request in requests:
        engine.handle(request)
    while engine.busy:
        step_and_load(engine)
    events: list[Event] = engine.take_events()
    told: Told = {}
    for event in events:
        match event:
            case Tokens():
                tokens, error = told.get((event.id, event.index), ([], None))
                assert error is None
                told[event.id, event.index] = ([*tokens, *event.tokens], event.error)
            case Loaded() | Failed():
                error = event.code if isinstance(event, Failed) else None
                told.setdefault((event.id, 0), ([], error))
    run(engine, *(Unload(f"unload-{digest}", digest) for digest in digests))
    assert engine.check() == ()
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    assert engine.scheduler.tables.referenced == {}
    told.pop(("gone", 0), None)
    return told


def test_an_exception_anywhere_ends_one_request_at_most(engine: Engine, digests: list[str]) -> None:
    expected = story(engine, digests)
    assert len(expected) == 8
    assert {error for _, error in expected.values()} == {None}
    engine.scheduler.tables.clear()  # what can be found in pages makes stories shorter
    with RaisesAt(0) as counted:
        assert story(engine, digests) == expected
    lines = -counted.left
    failures = 0
    for k in range(FAILURES):
        engine.scheduler.tables.clear()
        with RaisesAt(1 + k * lines // FAILURES) as raising:
            told = story(engine, digests)
        assert raising.left <= 0
        failed = {child for child, (_, error) in told.items() if error is not None}
        assert len({name for name, _ in failed}) <= 1
        assert {error for _, error in told.values()} <= {None, "out_of_memory"}
        assert told.keys() == expected.keys()
        for child in told.keys() - failed:
            assert told[child] == expected[child]
        failures += bool(failed)
    assert 0 < failures < FAILURES / 2
    assert story(engine, digests) == expected
