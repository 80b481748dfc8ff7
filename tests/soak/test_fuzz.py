"""The tests of the suite that send what no client should, with many more cases and other seeds."""

import os
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
from soak_results import keep

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
TESTS = Path(__file__).parents[1]
EXAMPLES, SEED = 2000, 20261130
CASES = 45
"""Of each operation, half of them with names that there are."""
PROPERTIES = ("server/test_bad_requests.py",)
OPENAPI = "server/test_openapi.py"


def run(tests: tuple[str, ...], *flags: str, **environment: str) -> tuple[int, float]:
    """Runs tests of the suite in a process of their own; returns how many, and the seconds."""
    began = monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "3600", *flags]
    done = subprocess.run(
        [*command, *(str(TESTS / test) for test in tests)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    return int(passed[1]), round(monotonic() - began, 1)


def test_whatever_is_sent_is_answered_as_it_is_described() -> None:
    many = {"WEFT_EXAMPLES": str(EXAMPLES)}
    properties, seconds = run(PROPERTIES, **many)
    seeded = ("--hypothesis-profile=other seeds", f"--hypothesis-seed={SEED}")
    other = run(PROPERTIES, *seeded, **many)[1]
    openapi = run((OPENAPI,), *seeded, WEFT_CASES=str(CASES))[1]
    keep(
        "fuzz",
        {
            "properties": properties,
            "examples_of_each": EXAMPLES,
            "another_seed": SEED,
            "cases_of_each_operation": CASES,
            "faults": 0,
            "seconds": {"as in the suite": seconds, "another seed": other, "openapi": openapi},
        },
    )
