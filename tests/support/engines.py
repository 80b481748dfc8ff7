"""A real engine on a tiny model, driven step by step in this process."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_models import save_tiny

from weft.adapters.blend import alone
from weft.adapters.store import Store
from weft.adapters.tenancy import TenantContext
from weft.server.engine.engine import Engine
from weft.server.engine.messages import (
    Command,
    EngineConfig,
    Event,
    Failed,
    Generate,
    Load,
    Loaded,
    Sampling,
    Tokens,
)
from weft.server.engine.model import ModelHost

TENANT = TenantContext("tenant")
_SMALL: dict[str, Any] = {
    "dtype": "float32",
    "page_size": 4,
    "kv_cache_memory": 4 << 20,
    "adapter_memory": 4 << 20,
    "threads": 1,
    "device": "cpu",
}


@contextmanager
def tiny_engine(
    folder: Path,
    arch: str = "llama",
    *,
    watch: Callable[[ModelHost], ModelHost] = lambda model: model,
    clock: Callable[[], float] = time.monotonic,
    **config: Any,
) -> Iterator[Engine]:
    """An engine on `tiny_model(arch)`, its store in `folder / "store"`; checked when it ends.

    watch: what the engine is given in place of its model   clock: the engine's
    """
    model = folder / arch
    if not model.exists():
        save_tiny(arch, model)
    settings = {"model": str(model), "store": str(folder / "store"), **_SMALL, **config}
    wanted = EngineConfig(**settings)
    model_host = watch(ModelHost.load(wanted, lambda stage, done, total: None))
    engine = Engine(model_host, wanted, clock)
    try:
        yield engine
        assert engine.check() == ()
    finally:
        engine.close()


def standing() -> float:
    """A clock by which no version's turn ends, so that all stories take the same steps."""
    return 0.0


def store_of(folder: Path) -> Store:
    """The store that `tiny_engine(folder)` reads."""
    return Store(folder / "store")


def greedy(
    name: str, prompt: tuple[int, ...], tokens: int, adapter: str | None = None, **more: Any
) -> Generate:
    """A request for exactly `tokens` greedy tokens."""
    n = more.pop("n", 1)
    settings = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, **more}
    return Generate(
        id=name,
        tenant=TENANT,
        prompt=prompt,
        sampling=Sampling(**settings),
        blend=alone(adapter),
        n=n,
    )


def step(engine: Engine) -> None:
    """A step; one that has nothing to compute lets the loader have the interpreter for a while."""
    if not engine.step():
        wait(list(engine._loader._pending.values()), 0.01, FIRST_COMPLETED)


def step_and_load(engine: Engine) -> None:
    """A step, and the ends of the loads that it began: what follows takes the same steps again."""
    engine.step()
    wait(list(engine._loader._pending.values()))


def run(engine: Engine, *commands: Command, step: Callable[[Engine], object] = step) -> list[Event]:
    """Hands commands in and steps until nothing is left to do; returns all events."""
    for command in commands:
        engine.handle(command)
    events: list[Event] = []
    while True:
        step(engine)
        events += engine.take_events()
        if not engine.busy:
            return events


def tokens_of(events: list[Event]) -> dict[tuple[str, int], list[int]]:
    """All tokens by (request, child); asserts that each child ended exactly once, at its end."""
    tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
    ended: set[tuple[str, int]] = set()
    for event in events:
        if isinstance(event, Tokens):
            key = (event.id, event.index)
            assert key not in ended, f"{key} went on after its end"
            tokens[key] += event.tokens
            if event.finish is not None:
                ended.add(key)
    assert ended == tokens.keys()
    return dict(tokens)


def load(engine: Engine, digest: str) -> Loaded | Failed:
    """The engine's answer to a load, stepping until it comes."""
    engine.handle(Load(f"load-{digest}", digest))
    while True:
        step_and_load(engine)
        for event in engine.take_events():
            if isinstance(event, Loaded | Failed):
                return event
