"""What does `--compile` gain in a decode step, and what does it take at the start?

    python benchmarks/compiled.py

Two engines in one process, one of them compiled, take steps in turns: of base rows, and of rows of
one LoRA of rank 16. Updates results/compiled.json and prints the table.
"""

import json
import statistics
import time
from typing import Annotated, Any

import torch
import typer
import workload
from machine import fingerprint, results_path, write_results
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stepper import Stepper, version

NAME = "compiled"
BASES = {"embedded": workload.embedded, "half-billion": workload.qwen_half_billion}
ROWS = (1, 8, 32)
ADAPTERS = (None, version(16, 0))
AT_A_TIME = 4
ADAPTER_MEMORY = 256 << 20
console = Console(width=120)


def main(
    model: Annotated[str, typer.Option(help="embedded or half-billion")] = "embedded",
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
    turns: Annotated[int, typer.Option(help="of four steps each, of either engine")] = 8,
) -> None:
    """Runs the benchmark and updates its results file."""
    torch.set_num_threads(threads)
    base = BASES[model]()
    plain, start = started(base, threads, compile_=False)
    compiled, compiled_start = started(base, threads, compile_=True)
    for engine in (plain, compiled):
        engine.warm(list(ADAPTERS))
    cases = [(rows, adapter) for adapter in ADAPTERS for rows in ROWS]
    found = [
        measured(plain, compiled, rows, adapter, turns)
        for rows, adapter in track(cases, "steps in turns", console=console)
    ]
    facts = plain.host.facts
    of_this = {
        "dtype": str(facts.dtype).removeprefix("torch."),
        "threads": threads,
        "start_seconds": {"plain": start, "compiled": compiled_start},
        "cases": found,
        "machine": fingerprint(),
    }
    path = results_path(NAME)
    models = json.loads(path.read_text())["models"] if path.exists() else {}
    models |= {f"{base.name}, threads: {threads}": of_this}
    write_results(NAME, {"models": models})
    show(base.name, of_this)


def started(base: workload.Base, threads: int, *, compile_: bool) -> tuple[Stepper, float]:
    """An engine and the seconds of its start."""
    begin = time.perf_counter()
    stepper = Stepper(
        base,
        rows=max(ROWS),
        adapter_memory=ADAPTER_MEMORY,
        threads=threads,
        compile_=compile_,
    )
    return stepper, round(time.perf_counter() - begin, 1)


def measured(
    plain: Stepper, compiled: Stepper, rows: int, adapter: str | None, turns: int
) -> dict[str, Any]:
    """The median steps of both, in seconds, and the median ratio of turns."""
    pairs = [(turn(plain, rows, adapter), turn(compiled, rows, adapter)) for _ in range(turns)]
    return {
        "rows": rows,
        "adapter": adapter is not None,
        "plain": statistics.median(one for one, _ in pairs),
        "compiled": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(other / one for one, other in pairs),
    }


def turn(engine: Stepper, rows: int, adapter: str | None) -> float:
    """The median seconds of a decode step of so many rows."""
    engine.begin([adapter] * rows)
    engine.step()
    engine.step()
    seconds = statistics.median(engine.step() for _ in range(AT_A_TIME))
    engine.end()
    return seconds


def show(name: str, found: dict[str, Any]) -> None:
    """The table of what was measured."""
    title = f"{name}, {found['dtype']}, torch threads: {found['threads']}"
    table = Table("rows", "adapter", "plain (ms)", "compiled (ms)", "ratio", title=title)
    for case in found["cases"]:
        table.add_row(
            str(case["rows"]),
            "one LoRA r16" if case["adapter"] else "none",
            f"{case['plain'] * 1e3:.2f}",
            f"{case['compiled'] * 1e3:.2f}",
            f"{case['ratio']:.2f}",
        )
    console.print(table)
    console.print(f"start: {found['start_seconds']} s")


if __name__ == "__main__":
    typer.run(main)
