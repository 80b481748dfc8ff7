"""Requests cancelled in each state in which one can be: nothing is held, and nobody is kept."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from engines import greedy, run, step, store_of, tiny_engine
from peft_adapters import save_lora
from peft_prompts import save_prompt

from weft.server.engine.engine import Engine
from weft.server.engine.messages import Abort, Event, Tokens, Unload

CANCELS = 500
PROMPT = tuple(range(11, 31))
"""More than a step computes."""
TOKENS = 4


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with tiny_engine(tmp_path, max_num_batched_tokens=8, max_num_seqs=2) as engine:
        yield engine


@pytest.fixture
def digests(tmp_path: Path) -> list[str]:
    lora = save_lora(tmp_path / "lora", "llama", r=4, target_modules=["q_proj"])
    prefix = save_prompt(tmp_path / "prefix", "llama", "PREFIX_TUNING", 6)
    return [store_of(tmp_path).put(folder) for folder in (lora, prefix)]


class Cancelling:
    """Brings a request to a state, cancels it there, and looks at what is left."""

    def __init__(self, engine: Engine, digests: list[str]) -> None:
        self.engine = engine
        self.digests = digests
        self.random = Random(3)
        self.events: list[Event] = []
        self.number = 0
        self.states: Counter[str] = Counter()

    def begin(self, digest: str | None, **more: int) -> str:
        self.number += 1
        name = f"request-{self.number}"
        prompt = tuple(self.random.choices(range(10, 90), k=20))  # of which nothing is cached
        self.engine.handle(greedy(name, prompt, TOKENS, adapter=digest, **more))
        return name

    def step_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            step(self.engine)
            self.events += self.engine.take_events()

    def tokens(self, name: str) -> int:
        """Sampled so far for the first child."""
        mine = (e for e in self.events if isinstance(e, Tokens) and (e.id, e.index) == (name, 0))
        return sum(len(event.tokens) for event in mine)

    # ---- the states

    def queued(self, digest: str) -> str:
        for _ in range(2):
            self.begin(None)
        self.step_until(lambda: self.engine.scheduler.running == 2)
        return self.begin(None)

    def loading(self, digest: str) -> str:
        run(self.engine, Unload(f"unload-{self.number}", digest))
        name = self.begin(digest, n=1 + self.number % 2)
        for _ in range(self.random.randrange(3)):
            step(self.engine)
        return name

    def prefill(self, digest: str) -> str:
        name = self.begin(digest, n=1 + self.number % 2)
        scheduler = self.engine.scheduler
        self.step_until(lambda: scheduler.running > 0)
        assert not self.tokens(name)
        return name

    def decode(self, digest: str) -> str:
        name = self.begin(digest, n=1 + self.number % 2)
        self.step_until(lambda: self.tokens(name) >= 1)
        return name

    def last_token(self, digest: str) -> str:
        name = self.begin(digest)
        self.step_until(lambda: self.tokens(name) >= TOKENS - self.number % 2)
        return name

    def unloading(self, digest: str) -> str:
        name = self.begin(digest)
        self.step_until(lambda: self.tokens(name) >= 1)
        self.engine.handle(Unload(f"unload-{self.number}", digest))
        return name

    # ---- the end

    def cancel(self, state: str) -> None:
        digest = self.random.choice(self.digests)
        name = getattr(self, state)(digest)
        self.events += self.engine.take_events()
        abort = Abort(name, self.random.choice([None, 0]))
        self.events += run(self.engine, *[abort] * self.random.choice([1, 2]))
        self._check()
        self.states[state] += 1

    def _check(self) -> None:
        engine = self.engine
        assert engine.check() == ()
        assert engine.scheduler.running == engine.scheduler.waiting == 0
        tables = engine.scheduler.tables
        assert tables.referenced == {}
        assert tables.free + tables.cached == tables.total
        assert all(state.refs == 0 for state in engine.residency.states())
        ends = Counter(
            (e.id, e.index) for e in self.events if isinstance(e, Tokens) and e.finish is not None
        )
        begun = {(e.id, e.index) for e in self.events if isinstance(e, Tokens)}
        assert begun == ends.keys()
        assert set(ends.values()) == {1}
        self.events.clear()


STATES = ("queued", "loading", "prefill", "decode", "last_token", "unloading")


def test_five_hundred_requests_that_are_given_up(engine: Engine, digests: list[str]) -> None:
    expected = run(engine, greedy("before", PROMPT, TOKENS, adapter=digests[0]))
    cancelling = Cancelling(engine, digests)
    for number in range(CANCELS):
        cancelling.cancel(STATES[number % len(STATES)])
    assert sum(cancelling.states.values()) == CANCELS
    assert min(cancelling.states.values()) >= CANCELS // len(STATES)
    after = run(engine, greedy("after", PROMPT, TOKENS, adapter=digests[0]))
    assert _tokens(after) == _tokens(expected)


def _tokens(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) for token in event.tokens]
