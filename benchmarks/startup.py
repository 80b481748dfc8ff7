"""How long from the start of `weft serve` to the first token of an answer?

    python benchmarks/startup.py

Beside it the floor: a process that imports torch and transformers' model class, and reads the
weights. Both in turns, files in the page cache. Prints a table and updates results/startup.json.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import httpx
import torch
import typer
import workload
from machine import fingerprint, results_path, write_results
from rich.console import Console
from rich.progress import track
from rich.table import Table
from serving.weft_server import weft_server
from transformers import AutoConfig

from weft.server.engine.hardware import default_threads

FLOOR = """
import sys, transformers
from safetensors.torch import load_file
getattr(transformers, sys.argv[1])
for values in load_file(sys.argv[2]).values():
    values.sum()
"""
NAME = "startup"
BASES: dict[str, Callable[[], workload.Base]] = {
    "embedded": workload.embedded,
    "half-billion": workload.qwen_half_billion,
}
GOAL = 1.2


def floor_seconds(base: workload.Base) -> float:
    """Of a process that does nothing but import and read."""
    (model_class,) = AutoConfig.from_pretrained(base.folder).architectures
    weights = base.folder / "model.safetensors"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", FLOOR, model_class, weights], check=True)
    return time.perf_counter() - start


def weft_seconds(base: workload.Base) -> tuple[float, str]:
    """Of a server that is asked as soon as it serves, to its first token; and its dtype."""
    start = time.perf_counter()
    with weft_server(base.folder, {}) as server:
        body = {"model": server.model, "prompt": [5, 6, 7], "max_tokens": 1, "ignore_eos": True}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        seconds = time.perf_counter() - start
        answer.raise_for_status()
    return seconds, server.dtype


def measured(base: workload.Base, repeats: int) -> dict[str, Any]:
    """Seconds of both sides by repeat, in turns, and the median of their ratios."""
    floor_seconds(base)
    pairs = [
        (floor_seconds(base), weft_seconds(base))
        for _ in track(range(repeats), description=base.name, transient=True)
    ]
    ratio = median(weft / floor for floor, (weft, _) in pairs)
    return {
        "dtype": pairs[0][1][1],
        "floor": [floor for floor, _ in pairs],
        "first_token": [weft for _, (weft, _) in pairs],
        "ratio": ratio,
        "goal": GOAL,
    }


def earlier() -> dict[str, Any]:
    """What the results file says of a processor like this one."""
    path = results_path(NAME)
    found = json.loads(path.read_text()) if path.exists() else {"machine": {}}
    machine, here = found.pop("machine"), fingerprint()
    alike = all(machine.get(part) == here[part] for part in ("processor", "simd", "cores"))
    return found if alike else {}


def main(models: str = "embedded,half-billion", repeats: int = 5) -> None:
    """Measures the start on each of the models."""
    torch.set_num_threads(default_threads())  # as the server does
    found = {name: measured(BASES[name](), repeats) for name in models.split(",")}
    table = Table("base", "floor (s)", "first token (s)", "to the floor", "goal")
    for name, sides in found.items():
        seconds = (f"{median(sides[side]):.2f}" for side in ("floor", "first_token"))
        table.add_row(f"{name}, {sides['dtype']}", *seconds, f"{sides['ratio']:.2f}", f"{GOAL}")
    Console().print(table)
    write_results(NAME, earlier() | found)


if __name__ == "__main__":
    typer.run(main)
