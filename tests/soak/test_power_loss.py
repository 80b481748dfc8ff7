"""Every state that a power loss may leave, of several stories."""

from pathlib import Path

import pytest
from recorded_story import faults, record
from soak_results import keep

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
STORIES = ((22, 16), (18, 16), (25, 16))


def test_a_power_loss_takes_nothing_that_was_answered(tmp_path: Path) -> None:
    states = {}
    for seed, length in STORIES:
        folder = tmp_path / str(seed)
        left = folder / "left"
        left.mkdir(parents=True)
        recording = record(folder, seed, length)
        found = list(faults(recording, left))
        assert set(found) == {""}
        states[f"story {seed}"] = {"operations": len(recording.operations), "states": len(found)}
    keep("power-loss", {"stories": states, "faults": 0})
