"""What a figure was measured on: fingerprint, memory bandwidth, and the results files."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "triton")


def fingerprint() -> dict[str, Any]:
    """Processor, its vectors, threads, device and library versions; no host name, no paths."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": date.today().isoformat(),  # noqa: DTZ011 - a day is all that is meant
        "processor": _processor(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def read_bandwidth(device: torch.device, gigabytes: float = 1.0, repeats: int = 5) -> float:
    """Best bytes per second of reading a large float32 buffer (a sum), over `repeats` runs."""
    values = torch.ones(int(gigabytes * 2**30) // 4, dtype=torch.float32, device=device)
    return values.nbytes / _best_seconds(values.sum, device, repeats)


def copy_bandwidth(device: torch.device, gigabytes: float = 1.0, repeats: int = 5) -> float:
    """Best bytes per second, read and written, of copying a large buffer, over `repeats` runs."""
    values = torch.ones(int(gigabytes * 2**30) // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(values)
    return 2 * values.nbytes / _best_seconds(lambda: target.copy_(values), device, repeats)


def matmul_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Best floating-point operations per second of a large product, over `repeats` runs."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: left @ right, device, repeats)


def _best_seconds(call: Callable[[], torch.Tensor], device: torch.device, repeats: int) -> float:
    """Of one call; on a GPU several are queued, so that what starts and ends them hardly counts."""
    calls = 8 if device.type == "cuda" else 1
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        result.flatten()[0].item()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def results_path(name: str) -> Path:
    """Where `write_results` writes."""
    return RESULTS / f"{name}.json"


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Writes `results/<name>.json` with the machine's fingerprint; returns its path."""
    path = results_path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": fingerprint(), **results}, indent=2) + "\n")
    return path


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
