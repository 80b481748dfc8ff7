"""Does mixing adapters cost what their bytes cost? Base, one adapter, 32 distinct; beside peft.

    python benchmarks/smoke.py

Writes results/smoke.json, or where nothing is in bfloat16 results/smoke-float32.json, and prints
the table. All sides run in turns on the same requests.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import machine
import torch
import typer
import workload
from peft_groups import Job, PeftServer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from weft_engine import Run, WeftEngine

CLIENTS = 32
RANK = 16
PROMPT_TOKENS = 32
NEW_TOKENS = 32
WARM_TOKENS = 4
MIXES: dict[str, Callable[[int], int | None]] = {
    "base": lambda _: None,
    "1 adapter": lambda _: 0,
    "32 adapters": lambda index: index,
}
console = Console(width=140)


def main(
    models: Annotated[str, typer.Option(help="embedded, half-billion, or both")] = "both",
    repeats: Annotated[int, typer.Option(help="runs of each mix; medians are reported")] = 3,
    peft_repeats: Annotated[int, typer.Option(help="of them, runs of the peft side too")] = 1,
    threads: Annotated[int, typer.Option(help="torch threads of both sides")] = 0,
) -> None:
    """Runs the benchmark and writes its results file."""
    bases = {"embedded": workload.embedded, "half-billion": workload.qwen_half_billion}
    chosen = list(bases) if models == "both" else [models]
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    bandwidth = machine.read_bandwidth(torch.device("cpu"))
    results = {
        "clients": CLIENTS,
        "rank": RANK,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "threads": threads,
        "read_bandwidth": bandwidth,
        "models": [
            measure(bases[name](), repeats, peft_repeats, threads, bandwidth) for name in chosen
        ],
    }
    console.print(f"written: {machine.write_results(file_of(results['models']), results)}")


def file_of(models: list[dict[str, Any]]) -> str:
    """The name of the results file: what has no bfloat16 is not to replace what has."""
    return "smoke" if any(model["dtype"] == "bfloat16" for model in models) else "smoke-float32"


def measure(
    base: workload.Base, repeats: int, peft_repeats: int, threads: int, bandwidth: float
) -> dict[str, Any]:
    """Both sides on one base; prints and returns the figures of each mix."""
    adapters = workload.random_adapters(base, CLIENTS, RANK)
    prompts = workload.prompts(base, CLIENTS, PROMPT_TOKENS)
    runs, peft_seconds, description = asyncio.run(
        _turns(base, adapters, prompts, repeats, peft_repeats, threads)
    )
    itemsize = 2 if description["dtype"] == "bfloat16" else 4
    one_adapter = workload.adapter_bytes(base, RANK, bytes_each=itemsize)
    distinct = {"base": 0, "1 adapter": 1, "32 adapters": CLIENTS}
    mixes = [
        _figures(
            name,
            runs[name],
            peft_seconds.get(name),
            base.read_bytes(itemsize),
            distinct[name] * one_adapter,
            bandwidth,
        )
        for name in MIXES
    ]
    for mix in mixes:
        mix["to_base"] = mix["tokens_per_second"] / mixes[0]["tokens_per_second"]
        mix["to_base_over_floor"] = mix["to_base"] / mix["floor_to_base"]
    _print(base, description, mixes)
    return {"model": base.name, **description, "mixes": mixes}


async def _turns(
    base: workload.Base,
    adapters: list[Path],
    prompts: list[tuple[int, ...]],
    repeats: int,
    peft_repeats: int,
    threads: int,
) -> tuple[dict[str, list[Run]], dict[str, list[float]], dict[str, Any]]:
    """All mixes on both sides, turn by turn, so that a noisy moment hits every side."""
    runs: dict[str, list[Run]] = {name: [] for name in MIXES}
    seconds: dict[str, list[float]] = {name: [] for name in MIXES}
    with tempfile.TemporaryDirectory() as store, Progress(console=console) as progress:
        task = progress.add_task(base.name, total=(repeats + 1) * len(MIXES))
        async with WeftEngine(
            base.folder, adapters, Path(store), threads=threads, max_num_seqs=CLIENTS
        ) as weft:
            dtype = getattr(torch, str(weft.description["dtype"]))
            rival = PeftServer(base.folder, adapters, dtype) if peft_repeats else None
            for turn in range(repeats + 1):
                for name, adapter_of in MIXES.items():
                    jobs = [Job(prompt, adapter_of(i)) for i, prompt in enumerate(prompts)]
                    tokens = NEW_TOKENS if turn else WARM_TOKENS
                    run = await weft.run([(job.prompt, job.adapter) for job in jobs], tokens)
                    if turn:  # the first turn warms both sides up
                        runs[name].append(run)
                    if rival and 0 < turn <= peft_repeats:
                        seconds[name].append(rival.run(jobs, NEW_TOKENS))
                    progress.advance(task)
            return runs, seconds, weft.description


def _figures(
    name: str,
    runs: list[Run],
    peft_seconds: list[float] | None,
    base_bytes: int,
    adapter_bytes: int,
    bandwidth: float,
) -> dict[str, Any]:
    speeds = [run.tokens_per_second for run in runs]
    gaps = sorted(gap for run in runs for timing in run.timings for gap in timing.gaps)
    firsts = sorted(timing.first_token for run in runs for timing in run.timings)
    figures = {
        "mix": name,
        "tokens_per_second": statistics.median(speeds),
        "spread": [min(speeds), max(speeds)],
        "first_token_p50": statistics.median(firsts),
        "first_token_p99": firsts[int(0.99 * (len(firsts) - 1))],
        "inter_token_p50": statistics.median(gaps),
        "inter_token_p99": gaps[int(0.99 * (len(gaps) - 1))],
        "floor_step_seconds": (base_bytes + adapter_bytes) / bandwidth,
        "floor_to_base": base_bytes / (base_bytes + adapter_bytes),
    }
    if peft_seconds:
        figures["peft_tokens_per_second"] = CLIENTS * NEW_TOKENS / statistics.median(peft_seconds)
        figures["to_peft"] = figures["tokens_per_second"] / figures["peft_tokens_per_second"]
    return figures


def _print(base: workload.Base, description: dict[str, Any], mixes: list[dict[str, Any]]) -> None:
    table = Table(title=f"{base.name}, {description['dtype']} on {description['device']}")
    for column in (
        "32 clients",
        "tokens/s",
        "first token p50",
        "inter-token p50 / p99",
        "step floor",
        "to base",
        "floor's own",
        "over floor",
        "to peft groups",
    ):
        table.add_column(column, justify="right")
    for mix in mixes:
        table.add_row(
            mix["mix"],
            f"{mix['tokens_per_second']:.0f}",
            f"{mix['first_token_p50'] * 1e3:.0f} ms",
            f"{mix['inter_token_p50'] * 1e3:.1f} / {mix['inter_token_p99'] * 1e3:.1f} ms",
            f"{mix['floor_step_seconds'] * 1e3:.2f} ms",
            f"{mix['to_base']:.2f}",
            f"{mix['floor_to_base']:.2f}",
            f"{mix['to_base_over_floor']:.2f}",
            f"{mix['to_peft']:.1f}x" if "to_peft" in mix else "–",
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
