"""Do 10,000 registered adapters slow down 64 that are in use? Against a server with these alone.

    python benchmarks/registered.py

Both servers run at once and are asked in turns, each time the same by 32 clients for 64 adapters.
Then each answers `/metrics` and `/v1/models`. Prints a table and writes results/registered.json;
with --add to the runs that are there, so that a few short calls make many pairs.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.request import urlopen

import machine
import torch
import typer
import workload
from registry import adapter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from serving.client import ByModel, Outcomes, Target, drive
from serving.figures import Figures, Promise
from serving.weft_server import WeftServer, weft_server
from serving.workloads import Load, s_lora

from weft.adapters.store import Source

HOT, CLIENTS, RANK, THREADS = 64, 32, 8, 1
ROUTES = ("/metrics", "/v1/models")
GOAL = 0.95
console = Console(width=120)


def main(
    registered: Annotated[int, typer.Option(min=HOT, help="adapters of the full server")] = 10_000,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each server")] = 5,
    requests: Annotated[int, typer.Option(min=CLIENTS, help="of each run")] = 320,
    results: Annotated[str, typer.Option(help="name of the results file")] = "registered",
    add: Annotated[bool, typer.Option("--add", help="keep the runs of the results file")] = False,
) -> None:
    """Runs the benchmark and writes its results file."""
    torch.set_num_threads(THREADS)  # as the servers are told
    base = workload.embedded()
    folders = workload.random_adapters(base, HOT, RANK)
    hot: Mapping[str, Source] = {f"hot-{n:02}": folder for n, folder in enumerate(folders)}
    others = {f"other-{n:05}": adapter(n) for n in range(registered - HOT)}
    memory = ("--adapter-memory", "64MiB", "--threads", THREADS)
    with (
        weft_server(base.folder, hot, *memory) as small,
        weft_server(base.folder, {**hot, **others}, *memory) as full,
    ):
        servers = {f"{HOT} registered": small, f"{registered:,} registered": full}
        outcomes = asyncio.run(_turns(servers, list(hot), repeats, requests))
        runs = {name: _figures(each) for name, each in outcomes.items()}
        if add:
            earlier = json.loads(machine.results_path(results).read_text())["runs"]
            runs = {name: earlier[name] + each for name, each in runs.items()}
        sides = {name: _side(runs[name], server) for name, server in servers.items()}
    ratio = _ratio(*runs.values())
    _print(sides, ratio)
    told = {"hot": HOT, "clients": CLIENTS, "rank": RANK, "pairs": len(runs[f"{HOT} registered"])}
    written = {**told, "sides": sides, "ratio": ratio, "runs": runs}
    console.print(f"written: {machine.write_results(results, written)}")


async def _turns(
    servers: Mapping[str, WeftServer], hot: list[str], repeats: int, requests: int
) -> dict[str, list[Outcomes]]:
    """Each server's runs; the first turn loads the adapters and does not count."""
    runs: dict[str, list[Outcomes]] = {name: [] for name in servers}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("runs", total=(repeats + 1) * len(servers))
        for turn in range(repeats + 1):
            load = Load(rate=2 * requests, seconds=1.0, seed=turn, prompt=(16, 16), answer=(32, 32))
            asked = s_lora(load, hot)[:requests]
            order = list(servers.items())
            for name, server in order if turn % 2 else reversed(order):
                target = Target(server.url, ByModel(server.model))
                outcomes = await drive(target, asked, CLIENTS)
                if turn:
                    runs[name].append(outcomes)
                progress.advance(task)
    return runs


def _figures(runs: list[Outcomes]) -> list[dict[str, Any]]:
    return [asdict(Figures.of(run, Promise())) for run in runs]


def _side(runs: list[dict[str, Any]], server: WeftServer) -> dict[str, Any]:
    """A server's figures: medians over its runs."""

    def middle(name: str, part: str) -> float:
        return statistics.median(run[name][part] for run in runs if run[name])

    rates = [run["tokens_per_second"] for run in runs]
    return {
        "tokens_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "first_token_p50": middle("first_token", "p50"),
        "first_token_p99": middle("first_token", "p99"),
        "inter_token_p50": middle("inter_token", "p50"),
        "inter_token_p99": middle("inter_token", "p99"),
        "errors": sum(run["requests"] - run["answered"] for run in runs),
        "server_memory_bytes": _resident(server.pid),
        "seconds_of": {route: _seconds(server.url + route) for route in ROUTES},
    }


def _ratio(small: list[dict[str, Any]], full: list[dict[str, Any]]) -> dict[str, float]:
    """Throughput of the full server to that of the other one, pair by pair."""
    pairs = zip(small, full, strict=True)
    ratios = sorted(one["seconds"] / other["seconds"] for one, other in pairs)
    found = {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
    if len(ratios) > 1:  # what bounds the middle half; a pair that was disturbed is not in it
        found["lower"], _, found["upper"] = statistics.quantiles(ratios, n=4)
    return found


def _seconds(url: str) -> float:
    """How long an answer takes, of five the median."""
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        with urlopen(url) as answer:
            answer.read()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def _resident(pid: int) -> int:
    """Bytes of memory of the process that answers HTTP."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def _print(sides: Mapping[str, Any], ratio: Mapping[str, float]) -> None:
    table = Table("", *sides)
    rows: dict[str, Callable[[Any], str]] = {
        "tokens/s": lambda side: f"{side['tokens_per_second']:.0f}",
        "first token, p50 / p99": lambda side: _times(side, "first_token"),
        "between tokens, p50 / p99": lambda side: _times(side, "inter_token"),
        "memory of the server's process": lambda s: f"{s['server_memory_bytes'] / 2**20:.0f} MiB",
        "errors": lambda side: str(side["errors"]),
    }
    for name, cell in rows.items():
        table.add_row(name, *map(cell, sides.values()))
    for route in ROUTES:
        seconds = [side["seconds_of"][route] for side in sides.values()]
        table.add_row(route, *(f"{1e3 * spent:.0f} ms" for spent in seconds))
    console.print(table)
    found = "{median:.3f} ({least:.3f} to {most:.3f})".format(**ratio)
    console.print(f"throughput with all registered, to that without: {found}; goal ≥ {GOAL}")


def _times(side: Mapping[str, Any], name: str) -> str:
    return " / ".join(f"{1e3 * side[f'{name}_{p}']:.1f}" for p in ("p50", "p99")) + " ms"


if __name__ == "__main__":
    typer.run(main)
