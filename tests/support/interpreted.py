"""Runs a test file in a process of its own, whose Triton kernels are interpreted on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import triton


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


needs_interpreter = pytest.mark.skipif(
    _release(triton.__version__) < (3, 7) and _release(np.__version__) >= (2, 4),
    reason="the interpreter of Triton before 3.7 fails with NumPy 2.4",
)


def assert_passes_interpreted(tests: Path) -> None:
    """Raises AssertionError with pytest's report where a test of the file fails."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            "--hypothesis-profile=interpreted",
            str(tests),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
