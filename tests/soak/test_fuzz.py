"""The tests of the suite that send what no client should, with many more cases and other seeds."""

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
EXAMPLES, SEED = 2000, 20261130
CASES = 45
"""Of each operation, half of them with names that there are."""
PROPERTIES = "server/test_bad_requests.py"
OPENAPI = "server/test_openapi.py"
ANOTHER_SEED = ("--hypothesis-profile=other seeds", f"--hypothesis-seed={SEED}")


def run(name: str, test: str, *flags: str, **environment: str) -> None:
    """Runs a test of the suite in a process of its own."""
    began = monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "3600", *flags, TESTS / test]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    seconds = round(monotonic() - began, 1)
    found = {"tests": int(passed[1]), **environment, "faults": 0, "seconds": seconds}
    keep_part("fuzz", name, found)


@pytest.mark.parametrize(("seed", "flags"), [("of the suite", ()), (str(SEED), ANOTHER_SEED)])
def test_bad_requests(seed: str, flags: tuple[str, ...]) -> None:
    run(f"bad requests, seed {seed}", PROPERTIES, *flags, WEFT_EXAMPLES=str(EXAMPLES))


def test_whatever_is_sent_is_answered_as_it_is_described() -> None:
    run(f"OpenAPI, seed {SEED}", OPENAPI, *ANOTHER_SEED, WEFT_CASES=str(CASES))
