"""How long does an adapter of 84 MB take from host to device, against its bytes alone?

    python benchmarks/swap_in.py

A LoRA of Llama-3.1-8B's linear layers is installed as a server does it, in slices, into one range
of the pool and into the holes that others left; beside it, in turns, one copy of as many bytes.
Without a GPU the device is the host's own memory, so what is measured is the work around the copy.
Also how many bytes of the pool adapters of mixed ranks take. Prints a table and writes
results/swap_in.json.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import typer
import workload
from machine import write_results
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig

from weft.adapters.arena import Arena
from weft.adapters.base import BaseModules
from weft.adapters.modules import adapt
from weft.adapters.operations import LowRank
from weft.adapters.packed import ALIGNMENT, Packed, pack
from weft.adapters.plan import AdapterPlan
from weft.adapters.pool import Pool
from weft.kernels.low_rank import arena_dtype
from weft.server.engine import hardware, weights
from weft.server.engine.engine import COPY_BYTES_PER_STEP

GOALS = {"swap": 1.3, "bytes": 1.05}
BFLOAT16_RANK = 16  # 84 MB
SLOTS = 256
MIXED = range(4, 65)


@dataclass(frozen=True, eq=False)
class Device:
    """The base's modules, without weights, and a pool on the device."""

    base: BaseModules
    arena: Arena
    pool: Pool
    linears: tuple[str, ...]

    @classmethod
    def make(cls, nbytes: int) -> "Device":
        """A pool of `nbytes`."""
        device = hardware.choose_device("auto")
        config = AutoConfig.from_pretrained(workload.llama_eight_billion().folder)
        model = weights.skeleton(config)
        base = BaseModules.of(model)
        dtype = arena_dtype(device, torch.bfloat16)
        values = torch.zeros(nbytes // dtype.itemsize, dtype=dtype, device=device)
        arena = Arena(values, adapt(model, base, {}, values, SLOTS).tables)
        linears = tuple(name for name in base if name.endswith("_proj"))
        return cls(base, arena, Pool(nbytes, SLOTS), linears)

    def lora(self, name: str, rank: int) -> Packed:
        """An adapter of all linear layers but the head, on the host as a load leaves it."""
        ops: dict[str, Any] = {}
        for module in self.linears:
            inputs, outputs = self.base.sides(module)
            ops[module] = (LowRank(torch.ones(rank, inputs), torch.ones(rank, outputs)),)
        values = self.arena.values
        return pack(
            AdapterPlan(name, "lora", ops), values.dtype, ALIGNMENT, pin_memory=values.is_cuda
        )

    def install(self, version: Packed) -> None:
        """As the engine's steps do it; the version can be computed with when this returns."""
        placement = self.pool.reserve(version.plan.digest, version.sizes)
        if placement is None:
            raise RuntimeError("the pool is too small for this benchmark")
        installation = self.arena.install(placement, version)
        while not installation.finish():
            installation.advance(COPY_BYTES_PER_STEP)
        self.pool.commit(version.plan.digest)

    def remove(self, digest: str) -> None:
        """Makes its slot and bytes free."""
        self.arena.clear(self.pool.drop(digest))


def main(repeats: int = 15) -> None:
    """Runs the benchmark and writes its results file."""
    torch.set_num_threads(hardware.default_threads())
    device = Device.make(1 << 30)
    rank = BFLOAT16_RANK * 2 // device.arena.values.itemsize
    version = device.lora("large", rank)
    device.install(device.lora("another", 1))
    found = {
        "device": str(device.arena.values.device),
        "rank": rank,
        "bytes": version.nbytes,
        "in one range": swapped(device, version, repeats),
    }
    leave_holes(device)
    found["in holes"] = swapped(device, version, repeats)
    found["mixed ranks"] = mixed(device)
    show(found)
    write_results("swap_in", {**found, "goals": GOALS})


def swapped(device: Device, version: Packed, repeats: int) -> dict[str, Any]:
    """Seconds of a plain copy and of an installation, in turns, and the median of their ratios."""
    values = device.arena.values
    target = torch.empty_like(version.buffer, device=values.device)
    copies: list[float] = []
    swaps: list[float] = []
    for turn in track(range(repeats + 1), description="swap-ins", transient=True):
        copied = seconds(lambda: target.copy_(version.buffer, non_blocking=True), values)
        swap = seconds(lambda: device.install(version), values)
        device.remove(version.plan.digest)
        if turn:
            copies.append(copied)
            swaps.append(swap)
    ratios = sorted(swap / copied for swap, copied in zip(swaps, copies, strict=True))
    return {
        "copy": median(copies),
        "swap_in": median(swaps),
        "ratio": median(ratios),
        "spread": [ratios[0], ratios[-1]],
    }


def seconds(call: Callable[[], object], on: Tensor) -> float:
    """Until what was called, and the device, are done."""
    start = time.perf_counter()
    call()
    if on.is_cuda:
        torch.cuda.synchronize(on.device)
    return time.perf_counter() - start


def leave_holes(device: Device) -> None:
    """Fills the pool with small adapters and drops every second one."""
    sizes = [device.lora(f"rank {rank}", rank).sizes for rank in (1, 2, 3)]
    chance = random.Random(0)
    names: list[str] = []
    while device.pool.reserve(name := f"small {len(names)}", chance.choice(sizes)):
        device.pool.commit(name)
        device.pool.pin(name)
        names.append(name)
    for name in names[::2]:
        device.pool.drop(name)


def mixed(device: Device) -> dict[str, Any]:
    """Bytes of the pool that adapters of ranks 4 to 64 take, to those of their values."""
    itemsize = device.arena.values.itemsize
    widths = [device.base.sides(module) for module in device.linears]
    pool, chance, values = Pool(1 << 40, SLOTS), random.Random(0), 0
    for number in range(SLOTS):
        rank = chance.choice(MIXED)
        sizes = [itemsize * rank * width for pair in widths for width in pair]
        pool.reserve(str(number), sizes)
        values += sum(sizes)
    return {"adapters": SLOTS, "pool_bytes": pool.used, "ratio": pool.used / values}


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    table = Table("", "one copy (ms)", "swap-in (ms)", "ratio", "goal")
    for where in ("in one range", "in holes"):
        one = found[where]
        times = (f"{1e3 * one[what]:.1f}" for what in ("copy", "swap_in"))
        table.add_row(where, *times, f"{one['ratio']:.2f}", f"≤ {GOALS['swap']}")
    ratio = f"{found['mixed ranks']['ratio']:.4f}"
    table.add_row("pool bytes to adapter bytes", "", "", ratio, f"≤ {GOALS['bytes']}")
    console = Console(width=100)
    console.print(f"{found['bytes'] / 1e6:.0f} MB to {found['device']}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
