"""Each of the operations of a few steps fails once for want of memory: one answer ends, at most."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from engines import greedy, load, run, standing, step_and_load, store_of, tiny_engine
from peft_adapters import save_lora
from peft_prompts import save_prompt
from torch.utils._python_dispatch import TorchDispatchMode

from weft.adapters.out_of_memory import is_out_of_memory
from weft.adapters.packed import Packed
from weft.adapters.tenancy import TenantContext
from weft.server.engine.engine import Engine
from weft.server.engine.messages import Event, Failed, Loaded, Tokens, Unload

PROMPT = (11, 12, 13, 14, 15, 16, 17)
ERRORS = (
    torch.OutOfMemoryError("injected"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
)
FAILURES = 200
ROOM = 12 << 10
"""For the prefix, and one of the other two versions."""


class FailsAt(TorchDispatchMode):
    """Lets one operation of torch fail as if memory had run out."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number
        self._error = ERRORS[number % len(ERRORS)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self._error
        return func(*args, **(kwargs or {}))


class Places(TorchDispatchMode):
    """Counts operations from 1 and notes where in weft each was called from."""

    def __init__(self) -> None:
        super().__init__()
        self._count = count(1)
        self._found: dict[tuple[object, ...], tuple[int, int]] = {}

    def numbers(self) -> list[int]:
        """Of the first and the last operation of each place, and of FAILURES among all."""
        ends = {number for both in self._found.values() for number in both}
        total = next(self._count) - 1
        return sorted(ends | {1 + k * total // FAILURES for k in range(FAILURES)})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        number = next(self._count)
        place = tuple(_lines(sys._getframe(1)))
        first, _ = self._found.get(place, (number, number))
        self._found[place] = first, number
        return func(*args, **(kwargs or {}))


def _lines(frame: FrameType | None) -> Iterator[tuple[str, int]]:
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("weft."):
            yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    small = {"max_num_batched_tokens": 8, "max_num_seqs": 8, "adapter_memory": ROOM}
    small["async_scheduling"] = True
    with tiny_engine(tmp_path, clock=standing, **small) as engine:
        yield engine


@pytest.fixture
def digests(tmp_path: Path) -> list[str]:
    targets = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    folders = [save_lora(tmp_path / f"lora-{n}", "llama", seed=n, **targets) for n in (1, 2)]
    folders.append(save_prompt(tmp_path / "prefix", "llama", "PREFIX_TUNING", 6))
    return [store_of(tmp_path).put(folder) for folder in folders]


def test_an_allocation_that_failed_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(1 << 50)
    assert is_out_of_memory(failure.value)
    assert all(map(is_out_of_memory, ERRORS))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


Told = dict[tuple[str, int], tuple[list[int], str | None]]


def story(engine: Engine, digests: list[str]) -> Told:
    """Versions that have no room together are used beside the base.

    Returns each child's tokens, and its error.
    """
    events: list[Event] = run(
        engine,
        greedy("base", PROMPT, 2),
        *(greedy(f"adapted-{n}", PROMPT, 2, adapter=d) for n, d in enumerate(digests)),
        greedy("alike", PROMPT[::-1], 2, adapter=digests[-1]),
        greedy("many", PROMPT, 2, n=2, logprobs=1),
        greedy("scored", PROMPT, 0, prompt_logprobs=1),
        step=step_and_load,
    )
    told: Told = {}
    for event in events:
        if isinstance(event, Tokens):
            tokens, _ = told.get((event.id, event.index), ([], None))
            told[event.id, event.index] = ([*tokens, *event.tokens], event.error)
    run(engine, *(Unload(f"unload-{digest}", digest) for digest in digests))
    assert engine.check() == ()
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    assert engine.scheduler.tables.referenced == {}
    assert not engine.residency.states()
    return told


def test_one_allocation_that_fails_ends_one_version_or_one_answer_at_most(
    engine: Engine, digests: list[str]
) -> None:
    expected = story(engine, digests)
    assert len(expected) == 8
    assert engine.residency.evictions
    with Places() as places:
        assert story(engine, digests) == expected
    numbers = places.numbers()
    assert len(numbers) > FAILURES
    of_versions = {("adapted-2", 0), ("alike", 0)}
    failures: set[tuple[str, int]] = set()
    for number in numbers:
        with FailsAt(number) as failing:
            told = story(engine, digests)
        assert failing.left <= 0
        failed = {child for child, (_, error) in told.items() if error is not None}
        assert len(failed) <= 1 or failed == of_versions
        assert {error for _, error in told.values()} <= {None, "out_of_memory"}
        assert told.keys() == expected.keys()
        for child in told.keys() - failed:
            assert told[child] == expected[child]
        failures |= failed
    assert failures > of_versions
    assert story(engine, digests) == expected


def test_an_allocation_that_fails_in_a_load_fails_that_load(
    engine: Engine, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    around: Callable[[], Any] = nullcontext

    def loading(digest: str, tenant: TenantContext) -> Packed:
        with around():
            return engine.versions.load(digest, tenant)

    monkeypatch.setattr(engine._loader, "_load", loading)
    for digest in digests[1:]:
        assert isinstance(load(engine, digest), Loaded)  # computes what is kept of the base
        run(engine, Unload("unload", digest))
        counting = FailsAt(0)
        around = lambda counting=counting: counting  # noqa: E731
        assert isinstance(load(engine, digest), Loaded)
        operations = -counting.left
        assert operations > 10
        for number in range(1, operations + 1):
            run(engine, Unload("unload", digest))
            around = lambda number=number: FailsAt(number)  # noqa: E731
            answer = load(engine, digest)
            assert isinstance(answer, Failed)
            assert answer.code == "out_of_memory"
            assert engine.check() == ()
            around = nullcontext
            assert isinstance(load(engine, digest), Loaded)
