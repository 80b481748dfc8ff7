"""The stateful and the simulation tests of the suite, with many more and longer lives."""

import os
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
from soak_results import keep_part

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
TESTS = Path(__file__).parents[1]
HISTORIES, STEPS, SEEDS = 250, 60, range(4)
STATEFUL = {
    "registry": "adapters/test_registry_histories.py::TestLife",
    "adapter pool": "adapters/test_pool.py::TestPoolModel",
    "residency": "adapters/test_residency_histories.py::TestLife",
    "pages": "server/engine/test_pages.py::test_any_history_keeps_the_pool_sound",
}
SIMULATION = "server/engine/test_scheduler_simulation.py"
LIVES, EACH, EVENTS = 3400, 340, 300


def live(test: str, *flags: str, **environment: str) -> float:
    """Runs a test of the suite in a process of its own; returns the seconds that it took."""
    began = monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "3600", *flags, TESTS / test]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)
    return round(monotonic() - began, 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", STATEFUL)
def test_random_histories_of_all_that_has_state(name: str, seed: int) -> None:
    seconds = live(
        STATEFUL[name],
        "--hypothesis-profile=other seeds",
        f"--hypothesis-seed={seed}",
        WEFT_HISTORIES=f"{HISTORIES}x{STEPS}",
    )
    found = {"histories": HISTORIES, "steps": STEPS, "faults": 0, "seconds": seconds}
    keep_part("histories", f"{name}, seed {seed}", found)


@pytest.mark.parametrize("first", range(0, LIVES, EACH))
def test_a_million_events_of_the_scheduler(first: int) -> None:
    seeds = f"{first}:{first + EACH}"
    seconds = live(SIMULATION, WEFT_SIMULATION_SEEDS=seeds)
    keep_part("simulation", seeds, {"events": EACH * EVENTS, "faults": 0, "seconds": seconds})
