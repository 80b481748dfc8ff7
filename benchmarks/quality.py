"""What do adapters give up? Six ways to fine-tune the embedded base, on the same tasks and budget.

    python benchmarks/quality.py

Trains on one thread, each run in a process of its own, and keeps what is trained in `.cache/`: a
command that was interrupted goes on where it was. Then weft serves all of it in mixed batches; what
it answers is the test. Writes results/quality.json.
"""

import asyncio
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import machine
import torch
import typer
import workload
from finetuning import report
from finetuning.methods import METHODS, fewer_at_7b, load_base, trainable
from finetuning.report import Scored
from finetuning.serving import Exam, Served, amount, serve
from finetuning.tasks import TASKS, Sizes, general, splits
from finetuning.training import Budget, Job, Trained, trained
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging as transformers_logging

TRAIN, VALIDATION, CHECKED = 2000, 100, 6
# Each method's usual rates are far too low for a model this small.
RATES: Mapping[str, tuple[float, ...]] = {
    "full": (5e-4, 1e-3, 3e-3),
    "lora": (4e-3, 1e-2, 2e-2),
    "qlora": (4e-3, 1e-2, 2e-2),
    "prefix": (1e-1, 3e-1, 1.0),
    "prompt": (1e-1, 3e-1, 1.0),
    "bottleneck": (4e-3, 1e-2, 2e-2),
}
console = Console(width=160)


@dataclass(frozen=True)
class Plan:
    """What is run: names of tasks and methods, seeds, and the budget of each run."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    search: bool
    budget: Budget

    @property
    def trainings(self) -> int:
        """How many runs, those of the search included."""
        each = sum(len(self.rates(method)) + self.seeds - 1 for method in self.methods)
        return each * len(self.tasks)

    def rates(self, method: str) -> tuple[float, ...]:
        """The learning rates to try; without a search the middle one."""
        return RATES[method] if self.search else RATES[method][1:2]


def main(
    tasks: Annotated[str, typer.Option(help="of " + ", ".join(TASKS))] = ",".join(TASKS),
    methods: Annotated[str, typer.Option(help="of " + ", ".join(METHODS))] = ",".join(METHODS),
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each task and method")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="of each training")] = 240,
    tokens: Annotated[int, typer.Option(min=64, help="of each step, at most")] = 512,
    prompts: Annotated[
        int, typer.Option(min=1, help="asked of each task, and as many others")
    ] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="timed turns; medians are reported")] = 3,
    search: Annotated[bool, typer.Option(help="try three learning rates")] = True,
    train_only: Annotated[bool, typer.Option("--train-only", help="serve it another time")] = False,
    results: Annotated[Path, typer.Option(help="folder of quality.json")] = machine.RESULTS,
    cache: Annotated[Path, typer.Option(help="folder of what is trained")] = workload.CACHE,
) -> None:
    """Runs the benchmark and writes its results file."""
    plan = Plan(
        tasks=_names(tasks, TASKS, "--tasks"),
        methods=_names(methods, METHODS, "--methods"),
        seeds=seeds,
        search=search,
        budget=Budget(steps, tokens, Sizes(TRAIN, VALIDATION, prompts), CHECKED),
    )
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    runs, tried = _train(plan, cache / "quality")
    if train_only:
        return
    found = _report(plan, tried, runs, _serve(plan, runs, repeats))
    path = results / "quality.json"
    results.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine.fingerprint(), **found}, indent=2) + "\n")
    console.print(f"written: {path}")


def _names(text: str, known: Mapping[str, object], option: str) -> tuple[str, ...]:
    wanted = text.split(",")
    if unknown := sorted(set(wanted) - known.keys()):
        raise typer.BadParameter(
            f"{', '.join(unknown)} is none of {', '.join(known)}", None, option
        )
    return tuple(name for name in known if name in wanted)


def _train(plan: Plan, folder: Path) -> tuple[list[Trained], list[Trained]]:
    """The runs at the best learning rate of each method and task, and those of the search for it.

    Searched with the first seed, by the loss on the validation split; the best run is that seed's.
    """
    chosen, tried = [], []
    # Drawn by no thread of its own: the runs are forked from this process.
    with Progress(console=console, auto_refresh=False) as progress:
        bar = progress.add_task("training", total=plan.trainings)

        def run(method: str, task: str, rate: float, seed: int) -> Trained:
            progress.update(bar, description=f"training {method} on {task}", refresh=True)
            found = trained(Job(method, task, rate, seed, plan.budget), folder)
            progress.update(bar, advance=1, refresh=True)
            return found

        for method, task in itertools.product(plan.methods, plan.tasks):
            searched = [run(method, task, rate, 0) for rate in plan.rates(method)]
            best = min(searched, key=lambda found: found.validation_loss)
            others = [run(method, task, best.job.rate, seed) for seed in range(1, plan.seeds)]
            chosen += [best, *others]
            tried += searched
    return chosen, tried


def _serve(plan: Plan, runs: Sequence[Trained], repeats: int) -> dict[str, Served]:
    """What the engine of each base found, by quantization."""
    exam = Exam(
        {task: splits(TASKS[task], plan.budget.sizes).test for task in plan.tasks},
        general(plan.budget.sizes.test),
    )
    served = {}
    with Progress(console=console) as progress:
        for base, own in _by_base(runs).items():
            bar = progress.add_task(f"serving, base: {base}", total=amount(own, exam, repeats))
            advance = functools.partial(progress.advance, bar)
            served[base] = asyncio.run(serve(own, base, exam, repeats, advance))
    return served


def _by_base(runs: Sequence[Trained]) -> dict[str, list[Trained]]:
    """The runs by the quantization of their base."""
    found: dict[str, list[Trained]] = {}
    for run in runs:
        found.setdefault(METHODS[run.job.method].quantization, []).append(run)
    return found


def _report(
    plan: Plan, tried: Sequence[Trained], runs: Sequence[Trained], served: Mapping[str, Served]
) -> dict[str, Any]:
    """Prints the tables and the claims; returns what the results file holds."""
    scored = [
        Scored(run, score, count)
        for base, own in _by_base(runs).items()
        for run, score, count in zip(
            own, served[base].scores, served[base].device_bytes, strict=True
        )
    ]
    found = report.rows(scored, served, _fewer(runs))
    for table in report.tables(found, served):
        console.print(table)
    claims = dict(report.claims(found))
    for claim, finding in claims.items():
        console.print(f"[bold]{claim}[/]\n  {finding}")
    return {
        "plan": asdict(plan),
        "claims": claims,
        "methods": [asdict(row) for row in found],
        "search": [
            {**_named(run), "validation_loss": run.validation_loss, "seconds": run.seconds}
            for run in tried
        ],
        "runs": [
            {
                **_named(each.run),
                "validation_loss": each.run.validation_loss,
                "seconds": each.run.seconds,
                "peak_bytes": each.run.peak_bytes,
                "score": asdict(each.score),
            }
            for each in scored
        ],
        "engines": {
            base: {
                "weight_bytes": one.weight_bytes,
                "base": {task: asdict(s) for task, s in one.base.items()},
                "speeds": one.speeds,
            }
            for base, one in served.items()
        },
    }


def _fewer(runs: Sequence[Trained]) -> dict[str, tuple[float, float]]:
    """The base's values over a method's, of the embedded base and on Llama-7B's shapes."""
    counts = {run.job.method: run.trainable for run in runs}
    base = trainable(load_base("none"))
    return {
        method: (base / count, fewer_at_7b(METHODS[method])) for method, count in counts.items()
    }


def _named(run: Trained) -> dict[str, Any]:
    job = run.job
    return {"method": job.method, "task": job.task, "rate": job.rate, "seed": job.seed}


if __name__ == "__main__":
    typer.run(main)
