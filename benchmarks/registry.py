"""What do 10, 1,000 and 10,000 registered adapters cost? Start, lookup, listing, change, memory.

    python benchmarks/registry.py

Prints a table and writes results/registry.json; needs no model and no device. Adapters are as small
as they can be, since their bytes are not what is measured, and have reports of a usual size.
"""

import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from machine import write_results
from rich.console import Console
from rich.table import Table

from weft.adapters.registry import Registry
from weft.adapters.retention import Retention
from weft.adapters.store import Source, Store
from weft.adapters.tenancy import TenantContext

SIZES = (10, 1_000, 10_000)
CTX = TenantContext("tenant")
TIMES, CHANGES = 1000, 50
PAGE = 100
MODULES = 7 * 24
MEMORY_DISK = Path("/dev/shm")
REPORT = json.dumps(
    {
        "method": "LORA",
        "rank": 16,
        "bytes": 4096,
        "warnings": [],
        "delta_norms": {f"model.layers.{n // 7}.proj_{n % 7}": 1 / (n + 3) for n in range(MODULES)},
    }
)


def adapter(number: int) -> Source:
    """An adapter of one value; other numbers are other contents."""
    spec = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"lora_A": spec}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    config = {"peft_type": "LORA", "r": 1, "number": number}
    return io.BytesIO(json.dumps(config).encode()), io.BytesIO(weights)


def open_registry(state: Path) -> Registry:
    """The registry of a state folder."""
    return Registry(state / "registry.sqlite", Store(state / "versions"))


def put(registry: Registry, name: str, number: int) -> None:
    """Gives a name its next version."""
    with registry.ingest(CTX, adapter(number)) as upload:
        registry.put(CTX, name, upload, REPORT)


def fill(state: Path, size: int) -> None:
    """Makes a state folder with so many adapters."""
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None) as folder:
        registry = open_registry(Path(folder))
        for number in range(size):
            put(registry, f"adapter-{number:05}", number)
        registry.close()
        shutil.copytree(folder, state)


def microseconds(call: Callable[[int], object], times: int) -> dict[str, float]:
    """Median and 99th percentile of a call, which is given another number each time."""
    spent = []
    for number in range(times):
        began = time.perf_counter()
        call(number)
        spent.append(1e6 * (time.perf_counter() - began))
    return {"median": round(median(spent), 1), "p99": round(quantiles(spent, n=100)[-1], 1)}


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return round(time.perf_counter() - began, 4)


def measure(state: Path, size: int) -> dict[str, Any]:
    """All figures of a state folder of so many adapters; memory is this process's."""
    names = [f"adapter-{number * 7919 % size:05}" for number in range(TIMES)]
    memory, opened = _resident(), []
    start = seconds(lambda: opened.append(open_registry(state)))
    (registry,) = opened
    memory = _resident() - memory
    figures = {
        "start_seconds": start,
        "memory_bytes": memory,
        "lease_us": microseconds(lambda n: registry.lease(CTX, names[n]).release(), TIMES),
        "lookup_us": microseconds(lambda n: registry.lookup(CTX, names[n]), TIMES),
        "page_us": microseconds(lambda n: registry.list(CTX, names[n], PAGE), TIMES),
        "put_us": microseconds(lambda n: put(registry, names[n], size + n), CHANGES),
        "pin_us": microseconds(lambda n: registry.pin(CTX, names[n], n // size % 2 == 0), CHANGES),
        "prune_all_seconds": seconds(
            lambda: [registry.prune(CTX, name, Retention(20)) for name in set(names)]
        ),
    }
    registry.close()
    return figures


def _resident() -> int:
    """Bytes of memory that are in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Measures all sizes, each in a process of its own."""
    found = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "state"
            fill(state, size)
            command = [sys.executable, __file__, str(state), str(size)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[str(size)] = json.loads(done.stdout)
    table = Table("", *(f"{size:,}" for size in SIZES))
    for figure in found[str(SIZES[0])]:
        values = [found[str(size)][figure] for size in SIZES]
        table.add_row(figure, *(str(v["median"] if isinstance(v, dict) else v) for v in values))
    Console().print(table)
    write_results("registry", {"page": PAGE, "adapters": found})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
