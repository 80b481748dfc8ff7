"""A registry of its own for each test that asks for one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stored_state import State

from weft.adapters.registry import Registry


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """Checked when the test ends."""
    state = State(tmp_path)
    yield state
    assert state.registry.check() == ()
    state.registry.close()


@pytest.fixture
def registry(state: State) -> Registry:
    """The state's."""
    return state.registry
