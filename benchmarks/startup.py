"""How long from the start of `weft serve` to the first token of an answer?

    python benchmarks/startup.py

Beside it the floor: a process that imports torch and transformers' model class, and reads the
weights. Both in turns, files in the page cache. Prints a table and writes results/startup.json.
"""

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
from machine import write_results
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


def weft_seconds(base: workload.Base) -> float:
    """Of a server that is asked as soon as it serves, to its first token."""
    start = time.perf_counter()
    with weft_server(base.folder, {}) as server:
        body = {"model": server.model, "prompt": [5, 6, 7], "max_tokens": 1, "ignore_eos": True}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        seconds = time.perf_counter() - start
        answer.raise_for_status()
    return seconds


def measured(base: workload.Base, repeats: int) -> dict[str, Any]:
    """Seconds of both sides by repeat, in turns, and the median of their ratios."""
    floor_seconds(base)
    pairs = [
        (floor_seconds(base), weft_seconds(base))
        for _ in track(range(repeats), description=base.name, transient=True)
    ]
    ratio = median(weft / floor for floor, weft in pairs)
    floors, wefts = zip(*pairs, strict=True)
    return {"floor": floors, "first_token": wefts, "ratio": ratio, "goal": GOAL}


def main(models: str = "embedded,half-billion", repeats: int = 5) -> None:
    """Measures the start on each of the models."""
    torch.set_num_threads(default_threads())  # as the server does
    results = {name: measured(BASES[name](), repeats) for name in models.split(",")}
    table = Table("base", "floor (s)", "first token (s)", "to the floor", "goal")
    for name, found in results.items():
        seconds = (f"{median(found[side]):.2f}" for side in ("floor", "first_token"))
        table.add_row(name, *seconds, f"{found['ratio']:.2f}", f"{GOAL}")
    Console().print(table)
    write_results("startup", results)


if __name__ == "__main__":
    typer.run(main)
