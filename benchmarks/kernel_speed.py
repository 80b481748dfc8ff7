"""How fast is each kernel against the machine's own limits, against torch and against peft's way?

    python benchmarks/kernel_speed.py

Prints GB/s and GFLOP/s, with their shares of the measured bandwidth and matmul peak, and writes
results/kernels.json, or of float32 alone results/kernels-float32.json. On a CPU the layer is that
of a 0.5B model, on a GPU that of an 8B model.
"""

import os
import sys
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import kernel_cases
import machine
import torch
import typer
from kernel_cases import Case, Shapes, Way
from kernel_clock import seconds_each
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

BOTH = "bfloat16,float32"
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Tensors lie on large pages here, as a server's adapters do."""
console = Console(width=150)


@dataclass(frozen=True)
class Limits:
    """Of the machine, in one dtype: bytes moved and operations computed per second."""

    bandwidth: float
    flops: float

    def floor(self, case: Case) -> float:
        """The least seconds of a case: moving and computing at once."""
        return max(case.bytes / self.bandwidth, case.flops / self.flops)


def measure(case: Case, limits: Limits, device: torch.device, rounds: int) -> dict[str, Any]:
    """Median, least and most seconds of each way, and the floor."""
    times = seconds_each(case.ways, case.problems, device, rounds)
    return {
        "kernel": case.kernel,
        "case": case.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "bytes": case.bytes,
        "flops": case.flops,
        "floor_seconds": limits.floor(case),
        "seconds": {way: median(values) for way, values in times.items()},
        "spread": {way: [min(values), max(values)] for way, values in times.items()},
    }


def row(result: dict[str, Any], limits: Limits) -> list[str]:
    """A result's cells; shares are of the machine's limits."""
    seconds = result["seconds"]
    moved, computed = result["bytes"] / seconds["weft"], result["flops"] / seconds["weft"]
    return [
        f"{result['kernel']}: {result['case']}",
        f"{1e6 * seconds['weft']:.0f}",
        f"{1e6 * result['floor_seconds']:.0f}",
        f"{moved / 1e9:.1f} ({moved / limits.bandwidth:.0%})",
        f"{computed / 1e9:.1f} ({computed / limits.flops:.0%})",
        *(_times(seconds, way) for way in ("gather", "peft")),
    ]


def _times(seconds: dict[Way, float], way: Way) -> str:
    return f"{seconds[way] / seconds['weft']:.2f}" if way in seconds else "–"


def table(
    shapes: Shapes, dtype: torch.dtype, limits: Limits, results: list[dict[str, Any]]
) -> Table:
    """All results of one dtype."""
    title = (
        f"{shapes.name}, {str(dtype).removeprefix('torch.')}: "
        f"{limits.bandwidth / 1e9:.1f} GB/s, {limits.flops / 1e9:.0f} GFLOP/s"
    )
    lines = Table(title=title)
    lines.add_column("kernel", no_wrap=True)
    for heading in ("us", "floor us", "GB/s", "GFLOP/s", "gather + bmm: times", "peft: times"):
        lines.add_column(heading, justify="right")
    for result in results:
        lines.add_row(*row(result, limits))
    return lines


def main(
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    rounds: Annotated[
        int, typer.Option(help="Of all ways, by turns; a figure is their median.")
    ] = 7,
    dtypes: Annotated[str, typer.Option(help="Of bfloat16 and float32, by commas.")] = BOTH,
) -> None:
    """Measures all kernels in bfloat16, float32 or both."""
    torch.set_num_threads(threads)
    names = dtypes.split(",")
    if unknown := set(names) - set(BOTH.split(",")):
        raise typer.BadParameter(f"--dtypes: {', '.join(sorted(unknown))}: none of {BOTH}")
    name = "kernels" if "bfloat16" in names else "kernels-float32"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = kernel_cases.shapes_for(device)
    bandwidth = max(machine.read_bandwidth(device), machine.copy_bandwidth(device))
    done: dict[str, Any] = {
        "shapes": shapes.name,
        "threads": threads,
        "rounds": rounds,
        "bandwidth": bandwidth,
        "matmul_peak": {},
        "cases": [],
    }
    with torch.inference_mode(), Progress(console=console) as progress:
        for dtype in (getattr(torch, each) for each in names):
            limits = Limits(bandwidth, machine.matmul_peak(device, dtype))
            done["matmul_peak"][str(dtype).removeprefix("torch.")] = limits.flops
            makers = list(kernel_cases.cases(shapes, device, dtype))
            results = []
            for make in progress.track(makers, description=str(dtype)):
                results.append(measure(make(), limits, device, rounds))
                machine.write_results(name, done | {"cases": done["cases"] + results})
            done["cases"] += results
            console.print(table(shapes, dtype, limits, results))
    console.print(f"written: {os.path.relpath(machine.results_path(name))}")


if __name__ == "__main__":
    if not LARGE_PAGES.keys() <= os.environ.keys():  # torch reads them when it is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**LARGE_PAGES, **os.environ})
    typer.run(main)
