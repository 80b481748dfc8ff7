"""Finds the launch plans of the Triton kernels for the GPU at hand and writes its table.

    python benchmarks/tune.py

Starts from the plans in use. In each class of problem one size after the other is varied and the
best kept; sizes with which a kernel does not compile or is wrong are passed over. After each class
the table is written to kernels/plans/, where the server looks for it on GPUs of this name.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from math import inf
from statistics import mean, median
from typing import Annotated

import torch
import triton
import typer
from kernel_clock import seconds_each
from rich.console import Console
from rich.progress import Progress
from triton.runtime.errors import PTXASError
from tuning_problems import Tuned, tuned

from weft.kernels.plan import FOLDER, PlanTable, file_name, table_of, using

Sizes = Mapping[str, int]

OPTIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "low_rank": {
        "rows": (16, 32, 64, 128),
        "rank": (16, 32, 64),
        "inputs": (32, 64, 128, 256),
        "splits": (1, 2, 4, 8, 16),
        "shrink_warps": (2, 4, 8),
        "shrink_stages": (2, 3, 4),
        "expand_rank": (16, 32, 64),
        "outputs": (32, 64, 128, 256),
        "expand_warps": (2, 4, 8),
        "expand_stages": (1, 2, 3),
    },
    "attention_decode": {
        "keys": (16, 32, 64, 128),
        "warps": (2, 4, 8),
        "stages": (2, 3, 4),
        "split_keys": (128, 256, 512, 1024),
        "splits": (8, 16, 32, 64),
        "combine_warps": (1, 2, 4),
    },
    "attention_prefill": {
        "rows": (16, 32, 64, 128),
        "keys": (16, 32, 64, 128),
        "warps": (4, 8),
        "stages": (1, 2, 3),
    },
    "cache_write": {"heads": (1, 2, 4, 8, 16), "warps": (1, 2, 4, 8)},
}
FIXED = {("low_rank", "short"): {"rows"}}  # these say which segments are short
WORTH = 0.98  # of the best cost before: less is not told from noise
ROUNDS = 3
UNUSABLE = (AssertionError, triton.OutOfResources, triton.CompilationError, PTXASError)

console = Console()


def descend(
    start: Sizes, options: Mapping[str, Sequence[int]], cost: Callable[[Sizes], float]
) -> tuple[Sizes, float]:
    """The best sizes that varying one after the other finds, and their cost.

    A size is changed only for what is clearly less.
    """
    best, least = dict(start), cost(start)
    for name, values in options.items():
        for value in values:
            candidate = {**best, name: value}
            if value != best[name] and (found := cost(candidate)) < WORTH * least:
                best, least = candidate, found
    return best, least


@dataclass(frozen=True)
class Trial:
    """Measures plans of one class of problem; a cost is relative to the table's own plan."""

    table: PlanTable
    kernel: str
    problem: str
    tuned: Tuned
    device: torch.device

    def with_plan(self, sizes: Sizes) -> PlanTable:
        """The table with another plan for this class."""
        plans = {**self.table.plans[self.kernel], self.problem: sizes}
        return PlanTable(
            self.table.name, self.table.measured, {**self.table.plans, self.kernel: plans}
        )

    def seconds(self, sizes: Sizes) -> list[float]:
        """Of each case; infinite where these sizes are of no use."""
        with using(self.with_plan(sizes)):
            try:
                self.tuned.check()
                return [
                    median(
                        seconds_each(
                            {"weft": case.ways["weft"]}, case.problems, self.device, ROUNDS
                        )["weft"]
                    )
                    for case in self.tuned.cases
                ]
            except UNUSABLE:
                return [inf]

    def best(self) -> tuple[Sizes, float]:
        """The best plan found, and its time relative to the table's."""
        start = self.table.plans[self.kernel][self.problem]
        before = self.seconds(start)

        def cost(sizes: Sizes) -> float:
            now = self.seconds(sizes)
            return inf if inf in now else mean(n / b for n, b in zip(now, before, strict=True))

        if inf in before:
            raise SystemExit(f"tune: {self.kernel}, {self.problem}: the plan in use does not work")
        fixed = FIXED.get((self.kernel, self.problem), set())
        options = OPTIONS[self.kernel].items()
        return descend(start, {name: v for name, v in options if name not in fixed}, cost)


def measured(table: PlanTable, gpu: str, classes: Sequence[str]) -> dict[str, str]:
    """What a table says of its measurement; `classes` join those that were measured before."""
    before = table.measured["classes"].split("; ") if table.measured else []
    return {
        "gpu": gpu,
        "date": date.today().isoformat(),  # noqa: DTZ011 - a day is all that is meant
        "torch": version("torch"),
        "triton": version("triton"),
        "classes": "; ".join(sorted({*before, *classes})),
    }


def main(
    only: Annotated[str, typer.Option(help="Classes whose name has this in it.")] = "",
) -> None:
    """Tunes each class and writes the table after it."""
    if not torch.cuda.is_available():
        sys.exit("tune: torch finds no CUDA device, so there is nothing to measure")
    device = torch.device("cuda")
    gpu = torch.cuda.get_device_name(device)
    table = table_of(device)
    classes = [(kernel, problem) for kernel in table.plans for problem in table.plans[kernel]]
    wanted = [item for item in classes if only in ": ".join(item)]
    with torch.inference_mode(), Progress(console=console) as progress:
        for kernel, problem in progress.track(wanted, description=gpu):
            trial = Trial(table, kernel, problem, tuned(kernel, problem, device), device)
            sizes, cost = trial.best()
            name = f"{kernel}: {problem}"
            console.print(f"{name}: {dict(sizes)}, {cost:.2f} of the time before")
            plans = trial.with_plan(sizes).plans
            table = PlanTable(file_name(gpu), measured(table, gpu, [name]), plans)
            (FOLDER / f"{table.name}.json").write_text(table.written())
    console.print(f"written: kernels/plans/{table.name}.json")


if __name__ == "__main__":
    typer.run(main)
