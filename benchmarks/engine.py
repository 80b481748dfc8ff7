"""Where does a step of the engine go, and how far is it from what the machine allows?

    python benchmarks/engine.py

Times whole steps, decoding, by rows, adapters and ranks; beside them the bytes that they must read
at the bandwidth measured, and their matrix products alone. All in one process and in turns.
Updates results/engine.json and prints tables.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import machine
import torch
import typer
import workload
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stepper import CONTEXT, Stepper, version
from stopwatch import Stopwatch
from torch import nn
from transformers.pytorch_utils import Conv1D

from weft.adapters.modules import Adapted
from weft.adapters.residency import Residency
from weft.server.engine import launcher
from weft.server.engine.attention import PagedLayer
from weft.server.engine.engine import Engine
from weft.server.engine.model import ModelHost
from weft.server.engine.packed_linear import PackedLinear
from weft.server.engine.readback import Readback
from weft.server.engine.scheduler import Scheduler

NAME = "engine"
BASES = {
    "embedded": workload.embedded,
    "half-billion": workload.qwen_half_billion,
    "llama-8b": workload.llama_eight_billion,
}
ROWS = {"llama-8b": (1, 8, 32, 64)}
"""Of the steps that are timed, where they are not those of a CPU."""
CPU_ROWS = (1, 8, 32)
RANKS = "8,16,64,8/16/64"
FORWARD = ("linears", "attention", "adapters", "rest of forward")
OWN = ("plan", "build", "sample", "commit", "publish", "rest of step")
PARTS = (
    (Residency, "pump", "plan"),
    (Scheduler, "plan", "plan"),
    (ModelHost, "build", "build"),
    (ModelHost, "run", "rest of forward"),
    (nn.Linear, "forward", "linears"),
    (PackedLinear, "forward", "linears"),
    (Conv1D, "forward", "linears"),
    (PagedLayer, "__call__", "attention"),
    (Adapted, "adapted", "adapters"),
    (Adapted, "computed", "linears"),
    (launcher, "choose", "sample"),
    (Readback, "take", "sample"),
    (Scheduler, "commit", "commit"),
    (Engine, "_publish", "publish"),
    (Engine, "take_events", "publish"),
    (Engine, "step", "rest of step"),
)
console = Console(width=150)


@dataclass
class Case:
    """A kind of step, and what was measured of it in seconds.

    ranks: of the adapters, in turn; row i has adapter i modulo `adapters`
    bare: pairs of a step and one of the model without anything that knows of adapters
    ahead: steps that are launched before the tokens of those before them are read
    launched: steps without CUDA graphs, where the others are replayed
    """

    rows: int
    adapters: int
    ranks: tuple[int, ...] = ()
    steps: list[float] = field(default_factory=list)
    ahead: list[float] = field(default_factory=list)
    launched: list[float] = field(default_factory=list)
    bare: list[tuple[float, float]] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)

    @property
    def versions(self) -> list[str | None]:
        """Of each row."""
        if not self.adapters:
            return [None] * self.rows
        numbers = sorted(row % self.adapters for row in range(self.rows))
        return [version(self.ranks[n % len(self.ranks)], n) for n in numbers]


def cases(rows: tuple[int, ...], ranks: Sequence[tuple[int, ...]]) -> list[Case]:
    """By rows at rank 16, and by ranks at the most rows."""
    *fewer, most = rows
    by_rows = [Case(count, 0) for count in rows]
    by_rows += [Case(count, many, (16,)) for count in fewer for many in sorted({1, count})]
    return by_rows + [Case(most, count, each) for each in ranks for count in (1, 8, most)]


def main(
    models: Annotated[str, typer.Option(help="embedded, half-billion, both, or llama-8b")] = "both",
    turns: Annotated[int, typer.Option(help="steps of each kind that are timed")] = 12,
    adapter_gib: Annotated[float, typer.Option(help="memory for adapters")] = 8.0,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
    ranks: Annotated[str, typer.Option(help="of the most rows' adapters, or several")] = RANKS,
) -> None:
    """Runs the benchmark and updates its results file."""
    by_rank = [tuple(map(int, each.split("/"))) for each in ranks.split(",")]
    torch.set_num_threads(threads)
    for model in ("embedded", "half-billion") if models == "both" else (models,):
        base, rows = BASES[model](), ROWS.get(model, CPU_ROWS)
        memory = int(adapter_gib * 2**30)
        stepper = Stepper(base, rows=max(rows), adapter_memory=memory, threads=threads)
        bandwidth = machine.read_bandwidth(stepper.host.facts.device)
        measured = cases(rows, by_rank)
        with Progress(console=console) as progress:
            run(stepper, measured, turns, progress, f"{base.name}, {threads} threads")
        found = report(stepper, base, measured, bandwidth)
        save(f"{base.name}, {found['dtype']}, threads: {threads}", found)
    show(json.loads(machine.results_path(NAME).read_text()))


def run(
    stepper: Stepper, measured: Sequence[Case], turns: int, progress: Progress, title: str
) -> None:
    """All cases in turn, so that a noisy moment hits every one of them."""
    task = progress.add_task(title, total=turns + 1)
    stepper.warm(sorted({v for case in measured for v in case.versions if v}))
    stepper.warm([None])
    watch = Stopwatch(PARTS)
    for turn in range(turns + 1):
        for case in measured:
            measure(stepper, case, watch)
            if not turn:  # the first turn warms up
                case.steps, case.bare, case.products, case.parts = [], [], [], []
                case.ahead, case.launched = [], []
        progress.advance(task)


def measure(stepper: Stepper, case: Case, watch: Stopwatch) -> None:
    """One turn of one case."""
    stepper.begin(case.versions)
    stepper.step()
    case.steps.append(stepper.step())
    with watch.running():
        stepper.step()
    case.parts.append(dict(watch.seconds))
    with stepper.ahead():
        stepper.step()
        case.ahead.append(stepper.step())
    with stepper.launched():
        if stepper.replays:
            case.launched.append(stepper.step())
        if not case.adapters:
            case.products.append(stepper.products(case.rows))
            for _ in range(2):
                idle = stepper.step()
                with stepper.bare():
                    case.bare.append((idle, stepper.step()))
    stepper.end()


def report(
    stepper: Stepper, base: workload.Base, measured: Sequence[Case], bandwidth: float
) -> dict[str, Any]:
    """The figures of all cases; times in seconds."""
    itemsize = stepper.host.facts.dtype.itemsize
    plain = {case.rows: case for case in measured if not case.adapters}
    return {
        "model": base.name,
        "dtype": str(stepper.host.facts.dtype).removeprefix("torch."),
        "context": CONTEXT,
        "read_bandwidth": bandwidth,
        "machine": machine.fingerprint(),
        "cases": [figures(case, plain[case.rows], base, itemsize, bandwidth) for case in measured],
    }


def figures(
    case: Case, plain: Case, base: workload.Base, itemsize: int, bandwidth: float
) -> dict[str, Any]:
    """Of one case; `plain` is the same step of the base."""
    distinct = [version for version in set(case.versions) if version]
    added = sum(
        workload.adapter_bytes(base, int(each.partition("-")[0]), itemsize) for each in distinct
    )
    read = base.read_bytes(itemsize)
    step, of_base = statistics.median(case.steps), statistics.median(plain.steps)
    products = statistics.median(plain.products)
    parts = {
        part: statistics.median(each.get(part, 0.0) for each in case.parts)
        for part in (*FORWARD, *OWN)
    }
    result = {
        "rows": case.rows,
        "adapters": case.adapters,
        "ranks": case.ranks,
        "step": step,
        "fastest": min(case.steps),
        "ahead": statistics.median(case.ahead),
        "floor": (read + added) / bandwidth,
        "products": products,
        "to_base": of_base / step,
        "floor_to_base": read / (read + added),
        "one_after_the_other": of_base / (of_base + added / bandwidth),
        "parts": parts,
        "own": sum(parts[part] for part in OWN) / sum(parts.values()),
    }
    if case.launched:
        result["launched"] = statistics.median(case.launched)
    if case.bare:
        result["idle_to_bare"] = statistics.median(bare / idle for idle, bare in case.bare)
    return result


def save(title: str, found: dict[str, Any]) -> None:
    """Replaces one model's figures in the results file."""
    path = machine.results_path(NAME)
    kept = json.loads(path.read_text())["models"] if path.exists() else {}
    machine.write_results(NAME, {"models": {**kept, title: found}})


def show(results: dict[str, Any]) -> None:
    """Prints two tables a model: against the floors, and by parts."""
    for title, found in results["models"].items():
        steps = _table(
            f"{title}: a step against its floors, ms",
            "step", "fastest", "bytes", "over", "products", "over", "to base", "bytes'", "in turn",
            "idle to bare", "launched", "ahead",
        )  # fmt: skip
        parts = _table(f"{title}: where a step goes, ms", *FORWARD, *OWN, "engine's own")
        for each in found["cases"]:
            ranks = "/".join(map(str, each["ranks"])) or "–"
            case = (str(each["rows"]), str(each["adapters"]), ranks)
            steps.add_row(
                *case,
                *(f"{1e3 * each[key]:.2f}" for key in ("step", "fastest", "floor")),
                f"{each['step'] / each['floor']:.2f}",
                f"{1e3 * each['products']:.2f}",
                f"{each['step'] / each['products']:.2f}",
                f"{each['to_base']:.3f}",
                f"{each['floor_to_base']:.3f}",
                f"{each['one_after_the_other']:.3f}",
                f"{each['idle_to_bare']:.3f}" if "idle_to_bare" in each else "",
                *(f"{1e3 * each[key]:.2f}" if key in each else "" for key in ("launched", "ahead")),
            )
            shares = (f"{1e3 * each['parts'][part]:.2f}" for part in (*FORWARD, *OWN))
            parts.add_row(*case, *shares, f"{each['own']:.1%}")
        console.print(steps, parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in ("rows", "adapters", "rank", *columns):
        table.add_column(column, justify="right")
    return table


if __name__ == "__main__":
    typer.run(main)
