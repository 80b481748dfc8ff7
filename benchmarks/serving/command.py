"""How does a server answer many adapters' requests? Workloads of S-LoRA and Punica, and others.

    python benchmarks/serving                                   starts weft with random adapters
    python benchmarks/serving --url http://localhost:8000       any server with OpenAI's API

Latencies of timed requests count from when each was due, whether or not it could be sent then. 64
requests of another seed go before each workload and do not count. Prints a table and writes
results/serving.json, and a picture with --plot.
"""

import asyncio
import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import machine
import typer
from rich.console import Console
from rich.progress import Progress

from serving import report
from serving.client import drive
from serving.discovery import DIALECTS
from serving.figures import Figures, Promise
from serving.request import Outcomes, Request
from serving.served import BASES, Floor, Served, running, started
from serving.suite import WORKLOADS
from serving.workloads import Load

WARM_UP, WARM_UP_CLIENTS = 64, 8
console = Console(width=190)


def main(
    url: Annotated[str | None, typer.Option(help="of a server; none: weft is started")] = None,
    dialect: Annotated[str, typer.Option(help="of that server: " + ", ".join(DIALECTS))] = "weft",
    api_key: Annotated[str | None, typer.Option(help="that it wants")] = None,
    model: Annotated[str, typer.Option(help="of our own server: " + ", ".join(BASES))] = "embedded",
    adapter_memory: Annotated[str, typer.Option(help="of our own server")] = "32MiB",
    threads: Annotated[int, typer.Option(help="of our own server's engine")] = 1,
    workloads: Annotated[
        str, typer.Option(help="patterns separated by ';', of: " + "; ".join(WORKLOADS))
    ] = "*",
    rate: Annotated[float, typer.Option(help="requests a second")] = 10.0,
    cv: Annotated[float, typer.Option(help="coefficient of variation of their gaps")] = 1.0,
    alpha: Annotated[float, typer.Option(help="of S-LoRA's power law; 1 is even")] = 1.0,
    seconds: Annotated[float, typer.Option(help="of each workload")] = 20.0,
    clients: Annotated[
        int | None, typer.Option(help="of a closed loop, for all workloads; 0: as timed, for all")
    ] = None,
    prompt: Annotated[str, typer.Option(help="least and most tokens of a prompt")] = "8-64",
    answer: Annotated[str, typer.Option(help="least and most tokens of an answer")] = "8-64",
    vocabulary: Annotated[int, typer.Option(help="token ids of prompts are below")] = 1024,
    seed: Annotated[int, typer.Option(help="of prompts, times and choices")] = 0,
    slo_first_token: Annotated[float, typer.Option(help="seconds, at most")] = 6.0,
    slo_inter_token: Annotated[
        float | None, typer.Option(help="seconds on average within one answer, at most")
    ] = None,
    results: Annotated[str, typer.Option(help="name of the results file")] = "serving",
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw, with matplotlib")] = None,
) -> None:
    """Runs the workloads and writes the results file."""
    chosen = _matching(workloads)
    _one_of("--dialect", dialect, DIALECTS)
    _one_of("--model", model, BASES)
    lengths = _range("--prompt", prompt), _range("--answer", answer)
    load = Load(rate, seconds, seed, cv, *lengths, vocabulary, alpha)
    promise = Promise(slo_first_token, slo_inter_token)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    server: AbstractContextManager[Served] = (
        started(model, adapter_memory, threads)
        if url is None
        else nullcontext(running(url, dialect, headers))
    )
    with server as served, Progress(console=console, transient=True) as progress:
        task = progress.add_task("")
        runs = {}
        for name in chosen:
            requests, warm_up = _requests(name, served, load)
            count = WORKLOADS[name].clients if clients is None else clients or None
            progress.reset(task, description=name, total=len(requests))
            outcomes = asyncio.run(
                _run(served, warm_up, requests, count, lambda: progress.advance(task))
            )
            runs[name] = Run(outcomes, f"{count} clients" if count else f"{rate:g} a second")
    _tell(runs, promise, served)
    written = {
        "server": url or f"weft, {model}, adapter memory {adapter_memory}, {threads} threads",
        "load": asdict(load),
        "promise": asdict(promise),
        "warm_up": WARM_UP,
        "read_bandwidth": served.floor.bandwidth if served.floor else None,
        "runs": {name: _written(run, promise, served.floor) for name, run in runs.items()},
    }
    console.print(f"written: {machine.write_results(results, written)}")
    if plot is not None:
        report.save_plot({name: run.outcomes for name, run in runs.items()}, plot)


@dataclass(frozen=True)
class Run:
    """A workload's outcomes; sent: how its requests were."""

    outcomes: Outcomes
    sent: str


async def _run(
    served: Served,
    warm_up: Sequence[Request],
    requests: Sequence[Request],
    clients: int | None,
    advance: Callable[[], None],
) -> Outcomes:
    await drive(served.target, warm_up, WARM_UP_CLIENTS)
    return await drive(served.target, requests, clients, lambda _: advance())


def _requests(name: str, served: Served, load: Load) -> tuple[Sequence[Request], Sequence[Request]]:
    """A workload's requests, and those that go before them."""
    workload = WORKLOADS[name]
    try:
        return workload.make(load, served.names), workload.warm_up(load, served.names, WARM_UP)
    except ValueError as error:
        raise typer.BadParameter(f"{name}: {error}") from None


def _tell(runs: Mapping[str, Run], promise: Promise, served: Served) -> None:
    table = report.table(f"in time: {promise.words}")
    for name, run in runs.items():
        figures = Figures.of(run.outcomes, promise)
        floor = served.floor.step(run.outcomes) if served.floor else None
        report.add_row(table, name, run.sent, figures, floor)
        for kind, part in Figures.by_kind(run.outcomes, promise).items():
            report.add_row(table, f"  {kind}", "", part, None)
    console.print(table)
    for name, run in runs.items():
        for remark in report.remarks(name, Figures.of(run.outcomes, promise)):
            console.print(remark)


def _written(run: Run, promise: Promise, floor: Floor | None) -> dict[str, Any]:
    kinds = Figures.by_kind(run.outcomes, promise)
    return {
        "sent": run.sent,
        "floor_step_seconds": floor.step(run.outcomes) if floor else None,
        **asdict(Figures.of(run.outcomes, promise)),
        "kinds": {kind: asdict(figures) for kind, figures in kinds.items()},
    }


def _matching(patterns: str) -> list[str]:
    """The workloads that any of the patterns names, in the suite's order."""
    wanted = [pattern.strip() for pattern in patterns.split(";")]
    for pattern in wanted:
        if not fnmatch.filter(WORKLOADS, pattern):
            raise typer.BadParameter(f"--workloads: {pattern} is none of {'; '.join(WORKLOADS)}")
    return [name for name in WORKLOADS if any(fnmatch.fnmatch(name, one) for one in wanted)]


def _one_of(flag: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise typer.BadParameter(f"{flag}: {name} is none of {'; '.join(names)}")


def _range(flag: str, text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    if not (least.isdecimal() and most.isdecimal() and 0 < int(least) <= int(most)):
        raise typer.BadParameter(f"{flag}: should be LEAST-MOST, like 8-64, not {text!r}")
    return int(least), int(most)


if __name__ == "__main__":
    typer.run(main)
