"""weft beside other servers: the same model, adapters and requests, on this machine, in one run.

    python benchmarks/rivals.py --vllm PATH/TO/ITS/bin/python

32 clients each send one prompt at once, to the base, to one adapter, or to an adapter each. Servers
are asked over HTTP, libraries are called in this process. A side that is not here is named as such.
Writes results/rivals.json, or of float32 results/rivals-float32.json, and prints the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import machine
import torch
import typer
import workload
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from serving.request import Request
from sides.contest import Cell, Entry, Rules, contest, steps
from sides.continuous_batching import ContinuousBatching
from sides.llama_server import LlamaServer
from sides.peft_loop import PeftLoop
from sides.side import Setting, Side
from sides.vllm_server import VllmServer
from sides.weft_server import WeftServer

CLIENTS = 32
RANK = 16
PROMPT_TOKENS = 32
NEW_TOKENS = 32
WEFT, PEFT = WeftServer.name, PeftLoop.name
GOALS = {"base": 1.1, "1 adapter": 1.8, "32 adapters": 3.5}
PEFT_GOAL = ("32 adapters", 10.0)
ALL = "peft,transformers,vllm,llama.cpp,weft"
console = Console(width=140)


def main(
    vllm: Annotated[Path | None, typer.Option(help="python of an environment with vLLM")] = None,
    repeats: Annotated[int, typer.Option(help="runs of each mix on each side")] = 3,
    threads: Annotated[int, typer.Option(help="of each side; 0: one a core")] = 0,
    deadline: Annotated[float, typer.Option(help="seconds until a run is given up")] = 120.0,
    sides: Annotated[str, typer.Option(help="which take part; the first is the reference")] = ALL,
    long: Annotated[float, typer.Option(help="a run of more seconds is not repeated")] = 90.0,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32, of all sides")] = "bfloat16",
) -> None:
    """Runs the contest and writes its results file."""
    threads = threads or machine.fingerprint()["cores"]
    torch.set_num_threads(threads)
    base = workload.qwen_half_billion()
    folders = workload.random_adapters(base, CLIENTS, RANK)
    setting = Setting(
        base=base.folder,
        adapters={f"adapter-{place}": folder for place, folder in enumerate(folders)},
        clients=CLIENTS,
        threads=threads,
        dtype=dtype,
        deadline=deadline,
        scratch=workload.CACHE / "rivals",
    )
    floors = floors_of(base, setting.torch_dtype)
    mixes = mixes_of(base, list(setting.adapters))
    rules = Rules(repeats, long)
    entries = measured(sides_of(setting, vllm, sides.split(",")), mixes, rules)
    results = {
        "model": base.name,
        "clients": CLIENTS,
        "rank": RANK,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "threads": threads,
        "dtype": dtype,
        "reference": entries[0].side,
        "deadline": deadline,
        "rules": asdict(rules),
        "floor_tokens_per_second": floors,
        "sides": [described(entry) for entry in entries],
        "ratios": ratios(entries),
    }
    console.print(table_of(entries, floors))
    console.print("\n".join(goals_of(entries)))
    console.print(f"written: {machine.write_results(file_of(dtype), results)}")


def file_of(dtype: str) -> str:
    """The name of the results file; each dtype has its own."""
    return "rivals" if dtype == "bfloat16" else f"rivals-{dtype}"


def sides_of(setting: Setting, vllm: Path | None, names: Sequence[str]) -> list[Side]:
    """Those that are named; the first is the reference of answers."""
    makers: dict[str, Callable[[], Side]] = {
        "peft": lambda: PeftLoop(setting),
        "transformers": lambda: ContinuousBatching(setting),
        "vllm": lambda: VllmServer(setting, vllm),
        "llama.cpp": lambda: LlamaServer(setting),
        "weft": lambda: WeftServer(setting),
    }
    if unknown := set(names) - makers.keys():
        raise typer.BadParameter(f"--sides: {', '.join(sorted(unknown))}: none of {ALL}")
    return [makers[name]() for name in names]


def mixes_of(base: workload.Base, adapters: Sequence[str]) -> dict[str, list[Request]]:
    """The same prompts to the base, to the first adapter, and to an adapter each."""
    prompts = workload.prompts(base, CLIENTS, PROMPT_TOKENS)
    adapter_of: dict[str, Callable[[int], str | None]] = {
        "base": lambda _: None,
        "1 adapter": lambda _: adapters[0],
        "32 adapters": lambda place: adapters[place],
    }
    return {
        mix: [Request(prompt, of(place), NEW_TOKENS) for place, prompt in enumerate(prompts)]
        for mix, of in adapter_of.items()
    }


def measured(
    sides: Sequence[Side], mixes: Mapping[str, Sequence[Request]], rules: Rules
) -> list[Entry]:
    """The contest, with a bar that tells what is done."""
    with Progress(console=console) as progress:
        task = progress.add_task("", total=steps(len(sides), len(mixes), rules))
        return contest(
            sides, mixes, rules, lambda step: progress.update(task, advance=1, description=step)
        )


def floors_of(base: workload.Base, dtype: torch.dtype) -> dict[str, float]:
    """Tokens per second that memory bandwidth and matmul peak allow, of each mix.

    A step reads the base and the distinct adapters and multiplies each row with both; prompts are
    multiplied with all but the head.
    """
    cpu = torch.device("cpu")
    bandwidth, peak = machine.read_bandwidth(cpu), machine.matmul_peak(cpu, dtype)
    one = workload.adapter_bytes(base, RANK, bytes_each=2)
    body = base.step_bytes - workload.head_bytes(base)
    floors = {}
    for mix, distinct in {"base": 0, "1 adapter": 1, "32 adapters": CLIENTS}.items():
        own = one if distinct else 0
        flops_a_token = base.step_bytes + own  # 2 for each value of 2 bytes
        bytes_a_step = base.read_bytes(dtype.itemsize) + distinct * one
        step = max(bytes_a_step / bandwidth, CLIENTS * flops_a_token / peak)
        prompts = CLIENTS * PROMPT_TOKENS * (body + own) / peak
        floors[mix] = CLIENTS * NEW_TOKENS / (prompts + (NEW_TOKENS - 1) * step)
    return floors


def described(entry: Entry) -> dict[str, Any]:
    """A side as results keep it."""
    if entry.missing:
        return {"side": entry.side, "missing": entry.missing}
    return {
        "side": entry.side,
        "version": entry.version,
        "idle_cores": entry.idle,
        "mixes": {mix: _figures(cell) for mix, cell in entry.cells.items()},
    }


def _figures(cell: Cell) -> dict[str, Any]:
    if cell.not_served:
        return {"not_served": cell.not_served}
    return {
        "tokens_per_second": cell.speed,
        "runs": cell.speeds,
        "failed": cell.failed,
        "agrees": cell.agrees,
    }


def ratios(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """weft's speed to each other side's, of each mix that both answered whole."""
    mine = next(entry for entry in entries if entry.side == WEFT)
    found: dict[str, dict[str, float]] = {mix: {} for mix in mine.cells}
    for entry in entries:
        for mix, cell in entry.cells.items():
            own = mine.cells[mix].speed if mix in mine.cells else None
            if entry is not mine and own and cell.speed:
                found[mix][entry.side] = own / cell.speed
    return found


def table_of(entries: Sequence[Entry], floors: Mapping[str, float]) -> Table:
    """Tokens per second of each side and mix, and what bandwidth and matmuls allow."""
    table = Table(title="32 clients, tokens/s: median (least–most); tokens as the first side's")
    table.add_column("side", no_wrap=True)
    for mix in floors:
        table.add_column(mix, justify="right")
    for entry in entries:
        if entry.missing:
            table.add_row(entry.side, *["missing"] * len(floors))
        else:
            table.add_row(entry.side, *(shown(entry.cells[mix]) for mix in floors))
    table.add_section()
    table.add_row("the floor allows", *(f"{floor:.0f}" for floor in floors.values()))
    return table


def goals_of(entries: Sequence[Entry]) -> list[str]:
    """weft beside the best other server of each mix, and beside peft, with the goals."""
    found = ratios(entries)
    lines = []
    for mix, goal in GOALS.items():
        servers = {side: ratio for side, ratio in found.get(mix, {}).items() if side != PEFT}
        if servers:
            best = min(servers, key=servers.__getitem__)
            lines.append(f"{mix}: weft is {servers[best]:.2f}x {best} (goal {goal}x)")
    mix, goal = PEFT_GOAL
    if PEFT in found.get(mix, {}):
        lines.append(f"{mix}: weft is {found[mix][PEFT]:.1f}x {PEFT} (goal {goal:.0f}x)")
    return lines


def shown(cell: Cell) -> str:
    """A cell of the table."""
    if cell.not_served:
        return f"– ({cell.not_served})"
    if cell.speed is None:
        return f"did not finish ({cell.failed})"
    spread = f"{min(cell.speeds):.0f}–{max(cell.speeds):.0f}"
    return f"{cell.speed:.0f} ({spread}); {100 * (cell.agrees or 0):.0f} %"


if __name__ == "__main__":
    typer.run(main)
