"""What does each method cost a decode step? 32 rows on one adapter, on 32, and on all methods.

    python benchmarks/methods.py

Each adapter step follows a base step in one process; a figure is the median of such pairs' ratios.
Updates results/methods.json family by family and prints a table. `families.py` says what is what.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import machine
import torch
import typer
import workload
from decoder import ROWS, Decoder, Resident
from families import FAMILIES, bytes_per_step, flops_per_row
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from weft.adapters.plan import AdapterPlan

NAME = "methods"
MIX = "all methods"
BASES = {
    "embedded": workload.embedded,
    "half-billion": workload.qwen_half_billion,
    "experts": workload.many_experts,
}
_NOT_MIXED = {"dense, all"}  # alone as large as all others together
console = Console(width=140)


@dataclass(frozen=True)
class Limits:
    """The machine's: bytes read and operations computed per second."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Load:
    """What one step must at least read and compute."""

    bytes: float
    flops: float

    def __add__(self, other: "Load") -> "Load":
        return Load(self.bytes + other.bytes, self.flops + other.flops)

    def seconds(self, limits: Limits) -> float:
        """The least time: reading and computing at once."""
        return max(self.bytes / limits.bandwidth, self.flops / limits.flops)


def main(
    models: Annotated[str, typer.Option(help="embedded, half-billion, experts, or all")] = "all",
    methods: Annotated[str, typer.Option(help="names of families, by semicolons; or all")] = "",
    turns: Annotated[int, typer.Option(help="steps of each kind that are timed")] = 30,
    context: Annotated[int, typer.Option(help="tokens that each row attends to")] = 64,
    adapter_gib: Annotated[float, typer.Option(help="memory for adapters")] = 4.0,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
) -> None:
    """Runs the benchmark and updates its results file."""
    names = [name.strip() for name in methods.split(";")] if methods else [*FAMILIES, MIX]
    unknown = set(names) - {*FAMILIES, MIX}
    if unknown:
        raise typer.BadParameter(f"no such families: {sorted(unknown)}", param_hint="--methods")
    torch.set_num_threads(threads)
    settings = {"rows": ROWS, "context": context, "threads": threads}
    for model in BASES if models == "all" else [models]:
        base = BASES[model]()
        decoder = Decoder(
            base, context=context, adapter_memory=int(adapter_gib * 2**30), threads=threads
        )
        facts = decoder.host.facts
        dtype = str(facts.dtype).removeprefix("torch.")
        limits = Limits(
            machine.read_bandwidth(facts.device), machine.matmul_peak(facts.device, facts.dtype)
        )
        fitting = [name for name in names if name == MIX or plan_of(name, decoder).ops]
        with Progress(console=console) as progress:
            task = progress.add_task(base.name, total=len(fitting))
            for name in fitting:
                progress.update(task, description=f"{base.name}: {name}")
                entry = measure(decoder, base, name, turns, limits)
                save(f"{base.name}, {dtype}", settings, name, entry)
                progress.advance(task)
    show(json.loads(machine.results_path(NAME).read_text()))


def measure(
    decoder: Decoder, base: workload.Base, name: str, turns: int, limits: Limits
) -> dict[str, Any]:
    """One family's figures."""
    decoder.remove_adapters()
    sides = mixed(decoder) if name == MIX else alone(decoder, name)
    steps = {side: decoder.decode(adapters) for side, (adapters, _) in sides.items()}
    plain = decoder.decode([])
    pairs: dict[str, list[tuple[float, float]]] = {side: [] for side in steps}
    for turn in range(turns + 2):
        for side, plan in steps.items():
            pair = decoder.seconds(plain), decoder.seconds(plan)
            if turn > 1:  # the first turns warm up
                pairs[side].append(pair)
    itemsize = decoder.host.facts.dtype.itemsize
    values = base.step_bytes // 2
    load = Load(base.read_bytes(itemsize) + decoder.cache_bytes, 2 * (values - base.idle) * ROWS)
    return {
        "methods": FAMILIES[name].methods if name in FAMILIES else "one or two rows of each",
        "adapter_bytes": decoder.stored_bytes(next(iter(sides.values()))[1][0]),
        "limits": {"bandwidth": limits.bandwidth, "flops": limits.flops},
        "sides": {
            side: figures(pairs[side], load, added(plans, itemsize, base.chosen), limits)
            | {"distinct": len(plans)}
            for side, (_, plans) in sides.items()
        },
        "turns": turns,
        "machine": machine.fingerprint(),
    }


Side = tuple[list[Resident], list[AdapterPlan]]


def alone(decoder: Decoder, name: str) -> Mapping[str, Side]:
    """One adapter of a family for all rows, and as many as there are rows, or fit."""
    plan = plan_of(name, decoder)
    adapters = decoder.add_adapters(plan, ROWS)
    return {
        "one": (adapters[:1], [plan]),
        "distinct": (adapters, [plan] * len(adapters)),
    }


def plan_of(name: str, decoder: Decoder) -> AdapterPlan:
    """A family's adapter of the base; empty where the base has nothing that it changes."""
    return FAMILIES[name].plan(name, decoder.host.base)


def mixed(decoder: Decoder) -> Mapping[str, Side]:
    """An adapter of each family that fits the base, in one step."""
    found = (plan_of(name, decoder) for name in FAMILIES if name not in _NOT_MIXED)
    plans = [plan for plan in found if plan.ops]
    return {"mix": (list(chain(*(decoder.add_adapters(plan, 1) for plan in plans))), plans)}


def added(plans: Sequence[AdapterPlan], itemsize: int, chosen: float) -> Load:
    """What the adapters add to a step in which all have as many rows."""
    rows = ROWS // len(plans)
    ops = [op for plan in plans for _, op in plan]
    return Load(
        sum(bytes_per_step(op, itemsize, rows, chosen) for op in ops),
        sum(flops_per_row(op, chosen) for op in ops) * ROWS / len(plans),
    )


def figures(
    pairs: list[tuple[float, float]], load: Load, more: Load, limits: Limits
) -> dict[str, Any]:
    """Speed, its ratio to the base pair by pair, and what the limits of the machine allow.

    pairs: seconds of a base step and of the step after it
    """
    low, middle, high = statistics.quantiles((base / side for base, side in pairs), n=4)
    base, side = zip(*pairs, strict=True)
    floor = load.seconds(limits) / (load + more).seconds(limits)
    # One row an adapter is bound by memory where the base is bound by computing.
    apart = load.seconds(limits) / (load.seconds(limits) + more.seconds(limits))
    return {
        "base_tokens_per_second": ROWS / statistics.median(base),
        "tokens_per_second": ROWS / statistics.median(side),
        "to_base": middle,
        "to_base_quartiles": [low, high],
        "to_base_fastest": min(base) / min(side),
        "added_bytes": more.bytes / load.bytes,
        "added_flops": more.flops / load.flops,
        "floor_to_base": floor,
        "floor_to_base_one_after_the_other": apart,
        "to_base_over_floor": middle / floor,
    }


def save(model: str, settings: dict[str, Any], name: str, entry: dict[str, Any]) -> None:
    """Replaces one family's entry of the results file, or all of them if the settings changed."""
    path = machine.results_path(NAME)
    results = json.loads(path.read_text()) if path.exists() else {"models": {}}
    kept = results["models"].get(model)
    if kept is None or kept["settings"] != settings:
        kept = {"settings": settings, "families": {}}
    kept["families"][name] = entry
    results["models"][model] = kept
    machine.write_results(NAME, {"models": results["models"]})


def show(results: dict[str, Any]) -> None:
    """Prints one table a model."""
    for model, kept in results["models"].items():
        table = Table(title=f"{model}, {kept['settings']}")
        for column in (
            "family",
            "adapters",
            "KiB each",
            "tokens/s",
            "to base",
            "quartiles",
            "fastest",
            "bytes",
            "FLOPs",
            "floor's",
            "in turn",
            "over floor",
        ):
            table.add_column(column, justify="right")
        for name, entry in kept["families"].items():
            for side, found in entry["sides"].items():
                low, high = found["to_base_quartiles"]
                table.add_row(
                    name,
                    f"{found['distinct']}{' mixed' * (side == 'mix')}",
                    f"{entry['adapter_bytes'] / 1024:,.0f}",
                    f"{found['tokens_per_second']:.0f}",
                    f"{found['to_base']:.3f}",
                    f"{low:.2f}–{high:.2f}",
                    f"{found['to_base_fastest']:.3f}",
                    f"+{found['added_bytes']:.1%}",
                    f"+{found['added_flops']:.1%}",
                    f"{found['floor_to_base']:.3f}",
                    f"{found['floor_to_base_one_after_the_other']:.3f}",
                    f"{found['to_base_over_floor']:.3f}",
                )
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
