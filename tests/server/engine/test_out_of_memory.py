"""Each of the operations of a few steps fails once for want of memory: one answer ends, at most."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import greedy, run, store_of, tiny_engine
from peft_adapters import save_lora
from torch.utils._python_dispatch import TorchDispatchMode

from weft.server.engine.engine import Engine
from weft.server.engine.messages import Event, Tokens, Unload

PROMPT = (11, 12, 13, 14, 15, 16, 17)
STRIDE = 23
"""Every so-many-th operation fails; a prime, so that all kinds of them have their turn."""


class FailsAt(TorchDispatchMode):
    """Lets one operation of torch fail as if memory had run out."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("injected")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with tiny_engine(tmp_path, max_num_batched_tokens=8, max_num_seqs=8) as engine:
        yield engine


def story(engine: Engine, digest: str) -> dict[tuple[str, int], tuple[list[int], str | None]]:
    """A version is loaded and used beside the base; each child's tokens, and its error."""
    events: list[Event] = run(
        engine,
        greedy("base", PROMPT, 5),
        greedy("adapted", PROMPT, 5, adapter=digest),
        greedy("many", PROMPT, 3, n=2, logprobs=1),
    )
    told: dict[tuple[str, int], tuple[list[int], str | None]] = {}
    for event in events:
        if isinstance(event, Tokens):
            tokens, _ = told.get((event.id, event.index), ([], None))
            told[event.id, event.index] = ([*tokens, *event.tokens], event.error)
    run(engine, Unload("unload", digest))
    assert engine.check() == ()
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    tables = engine.scheduler.tables
    assert tables.referenced == {}
    return told


def test_one_allocation_that_fails_ends_one_answer_at_most(engine: Engine, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "adapter", "llama", r=4, target_modules=["q_proj", "v_proj"])
    digest = store_of(tmp_path).put(path)
    expected = story(engine, digest)
    assert len(expected) == 4
    with FailsAt(0) as counted:
        assert story(engine, digest) == expected
    operations = -counted.left
    assert operations > 500
    failures = 0
    for number in range(1, operations, STRIDE):
        with FailsAt(number) as failing:
            told = story(engine, digest)
        assert failing.left <= 0
        failed = {child for child, (_, error) in told.items() if error is not None}
        assert len(failed) <= 1
        assert {error for _, error in told.values()} <= {None, "out_of_memory"}
        assert told.keys() == expected.keys()
        for child in told.keys() - failed:
            assert told[child] == expected[child]
        failures += len(failed)
    assert failures
    assert story(engine, digest) == expected
