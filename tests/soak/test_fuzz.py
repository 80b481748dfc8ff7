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
SEEDS = {
    "of the suite": (),
    str(SEED): ("--hypothesis-profile=other seeds", f"--hypothesis-seed={SEED}"),
}
PROPERTIES = {
    "requests, headers and names": (
        "server/test_bad_requests.py",
        "server/test_selection.py",
    ),
    "configurations": (
        "adapters/test_strict_json.py",
        "adapters/methods/test_lora_refusals.py",
    ),
    "safetensors headers": ("adapters/test_header.py",),
    "server-sent events": ("server/api/test_events.py",),
}
OPENAPI = "server/test_openapi.py"
CASES, LEAST = 70, 1500
"""Of each operation, half of them with names that there are; of all, since some allow only few."""


def run(tests: tuple[str, ...], *flags: str, **environment: str) -> str:
    """Runs tests of the suite in a process of its own; returns what they print."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout", "3600", *flags]
        + [str(TESTS / test) for test in tests],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PROPERTIES)
def test_properties(name: str, seed: str) -> None:
    began = monotonic()
    printed = run(
        PROPERTIES[name],
        "-m",
        "hypothesis",
        "--hypothesis-show-statistics",
        *SEEDS[seed],
        WEFT_EXAMPLES=str(EXAMPLES),
    )
    tried = [int(count) for count in re.findall(r"(\d+) passing", printed)]
    assert min(tried) >= EXAMPLES, printed
    found = {
        "properties": len(tried),
        "examples": sum(tried),
        "faults": 0,
        "seconds": round(monotonic() - began, 1),
    }
    keep_part("fuzz", f"{name}, seed {seed}", found)


def test_whatever_is_sent_is_answered_as_it_is_described() -> None:
    began = monotonic()
    printed = run((OPENAPI,), "-s", *SEEDS[str(SEED)], WEFT_CASES=str(CASES))
    told = re.search(r"(\d+) requests to (\d+) operations, (\d+) answered with 2xx", printed)
    assert told
    requests, operations, well = map(int, told.groups())
    assert requests >= LEAST
    found = {
        "operations": operations,
        "requests": requests,
        "answered_with_2xx": well,
        "faults": 0,
        "seconds": round(monotonic() - began, 1),
    }
    keep_part("fuzz", f"OpenAPI, seed {SEED}", found)
